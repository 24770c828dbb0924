"""Run on the fake device: steps of a model with `model.compile`, whose kernels Triton then makes for that device.

    python -m tests.fake_cuda.run --capability 90 --log LOG -- python -m tests.fake_cuda.compiled bf16

Forward and backward of micro-batches of other lengths, each between two marks. One layer: all layers share its kernels.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch._inductor import config as inductor

from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.model.execution import prepare_execution
from mbsd.model.mbsd import MbsdConfig
from mbsd.stages.registry import STAGES
from mbsd.tools.bench.step_batches import draw, packed
from tests.fake_cuda.marks import mark

STEPS, BATCH = 3, 4
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def main(precision: str) -> None:
    inductor.compile_threads = 1  # in this process, which the device is in
    config = PretrainConfig(RunConfig("", max_steps=1), DataConfig(""), ModelConfig(compile=True), stage="matching")
    sizes = MbsdConfig(
        vocab_size=400, hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256,
        image_size=64, patchify_channels=(6, 8, 12),
    )  # fmt: skip
    objective: Any = STAGES["matching"].outline(config, sizes).to("cuda", DTYPES[precision]).train()
    prepare_execution(objective.model, config)
    for step in range(STEPS):
        batch = packed(draw(sizes, BATCH, masked=False, longest=False, seed=step), sizes).to("cuda")
        mark(f"before step {step}")
        objective(batch)["loss"].backward()
        mark(f"step {step}")
        objective.zero_grad()


if __name__ == "__main__":
    main(sys.argv[1])
