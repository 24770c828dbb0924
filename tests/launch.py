"""Run the launchers as users do: through DeepSpeed's launcher, or rank by rank where each rank's exit code matters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CPU = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
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


def write_ds_config(folder: Path, **changes: Any) -> Path:
    """DeepSpeed's JSON of the tests with top-level `changes`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ds.json"
    path.write_text(json.dumps({**DS_CONFIG, **changes}))
    return path


def deepspeed_command(ranks: int, launcher: str, *arguments: object) -> list[str]:
    """The command a user types."""
    program = str(Path(sys.executable).with_name("deepspeed"))
    words = ["--num_accelerators", ranks, "--no_local_rank", "--master_port", free_port(), f"launchers/{launcher}.py"]
    return [program, *map(str, words), *map(str, arguments)]


def deepspeed(ranks: int, launcher: str, *arguments: object) -> None:
    """Run to the end and expect success."""
    done = subprocess.run(
        deepspeed_command(ranks, launcher, *arguments), cwd=ROOT, env={**os.environ, **CPU}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def run_ranks(ranks: int, launcher: str, *arguments: object) -> list[tuple[int | None, str]]:
    """Start each rank by itself; returns (exit code, stderr) of each."""
    from tests.checkpoint.forked import Start  # which imports this module

    with tempfile.TemporaryDirectory() as folder:
        start = Start(ranks, arguments, Path(folder), launcher=launcher)
        return [(code, log.read_text()) for code, log in zip(start.wait(patience=30), start.logs, strict=True)]


def losses(run: Path, prefix: str = "") -> dict[int, dict[str, float]]:
    """Step -> the losses that a run logged at it (with prefix "validation/": those of its validations)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {name: value for name, value in line.items() if name.startswith(f"{prefix}loss")}
        for line in lines
        if f"{prefix}loss" in line
    }


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
