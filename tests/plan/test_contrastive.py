"""The plan of the contrastive stage: what a whole step of it holds at once, its passes, its gather and its loss."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mbsd.config.data import DataConfig
from mbsd.config.deepspeed import BatchSizes, DeepSpeedConfig
from mbsd.config.model import ModelConfig
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.config.stages import ContrastiveConfig
from mbsd.model.execution import prepare_execution
from mbsd.stages.registry import find_stage
from mbsd.tools.plan.gpus import find_gpu, make_cluster
from mbsd.tools.plan.memory import EngineMemory, whole_memory
from mbsd.tools.plan.plan import Plan, make_plan
from mbsd.tools.plan.report import as_json, print_plan
from mbsd.tools.plan.shapes import Lengths, Shapes
from mbsd.tools.plan.trace import Ledger
from tests.model.varlen_on_cpu import varlen_on_cpu
from tests.plan.test_memory import fused_dropout
from tests.ranks import call

V100 = find_gpu("v100-32g")
PER_RANK, CHUNK = 16, 24
# Micro-steps of the same batch of a rank, loss, architecture, activation checkpointing, numbers of a vector.
STEPS = [
    (1, "softmax", "mbsd", False, 64),
    (2, "softmax", "mbsd", False, 64),
    (4, "softmax", "mbsd", True, 64),
    (1, "sigmoid", "mbsd", True, 4096),  # vectors and similarities weigh more than the model
    (2, "sigmoid", "two_tower", False, 4096),
]


def small(loss: str, architecture: str, checkpointing: bool, dim: int) -> PretrainConfig:
    more: dict[str, Any] = {"patchify_channels": (32, 64, 64)} if architecture == "mbsd" else {}
    model = ModelConfig(
        architecture=architecture, vocab_size=2000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, activation_checkpointing=checkpointing, **more,
    )  # type: ignore[arg-type] # fmt: skip
    settings = ContrastiveConfig(loss=loss, dim=dim, chunk=CHUNK)  # type: ignore[arg-type]
    data = DataConfig("nowhere", image_size=64)
    return PretrainConfig(RunConfig("nowhere", max_steps=3), data, model, stage="contrastive", contrastive=settings)


def peaks(rank: int, world_size: int) -> list[tuple[int, int]]:
    """Bytes of each step of `STEPS` beside weights and batches: as planned, and alive at once on this rank."""
    nothing = EngineMemory(0, 0, 0, 0, 0)
    found = []
    for micro_steps, *more in STEPS:
        config = small(*more)
        sizes = BatchSizes(PER_RANK * world_size, PER_RANK // micro_steps, micro_steps)
        shapes = Shapes(config, torch.float32, Lengths(30, 8), V100.capability)
        trace = shapes.trace(sizes.micro_batch, micro_steps, world_size)
        memory = whole_memory(nothing, trace, config, sizes, dali=False)
        planned = memory.total - memory.pictures - memory.reserve
        with varlen_on_cpu("efficient"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "dropout", fused_dropout)
            found.append((planned, _alive(shapes, sizes)))
    return found


def _alive(shapes: Shapes, sizes: BatchSizes) -> int:
    """Of a step as the loop makes it; a gradient is freed once it is complete, as a plan has it."""
    objective = find_stage("contrastive").outline(shapes.config, shapes.model_config).train()
    prepare_execution(objective.model, shapes.config)
    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    batch = shapes.batch(sizes.micro_batch)
    images = [torch.zeros(batch.images.shape, dtype=torch.uint8) for _ in range(sizes.accumulation)]
    batches = [dataclasses.replace(batch, images=some) for some in images]
    with Ledger() as ledger:
        contexts = objective.contexts(batches)
        for some, context in zip(batches, contexts, strict=True):
            loss = objective(some, context)["loss"]
            torch.autograd.backward(loss)
            del loss
    return ledger.peak


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_planned_is_alive_at_once(world_size: int) -> None:
    for rank in call(peaks, world_size):
        for step, (planned, alive) in zip(STEPS, rank, strict=True):
            assert planned == pytest.approx(alive, rel=0.02), step


@functools.cache
def plan_of(global_batch: int, micro_batch: int, *words: str, gpus: int = 16) -> Plan:
    """Two layers, which are traced sooner."""
    path = "ds_configs/v100x16_contrastive.json"
    words = ("--config", "launchers/configs/contrastive.yaml", "--deepspeed_config", path, *words)
    config, given = parse(PretrainConfig, [*words, "--model.num_hidden_layers=2"])
    sizes = {"train_batch_size": global_batch, "train_micro_batch_size_per_gpu": micro_batch}
    return make_plan(config, DeepSpeedConfig({**given.tree, **sizes}), make_cluster(V100, gpus), samples=100_000)


def test_a_second_pass_costs_a_forward() -> None:
    once, twice = plan_of(8192, 512), plan_of(8192, 128)
    assert once.speed.encoding == 0 and once.sizes.accumulation == 1
    assert twice.sizes.accumulation == 4
    assert 0.25 * twice.speed.compute < twice.speed.encoding < 0.42 * twice.speed.compute
    assert twice.speed.loss == pytest.approx(once.speed.loss, rel=0.01) and once.speed.loss > 0
    assert twice.speed.exchange_bytes == once.speed.exchange_bytes
    assert twice.memory.loss_beside == 0 and once.memory.loss_beside == once.memory.activations
    advice = [line for line in twice.advice if "model.activation_checkpointing=true with" in line]
    assert len(advice) == 1 and "train_micro_batch_size_per_gpu=512 takes" in advice[0]
    lean = plan_of(8192, 512, "--model.activation_checkpointing=true")
    assert f"{lean.memory.total / 2**30:.1f} GiB" in advice[0] and not any(
        "in one pass" in line for line in lean.advice
    )


def test_the_gather_is_of_vectors_keys_and_statistics() -> None:
    """Of each row two vectors and four statistics in two directions in float32, three keys and two flags of 8 bytes."""
    row = 2 * 512 * 4 + 2 * 4 * 4 + 5 * 8
    assert plan_of(8192, 512).speed.exchange_bytes == 15 / 16 * 8192 * row
    assert plan_of(512, 512, gpus=1).speed.exchange_bytes == 0
    narrow = plan_of(8192, 512, "--contrastive.dim=64", "--contrastive.same=[title]")
    assert narrow.speed.exchange_bytes == 15 / 16 * 8192 * (2 * 64 * 4 + 2 * 4 * 4 + 3 * 8)


def test_chunks_bound_the_memory_of_the_loss() -> None:
    """A quarter of the chunk's rows against four times as many candidates as `WIDE`; memory in proportion."""
    kept = [plan_of(16384, 1024, f"--contrastive.chunk={chunk}").memory.loss for chunk in (1024, 1536, 2048)]
    assert kept[2] - kept[1] == pytest.approx(kept[1] - kept[0], rel=0.2)
    assert 1 < (kept[1] - kept[0]) / (4 * 128 * 16384) < 12


def test_smaller_batches_at_the_beginning_are_more_steps() -> None:
    epochs = ("--run.epochs=2", "--run.max_steps=null")
    plain = plan_of(8192, 256, *epochs)
    grown = plan_of(8192, 256, *epochs, "--contrastive.batch_schedule=[[0,4096],[0.5,8192]]")
    assert plain.steps == -(-200_000 // 8192) == 25 and grown.steps == 25 + 12
    assert grown.speed == plain.speed and any("of the last batch, 8192" in line for line in grown.advice)


def test_it_is_printed_in_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(8192, 256)
    print_plan(plan, "a plan")
    printed = capsys.readouterr().out
    for part in ("vectors", "loss of the global batch", "between the two", "first pass", "gather vectors", "pairs/s"):
        assert part in printed, printed
    values = as_json(plan)
    speed, memory = values["speed"], values["memory"]
    assert values["unit"] == "pairs" and speed["step"] > speed["compute"] + speed["encoding"] + speed["loss"]
    held = sum(memory["engine"][name] for name in ("weights", "gradients", "optimizer"))
    held += sum(memory[name] for name in ("pictures", "reserve", "vectors"))
    backward = memory["activations"] + memory["working"] + memory["engine"]["reducing"]
    assert memory["total"] == held + max(backward, memory["engine"]["step"], memory["loss"] + memory["loss_beside"])
