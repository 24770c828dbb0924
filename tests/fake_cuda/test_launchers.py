"""Whole launchers as on V100s (fp16) and H100s (bf16), under both layouts of visible devices."""

from __future__ import annotations

import pytest

from tests.fake_cuda.expected import (
    BACKWARD,
    FLOAT32,
    FORWARD,
    PAGEABLE,
    SOFTMAX,
    waits_in_backward,
    waits_in_step,
)
from tests.fake_cuda.forked import Result
from tests.fake_cuda.launchers import LOCAL_RANK, VALIDATIONS

Launched = dict[str, list[Result]]
TRAINED = ("masked", "matching", "finetune")
EVERY = pytest.mark.parametrize("name", [f"{p} {kind}" for p in ("fp16", "bf16") for kind in (*TRAINED, "evaluate")])
EVERY_TRAINED = pytest.mark.parametrize("name", [f"{p} {kind}" for p in ("fp16", "bf16") for kind in TRAINED])


@EVERY
def test_ends_well(launched: Launched, name: str) -> None:
    for result in launched[name]:
        assert result.code == 0, result.printed[-3000:]
        assert [str(event) for event in result.of_kind("refused", "peer", "unsupported")] == []


@EVERY
def test_contexts_on_its_own_device_alone(launched: Launched, name: str) -> None:
    """With one visible GPU that is number 0, whatever SLURM_LOCALID says."""
    own = LOCAL_RANK if name.startswith("fp16") else 0
    for result in launched[name]:
        assert [event.device for event in result.of_kind("context")] == [own], "\n".join(
            str(event) for event in result.of_kind("context")
        )


@EVERY_TRAINED
def test_nccl_is_given_memory_of_the_device(launched: Launched, name: str) -> None:
    for result in launched[name]:
        collectives = result.of_kind("nccl")
        assert {event.values["ranks"] for event in collectives if event.name == "init"} == {str(len(launched[name]))}
        assert {event.name for event in collectives} >= {"all_reduce", "all_gather"}
        assert {event.values["host"] for event in collectives if event.name != "init"} == {"0"}


@EVERY_TRAINED
def test_a_step_of_the_loop_waits_where_deepspeed_does(launched: Launched, name: str) -> None:
    """Of all threads: what prepares the next batch waits for nothing, and copies from pinned memory."""
    expected = waits_in_backward(*name.split()) + waits_in_step(name.split()[0])
    for result in launched[name]:
        later = result.named("train_step")[3:]
        assert later
        for part in later:
            assert part.asked("wait") == expected, part.name
            assert part.asked("pageable") == PAGEABLE, part.name


@EVERY
def test_attention_kernels(launched: Launched, name: str) -> None:
    """A trained model is evaluated in float32, for which torch has memory-efficient attention alone."""
    precision, _, kind = name.partition(" ")
    expected = {FLOAT32[precision]} if kind == "evaluate" else {FORWARD[precision], BACKWARD[precision]}
    for result in launched[name]:
        kernels = {kernel for part in result.parts for kernel in part.kernels()}
        assert {part for part in expected if any(part in kernel for kernel in kernels)} == expected
        assert [kernel for kernel in kernels if SOFTMAX.search(kernel)] == []


@pytest.mark.parametrize(
    ("name", "precision", "says"),
    [
        # Its attention would be written out in products, and ask the device for every length in every layer.
        ("no bf16", "fp16", ["Tesla V100", "enables bf16", "use fp16"]),
        ("shared", "bf16", ["ranks 0 and 1 both have", "--gpus-per-task=1"]),
    ],
)
def test_refused_before_anything_is_computed(launched: Launched, name: str, precision: str, says: list[str]) -> None:
    errors = [line for result in launched[name] for line in result.printed.splitlines() if line.startswith("error")]
    assert [result.code for result in launched[name]] == [2] * len(launched[name]) and len(errors) == 1, errors
    assert all(word in errors[0] for word in says)
    assert [part for result in launched[name] for part in result.named("train_step")] == []


@pytest.mark.parametrize("name", ["fp16 matching", "bf16 finetune"])
def test_a_validation_asks_for_all_its_sums_at_once(launched: Launched, name: str) -> None:
    for result in launched[name]:
        for part in result.named("validate"):
            waits = part.asked("wait")
            assert waits["cudaStreamSynchronize < mbsd/stages/labelled.py:validate_labelled"] == 1, waits


@pytest.mark.parametrize("name", ["fp16 matching"])
def test_memory_is_flat_over_validations(launched: Launched, name: str) -> None:
    """torch's allocator takes no more from the device after the first few of thirty validations."""
    (result,) = launched[name]
    held = [part.memory()[LOCAL_RANK] for part in result.named("validate")]
    assert len(held) == VALIDATIONS and held[0] > 0
    assert set(held[4:]) == {held[3]}, held
