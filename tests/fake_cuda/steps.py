"""Run on the fake device: training steps of all stages and of fine-tuning, with marks between their parts.

    python -m tests.fake_cuda.run --capability 70 --log LOG -- python -m tests.fake_cuda.steps fp16

The settings of DeepSpeed are those that the project ships for such a GPU, with a small batch.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from mbsd.config.data import DataConfig
from mbsd.config.deepspeed import DeepSpeedConfig, read_deepspeed
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.model.heads import MbsdForClassification
from mbsd.model.mbsd import MbsdConfig
from mbsd.objectives.labels import class_loss
from mbsd.parallel.world import process_group
from mbsd.stages.labelled import LabelledObjective
from mbsd.stages.registry import STAGES
from mbsd.stages.stage import Objective
from mbsd.tools.bench.step_batches import draw, packed
from mbsd.training.engine import build_engine
from tests.fake_cuda.marks import mark

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
SHIPPED = {
    "fp16": {"masked": "v100x16_stage1", "matching": "v100x16_stage2", "contrastive": "v100x16_contrastive",
             "finetune": "v100x16_stage2"},
    "bf16": {"masked": "h100x8_stage1", "matching": "h100x8_stage2", "contrastive": "h100x8_contrastive",
             "finetune": "h100_finetune"},
}  # fmt: skip
KINDS = ("masked", "matching", "contrastive", "finetune")
BATCH, CLASSES, LAYERS = 8, 5, 2
WARM = 4  # steps before the one that is looked at: the first ones fill caches of torch and DeepSpeed


def ds_config(precision: str, kind: str) -> DeepSpeedConfig:
    """What is shipped, for one small micro-batch on one rank."""
    shipped = read_deepspeed(DS_CONFIGS / f"{SHIPPED[precision][kind]}.json")
    tree = {**shipped.tree, "train_batch_size": BATCH, "train_micro_batch_size_per_gpu": BATCH}
    if kind == "finetune":
        tree["optimizer"] = read_deepspeed(DS_CONFIGS / "h100_finetune.json").tree["optimizer"]
    return DeepSpeedConfig(tree)


def objective(kind: str, config: MbsdConfig) -> Objective:
    """Of a stage, or a task of `CLASSES` classes with a weight each."""
    if kind == "finetune":
        weights = torch.linspace(0.5, 1.5, CLASSES)
        return LabelledObjective(MbsdForClassification(config), class_loss, class_weights=weights)
    return STAGES[kind].outline(PretrainConfig(RunConfig("", max_steps=1), DataConfig(""), stage=kind), config)


def batches(kind: str, config: MbsdConfig, device: torch.device) -> list[Any]:
    """One for each step, of different lengths, on the device."""
    found = []
    for seed in range(WARM + 1):
        batch = packed(draw(config, BATCH, masked=kind == "masked", longest=False, seed=seed), config)
        if kind == "finetune":
            batch = dataclasses.replace(batch, labels_B=torch.arange(BATCH) % CLASSES)
        if kind == "contrastive":
            keys = torch.arange(BATCH)[:, None] // 2
            batch = dataclasses.replace(batch, keys_BK=keys, has_text=torch.ones(BATCH, dtype=torch.bool))
        found.append(batch.to(device))
    return found


def train(kind: str, precision: str, device: torch.device) -> None:
    """`WARM` steps, and one more between marks."""
    config = MbsdConfig(
        vocab_size=400, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=128,
        image_size=64, patchify_channels=(6, 8, 12), num_labels_out=CLASSES if kind == "finetune" else 1,
    )  # fmt: skip
    engine = build_engine(objective(kind, config), ds_config(precision, kind).resolved(1, 100))
    engine.train()
    given = batches(kind, config, device)
    for step, batch in enumerate(given):
        tell = mark if step == WARM else no_mark
        tell(f"{kind} before")
        (context,) = engine.module.contexts([batch])
        tell(f"{kind} contexts")
        losses = engine(batch, context)
        tell(f"{kind} forward")
        engine.backward(losses["loss"])
        tell(f"{kind} backward")
        engine.step()
        tell(f"{kind} step")
    assert engine.skipped_steps == 0, "an optimizer that does not step would show nothing"
    engine.eval()
    mark(f"{kind} end")
    with torch.no_grad():
        engine.module.model(given[0])
    mark(f"{kind} evaluation")
    if kind == "contrastive":
        two_passes(engine.module, given[-2:])
    engine.destroy()


def two_passes(objective: Objective, micro_batches: list[Any]) -> None:
    """The passes of a step of several micro-batches, between marks when they have run before."""
    objective.train()
    for tell in (no_mark, mark):
        tell("two passes before")
        contexts = objective.contexts(micro_batches)
        tell("two passes first")
        losses = [objective(batch, context) for batch, context in zip(micro_batches, contexts, strict=True)]
        tell("two passes second")
        del contexts, losses


def no_mark(text: str) -> None:
    """Of a step that is not looked at."""


def main(precision: str) -> None:
    with process_group() as world:
        for kind in KINDS:
            train(kind, precision, world.device)


if __name__ == "__main__":
    main(sys.argv[1])
