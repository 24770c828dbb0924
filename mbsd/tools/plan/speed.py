"""Step time and communication: a roofline over the kernels of a traced micro-batch.

A kernel takes as long as its matrix products or its memory traffic, whichever is longer, at a fixed share of the data
sheet's peak; a micro-step takes at least as long as the host needs to launch its kernels. The shares are assumed, or
were measured on a GPU (`mbsd.tools.plan.measured`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mbsd.tools.plan.gpus import Cluster, Gpu
from mbsd.tools.plan.measured import Shares
from mbsd.tools.plan.memory import FLOAT
from mbsd.tools.plan.trace import Kernel, Once

OPTIMIZER_WORDS = 10  # float32 words that LAMB reads and writes for each parameter, see mbsd.optim.fused


@dataclass(frozen=True)
class Speed:
    """Seconds of one optimizer step.

    Attributes:
        compute: forward and backward of all micro-steps.
        optimizer: LAMB on this rank's slice.
        reduce: all-reduce of gradients over all micro-steps; with overlap_comm most of it runs behind the backward.
        gather: all-gather of the new weights.
        exposed: the part of `reduce` that the step waits for.
        reduce_bytes, gather_bytes: that each GPU sends.
        encoding: the forward that each micro-batch has before, where the loss is of the whole global batch.
        loss: that loss and its gradient, once.
        exchange: all-gather of what it reads, which nothing hides.
        exchange_bytes: that each GPU sends for it.
    """

    compute: float
    optimizer: float
    reduce: float
    gather: float
    exposed: float
    reduce_bytes: float
    gather_bytes: float
    encoding: float = 0.0
    loss: float = 0.0
    exchange: float = 0.0
    exchange_bytes: float = 0.0

    @property
    def step(self) -> float:
        """The whole step, in seconds, without waiting for data: the loader is assumed to keep up."""
        whole_batch = self.encoding + self.loss + self.exchange
        return self.compute + whole_batch + self.optimizer + self.exposed + self.gather


@dataclass(frozen=True)
class StepWork:
    """What decides the time of an optimizer step beside kernels and GPUs.

    Attributes:
        half: whether weights and gradients are fp16 or bf16.
        trained: number of trained parameters.
        accumulation: micro-steps of a step.
        zero_stage: DeepSpeed's ZeRO stage, 0 to 2.
        overlap: DeepSpeed's overlap_comm.
    """

    half: bool
    trained: int
    accumulation: int
    zero_stage: int
    overlap: bool


def compute_seconds(kernels: Sequence[Kernel], gpu: Gpu, shares: Shares, *, half: bool) -> float:
    """Seconds of one micro-batch's forward and backward; `half`: on the tensor cores, in fp16 or bf16."""
    flops = (gpu.half_flops if half else gpu.single_flops) * shares.matmul
    bandwidth = gpu.bandwidth * shares.bandwidth
    device = sum(max(kernel.flops / flops, kernel.bytes / bandwidth) for kernel in kernels)
    return max(device, shares.launch * len(kernels))


def speed(
    kernels: Sequence[Kernel], cluster: Cluster, work: StepWork, shares: Shares, once: Once | None = None
) -> Speed:
    """Seconds of one optimizer step on all GPUs of the cluster.

    Gradients are all-reduced (DeepSpeed's multi-rank buckets): each GPU sends 2 (n - 1) / n of their bytes, under
    ZeRO-2 after every micro-step, otherwise once a step. Under ZeRO the new weights are gathered: (n - 1) / n of their
    bytes. The slowest link of the ring decides: between nodes it is the node's network, which the rings of all its GPUs
    share, otherwise NVLink.

    Args:
        kernels: forward and backward of one micro-batch.
        once: what is done once for the whole global batch: in float32, whatever the precision of the run is.
    """
    gpu, world_size = cluster.gpu, cluster.gpus
    width = 2 if work.half else FLOAT
    ring = (world_size - 1) / world_size * work.trained * width
    reduce_bytes = 2 * ring * (work.accumulation if work.zero_stage == 2 else 1)
    gather_bytes = ring if work.zero_stage else 0.0
    link = (min(cluster.network, gpu.nvlink) if cluster.nodes > 1 else gpu.nvlink) * shares.link
    compute = work.accumulation * compute_seconds(kernels, gpu, shares, half=work.half)
    slice_size = work.trained / world_size if work.zero_stage else work.trained
    reduce = reduce_bytes / link
    # The backward is two thirds of the compute; the gradients of the first layers are ready only near its end.
    hidden = min(reduce, compute * 2 / 3) if work.overlap else 0.0
    once = once if once is not None else Once(0, 0, [], [], 0)
    exchange_bytes = (world_size - 1) / world_size * once.exchanged
    return Speed(
        compute=compute,
        optimizer=OPTIMIZER_WORDS * FLOAT * slice_size / (gpu.bandwidth * shares.lamb_bandwidth),
        reduce=reduce,
        gather=gather_bytes / link,
        exposed=reduce - hidden,
        reduce_bytes=reduce_bytes,
        gather_bytes=gather_bytes,
        encoding=work.accumulation * compute_seconds(once.encoding, gpu, shares, half=work.half),
        loss=compute_seconds(once.kernels, gpu, shares, half=False),
        exchange=exchange_bytes / link,
        exchange_bytes=exchange_bytes,
    )
