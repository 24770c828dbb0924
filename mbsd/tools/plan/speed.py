"""Step time and communication: a roofline over the kernels of a traced micro-batch.

Each kernel takes what its matrix products or its bytes take, whichever is longer, at a share of the data sheet's peak;
a micro-step takes no less than the host needs to launch its kernels. The shares are assumptions of this project, usual
for eager PyTorch; no GPU has been measured with them yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mbsd.tools.plan.gpus import Gpu
from mbsd.tools.plan.memory import FLOAT
from mbsd.tools.plan.trace import Kernel

MATMUL_SHARE, BANDWIDTH_SHARE, LINK_SHARE = 0.65, 0.8, 0.8
LAUNCH = 8e-6  # seconds of the host for one kernel of eager PyTorch
OPTIMIZER_WORDS = 10  # floats that LAMB moves a parameter, see mbsd.optim.fused
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Speed:
    """Seconds of one optimizer step.

    Attributes:
        compute: forward and backward of all micro-steps.
        optimizer: LAMB over this rank's slice.
        reduce: of gradients, over all micro-steps; behind the backward as far as it fits where overlap_comm is on.
        gather: of the new weights.
        exposed: of `reduce`, what the step waits for.
        reduce_bytes, gather_bytes: that each GPU sends.
    """

    compute: float
    optimizer: float
    reduce: float
    gather: float
    exposed: float
    reduce_bytes: float
    gather_bytes: float

    @property
    def step(self) -> float:
        """All of it, data not counted: the loader is taken to keep up."""
        return self.compute + self.optimizer + self.exposed + self.gather


def compute_seconds(kernels: Sequence[Kernel], gpu: Gpu, *, half: bool) -> float:
    """Of the forward and backward of one micro-batch."""
    flops = (gpu.half_flops if half else gpu.single_flops) * MATMUL_SHARE
    bandwidth = gpu.bandwidth * BANDWIDTH_SHARE
    device = sum(max(kernel.flops / flops, kernel.bytes / bandwidth) for kernel in kernels)
    return max(device, LAUNCH * len(kernels))


def speed(
    kernels: Sequence[Kernel],
    gpu: Gpu,
    *,
    half: bool,
    trained: int,
    world_size: int,
    nodes: int,
    accumulation: int,
    stage: int,
    overlap: bool,
    network: float,
) -> Speed:
    """Of one step on `world_size` GPUs.

    Gradients are all-reduced (DeepSpeed's multi-rank buckets): each GPU sends 2 (n - 1) / n of them, under ZeRO-2 after
    every micro-step, else once a step; under ZeRO the new weights are gathered, (n - 1) / n of them. A ring's slowest
    link counts: between nodes the node's network, which all its GPUs' rings share as one, else NVLink.

    Args:
        kernels: of one micro-batch.
        trained: parameters that are trained.
        network: of a node, bytes/s in one direction.
    """
    width = 2 if half else FLOAT
    ring = (world_size - 1) / world_size * trained * width
    reduce_bytes = 2 * ring * (accumulation if stage == 2 else 1)
    gather_bytes = ring if stage else 0.0
    link = (min(network, gpu.nvlink) if nodes > 1 else gpu.nvlink) * LINK_SHARE
    compute = accumulation * compute_seconds(kernels, gpu, half=half)
    slice_size = trained / world_size if stage else trained
    reduce = reduce_bytes / link
    # The backward is two thirds of the compute; gradients of its first layers come when it is nearly done.
    hidden = min(reduce, compute * 2 / 3) if overlap else 0.0
    return Speed(
        compute=compute,
        optimizer=OPTIMIZER_WORDS * FLOAT * slice_size / (gpu.bandwidth * BANDWIDTH_SHARE),
        reduce=reduce,
        gather=gather_bytes / link,
        exposed=reduce - hidden,
        reduce_bytes=reduce_bytes,
        gather_bytes=gather_bytes,
    )


def nodes_for(gpus: int) -> int:
    """Nodes of eight GPUs that hold so many."""
    return math.ceil(gpus / GPUS_PER_NODE)
