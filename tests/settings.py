"""The small runs of the tests: their sizes, their command lines, DeepSpeed's JSON, and the losses that they logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY = [
    "--data.image_size=32",
    "--data.num_workers=1",
    "--model.hidden_size=32",
    "--model.num_hidden_layers=2",
    "--model.num_attention_heads=2",
    "--model.intermediate_size=64",
    "--model.patchify_strides=[4,2]",
    "--model.patchify_channels=[16]",
    "--model.vocab_size=600",
    "--model.dropout=0.0",
]
DS_CONFIG = {
    "train_batch_size": 16,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
    "optimizer": {"type": "Lamb", "params": {"lr": 0.004, "betas": [0.9, 0.98], "weight_decay": 0.01}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"total_num_steps": "auto", "warmup_num_steps": "auto", "warmup_max_lr": "auto",
                   "warmup_type": "linear"},
    },
}  # fmt: skip
# An optimizer that learns a small table by heart in a few steps.
ADAM = {"type": "AdamW", "params": {"lr": 0.003, "betas": [0.9, 0.98], "weight_decay": 0.01, "torch_adam": True}}


def write_ds_config(folder: Path, **changes: Any) -> Path:
    """DeepSpeed's JSON of the tests with top-level `changes`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ds.json"
    path.write_text(json.dumps({**DS_CONFIG, **changes}))
    return path


def run_words(run: Path, catalog: Path, steps: int, *more: object, **ds: Any) -> list[object]:
    """A run's command line without its model. `ds` changes DeepSpeed's JSON, which lies beside the run folder."""
    return [
        "--deepspeed_config", write_ds_config(run.parent / f"{run.name}_ds", **ds), "--run.dir", run,
        "--data.catalog", catalog, f"--run.max_steps={steps}", *more,
    ]  # fmt: skip


def stage_1_words(run: Path, catalog: Path, steps: int, *more: object, **ds: Any) -> list[object]:
    """Of pretrain.py: masked words and patches, a model of `TINY` sizes."""
    return run_words(run, catalog, steps, *TINY, *more, **ds)


def stage_2_words(run: Path, catalog: Path, pairs: Path, steps: int, *more: object, **ds: Any) -> list[object]:
    """Of pretrain.py: matching; its model is named by `more`, as `--run.init_from` or `TINY`."""
    return run_words(run, catalog, steps, "--stage=matching", "--data.table", pairs, *more, **ds)


def scoring_words(model: Path, out: Path, catalog: Path, table: Path, *more: object) -> list[object]:
    """Of evaluate.py."""
    return [
        "--model", model, "--out", out, "--data.catalog", catalog, "--data.table", table, "--data.image_size=32",
        "--data.num_workers=0", *more,
    ]  # fmt: skip


def losses(run: Path, prefix: str = "") -> dict[int, dict[str, float]]:
    """Step -> the losses that a run logged at it (with prefix "validation/": those of its validations)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {name: value for name, value in line.items() if name.startswith(f"{prefix}loss")}
        for line in lines
        if f"{prefix}loss" in line
    }
