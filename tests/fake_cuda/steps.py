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

from mbsd.batch import Batch
from mbsd.config.data import DataConfig
from mbsd.config.deepspeed import DeepSpeedConfig, read_deepspeed
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.data.views import TextTokens, pack
from mbsd.model.heads import MbsdForClassification
from mbsd.model.mbsd import MbsdConfig
from mbsd.objectives.labels import class_loss
from mbsd.parallel.world import process_group
from mbsd.stages.labelled import LabelledObjective
from mbsd.stages.negatives import SHOWN
from mbsd.stages.registry import STAGES
from mbsd.stages.stage import Objective
from mbsd.tools.bench.step_batches import Drawn, draw, packed
from mbsd.training.engine import build_engine
from tests.fake_cuda.marks import mark

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
SHIPPED = {
    "fp16": {"masked": "v100x16_stage1", "matching": "v100x16_stage2", "finetune": "v100x16_stage2",
             "contrastive": "v100x16_contrastive", "two_pass": "v100x16_contrastive", "vilt": "v100x16_stage1",
             "hard": "v100x16_stage1"},
    "bf16": {"masked": "h100x8_stage1", "matching": "h100x8_stage2", "finetune": "h100_finetune",
             "contrastive": "h100x8_contrastive", "two_pass": "h100x8_contrastive", "vilt": "h100x8_stage1",
             "hard": "h100x8_stage1"},
}  # fmt: skip
CONTRASTIVE = ("contrastive", "two_pass")  # with one micro-batch, and with two
PAIRED = ("vilt", "hard")  # of stage vilt: mismatched pictures, or hard negatives
KINDS = ("masked", "matching", "finetune", *CONTRASTIVE, *PAIRED)
BATCH, CLASSES, LAYERS = 8, 5, 2
WARM = 4  # steps before the one that is looked at: the first ones fill caches of torch and DeepSpeed


def ds_config(precision: str, kind: str) -> DeepSpeedConfig:
    """What is shipped, for a small micro-batch, or two, on one rank."""
    shipped = read_deepspeed(DS_CONFIGS / f"{SHIPPED[precision][kind]}.json")
    whole = BATCH * micro_steps(kind)
    tree = {**shipped.tree, "train_batch_size": whole, "train_micro_batch_size_per_gpu": BATCH}
    if kind == "finetune":
        tree["optimizer"] = read_deepspeed(DS_CONFIGS / "h100_finetune.json").tree["optimizer"]
    return DeepSpeedConfig(tree)


def micro_steps(kind: str) -> int:
    """Of a step."""
    return 2 if kind == "two_pass" else 1


def objective(kind: str, config: MbsdConfig) -> Objective:
    """Of a stage, or a task of `CLASSES` classes with a weight each."""
    if kind == "finetune":
        weights = torch.linspace(0.5, 1.5, CLASSES)
        return LabelledObjective(MbsdForClassification(config), class_loss, class_weights=weights)
    stage = "contrastive" if kind in CONTRASTIVE else "vilt" if kind in PAIRED else kind
    return STAGES[stage].outline(PretrainConfig(RunConfig("", max_steps=1), DataConfig(""), stage=stage), config)


def batches(kind: str, config: MbsdConfig, device: torch.device) -> list[Any]:
    """One for each micro-step, of different lengths, on the device."""
    found = []
    for seed in range((WARM + 1) * micro_steps(kind)):
        drawn = draw(config, BATCH, masked=kind in ("masked", *PAIRED), longest=False, seed=seed)
        batch = items(drawn, config) if kind in CONTRASTIVE else packed(drawn, config)
        if kind in PAIRED:
            batch = paired(kind, drawn, batch, config)
        if kind == "finetune":
            batch = dataclasses.replace(batch, labels_B=torch.arange(BATCH) % CLASSES)
        found.append(batch.to(device))
    return found


def items(drawn: Drawn, config: MbsdConfig) -> Batch:
    """Titles and pictures, some of one product, as the contrastive stage reads them."""
    texts = [TextTokens(text.input_ids, text.token_type_ids * 0, 0) for text in drawn.texts]
    ids_N, positions_N, types_N, views = pack(texts, [True] * BATCH, ("text", "image"), config.num_patches)
    keys_BK, has_text = torch.arange(BATCH)[:, None] // 2, torch.ones(BATCH, dtype=torch.bool)
    numbers = torch.arange(BATCH)
    return Batch(ids_N, positions_N, types_N, drawn.images, views, numbers, keys_BK=keys_BK, has_text=has_text)


def paired(kind: str, drawn: Drawn, masked: Batch, config: MbsdConfig) -> Batch:
    """Masked words alone, and labels; or, for hard negatives, all views and keys."""
    assert masked.masks is not None
    none = masked.masks.mpm_index_Q[:0]
    masks = dataclasses.replace(masked.masks, patch_source=None, mpm_index_Q=none, mpm_patch_Q=none)
    numbers = torch.arange(BATCH)
    if kind == "vilt":
        return dataclasses.replace(masked, masks=masks, labels_B=(numbers % 3 - 1).float())
    ids_N, positions_N, types_N, views = pack(drawn.texts, [True] * BATCH, SHOWN, config.num_patches)
    has_text = torch.ones(BATCH, dtype=torch.bool)
    return Batch(
        ids_N, positions_N, types_N, masked.images, views, numbers, None, masks, numbers[:, None] // 2, has_text
    )  # fmt: skip


def train(kind: str, precision: str, device: torch.device) -> None:
    """`WARM` steps, and one more between marks."""
    config = MbsdConfig(
        vocab_size=400, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=128,
        image_size=64, patchify_channels=(6, 8, 12), num_labels_out=CLASSES if kind == "finetune" else 1,
    )  # fmt: skip
    engine = build_engine(objective(kind, config), ds_config(precision, kind).resolved(1, 100))
    engine.train()
    given = batches(kind, config, device)
    for step in range(WARM + 1):
        tell = mark if step == WARM else no_mark
        parts = given[step * micro_steps(kind) : (step + 1) * micro_steps(kind)]
        tell(f"{kind} before")
        contexts = engine.module.contexts(parts)
        tell(f"{kind} contexts")
        for batch, context in zip(parts, contexts, strict=True):
            name = kind if batch is parts[-1] else f"{kind}, earlier"
            losses = engine(batch, context)
            tell(f"{name} forward")
            engine.backward(losses["loss"])
            tell(f"{name} backward")
            engine.step()
            tell(f"{name} step")
    assert engine.skipped_steps == 0, "an optimizer that does not step would show nothing"
    engine.eval()
    mark(f"{kind} end")
    with torch.no_grad():
        engine.module.model(given[0])
    mark(f"{kind} evaluation")
    engine.destroy()


def no_mark(text: str) -> None:
    """Of a step that is not looked at."""


def main(precision: str) -> None:
    with process_group() as world:
        for kind in KINDS:
            train(kind, precision, world.device)


if __name__ == "__main__":
    main(sys.argv[1])
