"""Training steps on a GPU, in each precision: what they wait for, what they learn, and what repeats itself.

Ranks are started by `on_ranks`, which takes the GPU that is there; each does all its cases, for a start takes seconds.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

from mbsd.batch import Batch
from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.run import RunConfig
from mbsd.config.stages import SdmiConfig
from mbsd.data.shape_buckets import fill_up
from mbsd.model.heads import MbsdForMaskedModelling, MbsdForMatching
from mbsd.parallel.world import World
from mbsd.stages.masked import MaskedObjective
from mbsd.stages.matching import MatchingObjective
from mbsd.stages.stage import Objective
from mbsd.tools.bench.ranks import on_ranks
from mbsd.tools.bench.step_batches import draw, packed
from mbsd.training.determinism import prepare_workspace, repeatable
from mbsd.training.engine import build_engine
from tests.model.reference import tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.distributed,
]


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests' ranks are on CPUs, and their variable is in this process's environment."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)


STAGES = ["masked", "matching"]
# Where DeepSpeed 0.19 waits for the GPU in a step of ZeRO-2 with clipping and two groups of parameters, by function:
# the norm's two values per group and the decision to clip; in fp16 the search for an overflow besides.
WAITS = {
    "bf16": {"mask_nan_or_inf_with_val_inplace": 4, "is_invalid_grad_norm": 2},
    "fp16": {"mask_nan_or_inf_with_val_inplace": 4, "is_invalid_grad_norm": 3, "has_overflow": 1},
}


def halves() -> list[str]:
    """fp16, and bf16 where the GPU has it."""
    return ["fp16", "bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["fp16"]


def objective_of(stage: str, dropout: float) -> Objective:
    """A tiny model with the loss of a stage, on the CPU; the same weights each time."""
    torch.manual_seed(0)
    config = tiny_config(
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, vocab_size=400, max_position_embeddings=144
    )  # fmt: skip
    if stage == "masked":
        return MaskedObjective(MbsdForMaskedModelling(config))
    return MatchingObjective(MbsdForMatching(config), SdmiConfig())


def engine_of(stage: str, precision: str, *, dropout: float) -> Any:
    """`objective_of` in a ZeRO-2 engine on the GPU, with LAMB and clipping."""
    ds: dict[str, Any] = {
        "train_batch_size": 8,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1_000_000, "allgather_bucket_size": 1_000_000},
        "optimizer": {"type": "Lamb", "params": {"lr": 0.01}},
    }
    if precision != "fp32":
        ds[precision] = {"enabled": True}
    if precision == "fp16":
        ds[precision]["initial_scale_power"] = 8  # no step of these is skipped
    engine = build_engine(objective_of(stage, dropout), DeepSpeedConfig(ds).resolved(1, 100))
    assert engine.device.type == "cuda"
    return engine


def batches_of(objective: Objective, count: int, bucket: int = 1) -> list[Batch]:
    """So many batches on the objective's device; with a bucket, filled up to its sizes."""
    config, masked = objective.model.config, isinstance(objective, MaskedObjective)
    made = []
    for seed in range(count):
        batch = packed(draw(config, 8, masked=masked, longest=False, seed=seed), config)
        if bucket > 1:
            batch = fill_up(batch, bucket, num_images=8, fill_images=0, patches_per_image=config.num_patches)
        made.append(batch.to(objective.device))
    return made


def train_step(engine: Any, batch: Batch) -> torch.Tensor:
    """One step as the trainer makes it; its loss, on the device."""
    (context,) = engine.module.contexts([batch])
    losses = engine(batch, context)
    engine.backward(losses["loss"])
    engine.step()
    return losses["loss"].detach()


@contextmanager
def sync_debug(mode: str) -> Iterator[None]:
    """torch's own alarm for calls that wait for the GPU: "error" raises, "warn" says where."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@functools.cache
def functions_of(module: ModuleType) -> dict[int, str]:
    """The name of the function that each line of a module's source is in."""
    names: dict[int, str] = {}
    lines, _ = inspect.getsourcelines(module)
    name = ""
    for number, line in enumerate(lines, start=1):
        if line.strip().startswith("def "):
            name = line.strip().removeprefix("def ").partition("(")[0]
        names[number] = name
    return names


def waits_of(engine: Any, batch: Batch) -> Counter[str]:
    """Where a step waits, by function; a forward or backward that waits at all raises.

    torch's alarm does not see a wait for the whole device (`torch.cuda.synchronize`), which is counted by that name.
    """
    from deepspeed.runtime import utils
    from deepspeed.runtime.zero import stage_1_and_2

    sources = {str(module.__file__): module for module in (utils, stage_1_and_2)}
    found: Counter[str] = Counter()
    synchronise = torch.cuda.synchronize
    torch.cuda.synchronize = lambda *of: found.update(["synchronize"])
    try:
        with sync_debug("error"):
            (context,) = engine.module.contexts([batch])
            engine.backward(engine(batch, context)["loss"])
        with warnings.catch_warnings(record=True) as raised, sync_debug("warn"):
            warnings.simplefilter("always")
            engine.step()
    finally:
        torch.cuda.synchronize = synchronise
    for each in raised:
        if "synchronizing CUDA operation" in str(each.message):
            module = sources.get(each.filename)
            place = functions_of(module)[each.lineno] if module is not None else f"{each.filename}:{each.lineno}"
            found[place] += 1
    return found


def waits_by_case(world: World, stage: str) -> dict[tuple[str, int], dict[str, int]]:
    """Of a step of each precision, with and without filled-up batches, after one that set everything up."""
    found = {}
    for precision in halves():
        for bucket in (1, 256):
            engine = engine_of(stage, precision, dropout=0.1)
            first, second, third = batches_of(engine.module, 3, bucket)
            train_step(engine, first)
            train_step(engine, second)
            torch.cuda.synchronize()
            found[precision, bucket] = dict(waits_of(engine, third))
            assert engine.skipped_steps == 0
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_for_the_gpu_in_the_known_places_alone(stage: str) -> None:
    """Forward and backward nowhere, LAMB nowhere, DeepSpeed where `WAITS` says."""
    for (precision, bucket), found in on_ranks(1, waits_by_case, stage).items():
        known = WAITS[precision]
        assert all(found[place] <= known.get(place, 0) for place in found), (precision, bucket, found)


def losses_by_precision(world: World, stage: str) -> dict[str, list[float]]:
    """Of 12 steps over the same two batches, without dropout; `first`: of the first, by the model on the CPU."""
    on_cpu = objective_of(stage, dropout=0.0)
    with torch.no_grad():
        found = {"first": [float(on_cpu(batches_of(on_cpu, 1)[0])["loss"])]}
    for precision in ["fp32", *halves()]:
        engine = engine_of(stage, precision, dropout=0.0)
        batches = batches_of(engine.module, 2)
        taken = [train_step(engine, batch) for _ in range(6) for batch in batches]
        found[precision] = [float(loss) for loss in taken]
        assert engine.skipped_steps == 0, precision
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_every_precision_learns_the_same(stage: str) -> None:
    found = on_ranks(1, losses_by_precision, stage)
    assert found["fp32"][0] == pytest.approx(found["first"][0], rel=2e-3)  # TF32 in convolutions
    assert found["fp32"][-1] < 0.99 * found["fp32"][1]  # of the second batch
    for precision in found.keys() - {"first", "fp32"}:
        assert found[precision] == pytest.approx(found["fp32"], rel=0.02), precision


def digests(world: World, deterministic: bool) -> list[str]:
    """Of the weights after 6 steps with dropout, for every stage, half precision and two starts."""
    run, found = RunConfig("", deterministic=deterministic), []
    prepare_workspace(run)
    with repeatable(run, world.device):
        for stage in STAGES:
            for precision in halves():
                for _ in range(2):
                    engine = engine_of(stage, precision, dropout=0.1)
                    for batch in batches_of(engine.module, 6):
                        train_step(engine, batch)
                    weights = [p.detach().float().cpu().numpy().tobytes() for p in engine.module.parameters()]
                    found.append(hashlib.sha256(b"".join(weights)).hexdigest())
    return found


def test_deterministic_kernels_repeat_themselves() -> None:
    """Two starts in a process end with the same bits, and in another process with the same again."""
    here, again = (on_ranks(1, digests, True) for _ in range(2))
    assert here[::2] == here[1::2] and again == here
    assert len(set(here)) == len(here) // 2
