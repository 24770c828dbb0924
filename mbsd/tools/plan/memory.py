"""Bytes on one GPU, by part, of a training run whose engine `mbsd.training.engine` makes with DeepSpeed 0.19.8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mbsd.config.data import DataConfig
from mbsd.config.deepspeed import BatchSizes, precision
from mbsd.config.run import BaseConfig
from mbsd.optim.groups import PartRates, parameter_groups
from mbsd.tools.plan.trace import Once, Trace

FLOAT = 4
MOMENTS = 2 * FLOAT  # bytes of Adam's and LAMB's moments for each parameter
STORED_SIDE = 320  # pixels of a catalogue's pictures, `mbsd catalog build --max-side`
# Assumed, not measured: CUDA's context with the buffers of cuBLAS and NCCL, and the allocator's share of gaps.
CONTEXT, GAPS = 1.5 * (1 << 30), 0.05


@dataclass(frozen=True)
class EngineMemory:
    """Bytes that the engine holds on the rank that holds most.

    Attributes:
        weights: the whole model in the run's precision.
        optimizer: this rank's float32 masters and moments, and their average (run.ema).
        gradients: kept from the last backward to the step.
        reducing: held during a backward in addition: the buffers in which gradients are reduced, and the gradients not
            yet added to those kept (ZeRO-2 with accumulation: a second copy; ZeRO-1: other ranks' shares).
        step: added by the optimizer's step: gradients flattened and in float32.
    """

    weights: int
    optimizer: int
    gradients: int
    reducing: int
    step: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU: the engine, and what a micro-batch needs.

    Attributes:
        activations: saved for the backward of a micro-batch.
        working: largest sum of temporaries beside activations and engine.
        pictures: decoded pixels of a step's micro-batches, and DALI's own buffers.
        reserve: CUDA's context, NCCL and the allocator's gaps; an assumption.
        vectors: of the global batch, and their gradients, kept over the micro-steps (contrastive stage).
        loss: what is added to them while the loss of the global batch is computed.
        loss_beside: of the activations that are there at that moment: with one micro-step all of them.
    """

    engine: EngineMemory
    activations: int
    working: int
    pictures: int
    reserve: int
    vectors: int = 0
    loss: int = 0
    loss_beside: int = 0

    @property
    def total(self) -> int:
        """The peak: in the backward, in the optimizer's step or at the loss of the global batch."""
        engine = self.engine
        held = engine.weights + engine.optimizer + engine.gradients + self.pictures + self.reserve + self.vectors
        return held + max(self.activations + self.working + engine.reducing, engine.step, self.loss_beside + self.loss)


def engine_memory(
    step: nn.Module,
    resolved: dict[str, Any],
    world_size: int,
    rates: PartRates | None = None,
    *,
    averaged: bool = False,
) -> EngineMemory:
    """Predict the memory of the engine on the rank that holds most.

    Args:
        step: the stage's objective, which DeepSpeed wraps; on any device, the meta device too.
        resolved: DeepSpeed's JSON without "auto".
        rates: of parts that are not trained at the run's own rate (`optim`).
        averaged: a moving average of the weights is kept (run.ema).
    """
    weight_decay = resolved["optimizer"]["params"].get("weight_decay", 0.0)
    kept_beside = MOMENTS + FLOAT * averaged
    zero = resolved.get("zero_optimization") or {}
    stage, half = zero.get("stage", 0), precision(resolved) != "fp32"
    width, bucket = 2 if half else FLOAT, int(zero.get("reduce_bucket_size", 5e8))
    groups = [
        [p.numel() for _, p in group["params"]]
        for group in parameter_groups(step.named_parameters(), weight_decay, rates=rates)
    ]
    trained = sum(map(sum, groups))
    frozen = sum(p.numel() for p in step.parameters() if not p.requires_grad)
    if stage == 0:
        masters = FLOAT if half else 0
        return EngineMemory(
            weights=width * (trained + frozen),
            optimizer=(masters + kept_beside) * trained,
            gradients=width * trained,
            reducing=width * min(trained, bucket) if world_size > 1 else 0,
            step=FLOAT * trained * (2 if half else 1),  # LAMB keeps a whole gradient and overwrites a copy
        )
    slices = [_slice(sizes, world_size) for sizes in groups]
    # A tensor that straddles a cut is kept whole by each rank that owns a piece of it.
    kept = max(
        sum(_kept(sizes, size, rank) for sizes, size in zip(groups, slices, strict=True)) for rank in range(world_size)
    )
    buffers = bucket * (1 + bool(zero.get("overlap_comm"))) if zero.get("contiguous_gradients", True) else 0
    accumulates = resolved["gradient_accumulation_steps"] > 1
    beside = trained - kept if stage == 1 else kept * accumulates
    return EngineMemory(
        weights=width * (sum(slices) * world_size + frozen),
        optimizer=(FLOAT + kept_beside) * sum(slices),
        gradients=width * kept,
        reducing=width * (buffers + beside),
        step=width * max(slices) + (FLOAT * max(slices) if half else 0),
    )


def whole_memory(engine: EngineMemory, trace: Trace, config: BaseConfig, sizes: BatchSizes, *, dali: bool) -> Memory:
    """The engine's memory and that of a micro-batch of `sizes`; `dali`: pictures are decoded on the GPU."""
    pictures = picture_bytes(config.data, sizes, dali=dali)
    once = trace.once if trace.once is not None else Once(0, 0, [], [], 0)
    # In one pass the backward begins with the vectors' gradients and frees them before it holds most.
    vectors, beside = (once.kept, 0) if sizes.accumulation > 1 else (0, trace.saved)
    loss = once.peak - vectors
    at_once = vectors + max(trace.peak, loss + beside)
    known = engine.weights + engine.optimizer + engine.gradients + engine.reducing + at_once + pictures
    working, reserve = max(0, trace.peak - trace.saved), int(CONTEXT + GAPS * known)
    return Memory(engine, trace.saved, working, pictures, reserve, vectors, loss, beside)


def picture_bytes(data: DataConfig, sizes: BatchSizes, *, dali: bool) -> int:
    """Bytes of the pixels of a step's micro-batches, and of what DALI's pipelines (training, validation) keep.

    A pipeline of `mbsd.data.decode_dali` holds each operator's output for a whole micro-batch: decoded and cropped at
    the catalogue's size, resized and laid out as planes at the network's.
    """
    stored, shown = 3 * STORED_SIDE**2, 3 * data.image_size**2
    pipelines = 2 * sizes.micro_batch * (2 * stored + 2 * shown) if dali else 0
    return pipelines + sizes.micro_batch * sizes.accumulation * shown


def _slice(sizes: list[int], world_size: int) -> int:
    """Elements of one rank's slice of a group, which DeepSpeed pads to a multiple of 2 x ranks."""
    alignment = 2 * world_size
    return -(-sum(sizes) // alignment) * 2


def _kept(sizes: list[int], slice_size: int, rank: int) -> int:
    """Elements of all tensors of which the rank's slice holds a part."""
    begin, end, offset, kept = rank * slice_size, (rank + 1) * slice_size, 0, 0
    for size in sizes:
        if offset < end and offset + size > begin:
            kept += size
        offset += size
    return kept
