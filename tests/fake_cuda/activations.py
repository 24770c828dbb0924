"""Run on the fake device: what a micro-batch of the paper's size takes of it, beside what `mbsd plan` predicts.

    python -m tests.fake_cuda.run --capability 90 -- python -m tests.fake_cuda.activations bf16

Prints a JSON object: case → bytes `kept` after a forward and the `peak` until the end of the backward, each
`predicted` and `allocated`, and `requested` of the allocator, which gives whole blocks. No optimizer is there, and no
gradient stays: `mbsd plan` counts these by themselves.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import torch

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.tools.plan.plan import DTYPES, TYPICAL
from mbsd.tools.plan.shapes import Shapes

# Micro-batches of `ds_configs/v100x16_*.json`.
CASES = {
    "stage1": ("stage1", 128, []),
    "stage2": ("stage2", 64, []),
    "stage2, checkpointing": ("stage2", 64, ["--model.activation_checkpointing=true"]),
}


def measure(stage: str, micro_batch: int, words: list[str], precision: str) -> dict[str, dict[str, int]]:
    config, _ = parse(
        PretrainConfig, ["--config", f"launchers/configs/{stage}.yaml", *words], ds_default=DeepSpeedConfig({})
    )
    shapes = Shapes(config, DTYPES[precision], TYPICAL, torch.cuda.get_device_capability())
    trace = shapes.trace(micro_batch)
    batch = shapes.batch(micro_batch)
    batch = dataclasses.replace(batch, images=torch.zeros(batch.images.shape, dtype=torch.uint8)).to("cuda")
    objective = shapes.objective.to_empty(device="cuda").train()
    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    for _ in range(2):  # the first one makes cuBLAS's workspace, which stays
        before = held()
        torch.cuda.reset_peak_memory_stats()
        loss = objective(batch)["loss"]
        kept = {name: size - before[name] for name, size in held().items()}
        loss.backward()
        del loss
        peak = torch.cuda.max_memory_allocated() - before["allocated"]
    return {"kept": {"predicted": trace.saved, **kept}, "peak": {"predicted": trace.peak, "allocated": peak}}


def held() -> dict[str, int]:
    """Bytes that tensors have of the allocator, as they asked for them and as they were given."""
    stats = torch.cuda.memory_stats()
    return {name: stats[f"{name}_bytes.all.current"] for name in ("requested", "allocated")}


def main(precision: str) -> None:
    found: dict[str, Any] = {
        name: measure(stage, micro_batch, words, precision) for name, (stage, micro_batch, words) in CASES.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
