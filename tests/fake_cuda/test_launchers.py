"""Whole launchers as on V100s (fp16) and H100s (bf16), under both layouts of visible devices."""

from __future__ import annotations

import pytest

from tests.fake_cuda.forked import Result
from tests.fake_cuda.launchers import LOCAL_RANK, VALIDATIONS
from tests.fake_cuda.test_step import BACKWARD, FORWARD, IN_BACKWARD, IN_STEP, OVERFLOW, PAGEABLE, SOFTMAX

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


@EVERY
def test_nccl_is_given_memory_of_the_device(launched: Launched, name: str) -> None:
    for result in launched[name]:
        collectives = [event for event in result.of_kind("nccl") if event.name != "init"]
        assert collectives and {event.values["host"] for event in collectives} == {"0"}


@EVERY_TRAINED
def test_a_step_of_the_loop_waits_where_deepspeed_does(launched: Launched, name: str) -> None:
    """Of all threads: what prepares the next batch waits for nothing, and copies from pinned memory."""
    for result in launched[name]:
        later = result.named("train_step")[3:]
        assert later
        for part in later:
            expected = IN_BACKWARD + IN_STEP + (OVERFLOW if name.startswith("fp16") else OVERFLOW - OVERFLOW)
            assert part.asked("wait") == expected, part.name
            assert part.asked("pageable") == PAGEABLE, part.name


@EVERY
def test_attention_kernels(launched: Launched, name: str) -> None:
    precision = name.partition(" ")[0]
    for result in launched[name]:
        kernels = [kernel for part in result.parts for kernel in part.kernels()]
        assert any(FORWARD[precision] in kernel for kernel in kernels)
        assert name.endswith("evaluate") or any(BACKWARD[precision] in kernel for kernel in kernels)
        assert [kernel for kernel in kernels if SOFTMAX.search(kernel)] == []


def test_memory_is_flat_over_validations(launched: Launched) -> None:
    """torch's allocator takes no more from the device after the second of thirty validations."""
    (result,) = launched["fp16 matching"]
    held = [part.memory()[LOCAL_RANK] for part in result.named("validate")]
    assert len(held) == VALIDATIONS and held[0] > 0
    assert set(held[2:]) == {held[1]}, held
