"""What a GPU is and how fast its kernels are: `python -m mbsd.tools.gpu_check.device` prints it as JSON.

Run in a process of its own: the parent stays without a context on the GPU, so that what it starts has the card alone.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.stages.registry import find_stage
from mbsd.tools.plan.gpus import GPUS
from mbsd.tools.plan.shapes import Lengths, Shapes

WIDTH, INNER = 768, 3072  # BERT-base
TOKENS = 128 * 82  # of a micro-batch of stage 1: 128 samples with a title of 32 words and 49 patches
REPEATS = 20
NARROW = ModelConfig(vocab_size=1000, hidden_size=64, num_attention_heads=4, intermediate_size=256)


def measure_device() -> dict[str, Any]:
    """`gpu` (name, capability, memory in bytes), `torch`, `cuda`, `architectures`, and the shares that a plan uses.

    A share is None where the data sheet of the GPU is not known; all are None where the device does not compute.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    found: dict[str, Any] = {
        "gpu": {
            "name": properties.name,
            "capability": [properties.major, properties.minor],
            "memory": properties.total_memory,
        },
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "architectures": torch.cuda.get_arch_list(),
        "half": str(half).removeprefix("torch."),
        "computes": _computes(device),
        **dict.fromkeys(("matmul_share", "bandwidth_share", "launch_seconds")),
    }
    if found["computes"]:
        kind = kind_of(properties.name)
        if kind is not None:
            found["matmul_share"] = _layer_flops(device, half) / GPUS[kind].half_flops
            found["bandwidth_share"] = _bandwidth(device) / GPUS[kind].bandwidth
        found["launch_seconds"] = _launch_seconds(device, half)
    return found


def kind_of(name: str) -> str | None:
    """The GPU of `mbsd plan` that the driver gives this name; None: no data sheet of it is known."""
    return next((key for key, gpu in GPUS.items() if name in gpu.device_names), None)


def _computes(device: torch.device) -> bool:
    """Whether products come out right."""
    a = torch.arange(16.0, device=device).reshape(4, 4)
    expected = torch.arange(16.0).reshape(4, 4) @ torch.arange(16.0).reshape(4, 4)
    return bool(torch.equal((a @ a).cpu(), expected))


def _seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of five turns of `repeats` calls each, after a warm-up; of one call."""
    for _ in range(3):
        work()
    turns = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
        turns.append((time.perf_counter() - began) / repeats)
    return statistics.median(turns)


def _layer_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the matrix products of one BERT-base layer over the tokens of a micro-batch."""
    x = torch.randn(TOKENS, WIDTH, device=device, dtype=dtype)
    square, wide = (torch.randn(WIDTH, n, device=device, dtype=dtype) for n in (WIDTH, INNER))
    narrow, inner = (torch.randn(n, m, device=device, dtype=dtype) for n, m in ((INNER, WIDTH), (TOKENS, INNER)))

    def layer() -> None:
        for _ in range(4):  # query, key, value, output
            torch.mm(x, square)
        torch.mm(x, wide)
        torch.mm(inner, narrow)

    return 2 * TOKENS * WIDTH * (4 * WIDTH + 2 * INNER) / _seconds(layer)


def _bandwidth(device: torch.device) -> float:
    """Bytes/s that an element-wise kernel reads and writes, over arrays that no cache holds."""
    a, b = (torch.ones(1 << 28, device=device, dtype=torch.float16) for _ in range(2))
    return 3 * a.nbytes / _seconds(lambda: torch.add(a, b, out=b))


def _launch_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that the host needs for a kernel: those of forward and backward of a model so narrow that the GPU always
    waits for the host, over its kernels as a plan counts them.
    """
    settings = PretrainConfig(RunConfig("", max_steps=1), DataConfig("", image_size=64), NARROW)
    shapes = Shapes(settings, dtype, Lengths(30, 8), torch.cuda.get_device_capability(device))
    objective: Any = find_stage(settings.stage).outline(settings, shapes.model_config)
    objective.to(device, dtype).train()
    batch = shapes.batch(4)
    images: Tensor = torch.zeros(batch.images.shape, dtype=torch.uint8)
    batch = dataclasses.replace(batch, images=images).to(device)

    def step() -> None:
        torch.autograd.backward(objective(batch)["loss"])

    return _seconds(step) / len(shapes.trace(4).kernels)


if __name__ == "__main__":
    print(json.dumps(measure_device()))
