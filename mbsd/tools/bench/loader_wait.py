"""How long the steps of a real training run wait for data; `mbsd bench loader` runs this in its own process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mbsd.config.data import DataConfig
from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.training.pretrain import pretrain

LOGS = 4  # the first covers the start of the run and is left out
STEPS = 10  # between two logs
SMALL = ModelConfig(
    vocab_size=4000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
    patchify_channels=(32, 64, 128),
)  # fmt: skip


def measure_data_wait(catalog: Path, image_size: int, batch: int, num_workers: int) -> dict[str, Any]:
    """Train stage 1 for a few steps, as `launchers/pretrain.py` does, and read its metrics.

    The model is BERT-base in bf16 on a GPU, in fp16 on one without it, otherwise one of 256 dimensions and four layers.

    Args:
        batch: samples of the global batch.
        num_workers: loader processes.

    Returns:
        `data_wait`, the share of time that steps wait for data, `samples_per_s`, and `model`.

    Raises:
        RuntimeError: the training run failed.
    """
    words = [sys.executable, "-m", __name__, json.dumps([str(catalog), image_size, batch, num_workers])]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"the training run failed\n{done.stderr}")
    numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def _train(catalog: str, image_size: int, batch: int, num_workers: int) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    half = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    with tempfile.TemporaryDirectory(prefix="mbsd-bench-") as folder:
        config = PretrainConfig(
            run=RunConfig(
                folder, max_steps=LOGS * STEPS, log_every=STEPS, validate_every=0, validate_samples=batch,
                save_every=10**9,
            ),
            data=DataConfig(catalog, image_size=image_size, num_workers=num_workers),
            model=ModelConfig(vocab_size=4000) if on_gpu else SMALL,
        )  # fmt: skip
        pretrain(
            config,
            DeepSpeedConfig(
                {
                    "train_batch_size": batch,
                    "zero_optimization": {"stage": 2},
                    half: {"enabled": on_gpu},
                    "optimizer": {"type": "Lamb", "params": {"lr": 1e-3}},
                }
            ),
        )
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [line for line in lines if "data_wait" in line][1:]
    return {
        "data_wait": statistics.median(line["data_wait"] for line in logged),
        "samples_per_s": statistics.median(line["samples_per_s"] for line in logged),
        "model": f"BERT-base, {half}" if on_gpu else "4 layers of 256",
    }


if __name__ == "__main__":
    print(json.dumps(_train(*json.loads(sys.argv[1]))))
