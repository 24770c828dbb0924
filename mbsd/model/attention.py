"""Attention over packed sequences: every token attends to the tokens of its own sequence, and there is no padding.

Registered with transformers under `PACKED`, so that BERT's own encoder layers call it: all the rest of a BERT layer is
per token and needs no change for packed input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from mbsd.batch import Generation, Views

PACKED = "mbsd_packed"
BOTTOM_RIGHT = 2  # ATen's causal mask whose last row sees all keys
_META_GPU: ContextVar[tuple[int, int]] = ContextVar("compute capability that the meta device has", default=(9, 0))


@dataclass(frozen=True)
class AttentionPlan:
    """How the layers of one forward attend; built once, used by all of them.

    Attributes:
        lengths: tokens of each of the S sequences, on the host.
        offsets_S: int32 [S + 1], the sequences' first rows, of the type that the kernels read. With it all sequences
            are attended in one kernel; None: one by one.
        capability: CUDA's compute capability of the GPU, which decides the kernel (`runs_flash`).
        first_alone: of each sequence only the first token asks; the others are looked at and get no answer.
        written: what is written after each sequence, of a prefix language model; its tokens follow those of all
            sequences. They attend to their sequence and to those before them, and no sequence attends to them.
    """

    lengths: tuple[int, ...]
    offsets_S: Tensor | None = None
    capability: tuple[int, int] = (0, 0)
    first_alone: bool = False
    written: Generation | None = None

    @classmethod
    def of(cls, views: Views) -> AttentionPlan:
        """The plan for the device the index plan lies on; asks the device for nothing.

        On a CPU the sequences are attended one after the other, on a GPU all in one kernel; no cell is wasted. The meta
        device stands for a GPU (`meta_device_as`).
        """
        device = views.source_T.device
        if device.type == "cpu":
            return cls(views.lengths)
        return cls.at_once(
            views, torch.cuda.get_device_capability(device) if device.type == "cuda" else _META_GPU.get()
        )

    @classmethod
    def of_prefix(cls, views: Views, written: Generation) -> AttentionPlan:
        """The plan of a prefix language model: each sequence of `views`, and what is written after it."""
        return dataclasses.replace(cls.of(views), written=written)

    @property
    def queries(self) -> tuple[int, ...]:
        """How many tokens of each sequence ask."""
        return (1,) * len(self.lengths) if self.first_alone else self.lengths

    @classmethod
    def at_once(cls, views: Views, capability: tuple[int, int]) -> AttentionPlan:
        """The plan that attends all sequences in one kernel, and lays no cell out beside the tokens."""
        return cls(views.lengths, views.cu_seqlens, capability)


@contextmanager
def meta_device_as(capability: tuple[int, int]) -> Iterator[None]:
    """Inside the block, attention on the meta device is that of a GPU of this compute capability."""
    token = _META_GPU.set(capability)
    try:
        yield
    finally:
        _META_GPU.reset(token)


def runs_flash(capability: tuple[int, int], dtype: torch.dtype, head_size: int) -> bool:
    """Whether the GPU has the flash kernel for it: in half precision, from sm_80, with heads of 8, 16, … 256.

    Everywhere else the memory-efficient kernel attends (ATen's sdp_utils.cpp).
    """
    half = dtype in (torch.float16, torch.bfloat16)
    return half and capability >= (8, 0) and head_size % 8 == 0 and head_size <= 256


def packed_attention(  # noqa: PLR0913 (transformers' AttentionInterface names the parameters)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention within each sequence (transformers' AttentionInterface).

    On a CPU it is computed in float32 at least.

    Args:
        query, key, value: [1, H, T, head size], all sequences one after the other; query is [1, H, S, head size] where
            each sequence's first token asks alone.
        attention_mask: unused where a plan says which rows belong together.
        plan: None for padded input (as an exported graph has): query, key and value are [B, H, L, head size] then, and
            attention_mask, bool [B, 1, 1, L], says which rows are real.

    Returns:
        [1, T, H, head size] ([1, S, H, head size]; [B, L, H, head size]), and no weights.
    """
    if plan is None:
        out_BHLd = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return out_BHLd.transpose(1, 2), None
    if plan.written is not None:
        return _prefix_attention(module, (query, key, value), plan, dropout, scaling), None
    if plan.offsets_S is not None:
        return _at_once(query, key, value, plan, dropout, scaling), None
    # Backward, torch's attention for CPUs takes several times as long in half precision as in float32. Without a
    # gradient it has to be the same bits: the contrastive stage encodes a batch without one first, then with one.
    dtype = torch.promote_types(query.dtype, torch.float32)
    counts = (plan.queries, plan.lengths, plan.lengths)
    wide = ((tensor.to(dtype), list(each)) for tensor, each in zip((query, key, value), counts, strict=True))
    triples = zip(*(torch.split(tensor, each, dim=2) for tensor, each in wide), strict=True)
    pieces = [_attend(q, k, v, dropout, scaling) for q, k, v in triples]
    return torch.cat(pieces, dim=2).transpose(1, 2).to(query.dtype), None


def _at_once(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, dropout: float, scaling: float | None
) -> Tensor:
    """All sequences in one kernel, which draws dropout's mask itself; [1, T, H, head size], or [1, S, H, head size].

    These are the operators that `scaled_dot_product_attention` of jagged tensors ends in. Its own way there is Python
    that takes the host milliseconds a layer: more than the GPU needs for the layer.
    """
    starts_S, longest, asking = plan.offsets_S, max(plan.lengths), max(plan.queries)
    assert starts_S is not None
    asked_S = starts_S
    if plan.first_alone:
        asked_S = torch.arange(len(plan.lengths) + 1, dtype=torch.int32, device=query.device)
    spans = _Spans(asked_S, starts_S, asking, longest)
    return _kernel((query, key, value), spans, plan.capability, dropout, scaling)


@dataclass(frozen=True)
class _Spans:
    """Which rows of the queries and of the keys belong together: first rows int32 [S + 1], and the longest of each."""

    asked_S: Tensor
    starts_S: Tensor
    asking: int
    longest: int
    causal: bool = False  # the last query of a sequence sees all its keys, the one before it all but the last


def _kernel(
    triple: tuple[Tensor, Tensor, Tensor],
    spans: _Spans,
    capability: tuple[int, int],
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Query, key and value [1, H, rows, head size] -> [1, query rows, H, head size]."""
    rows = [tensor.transpose(1, 2) for tensor in triple]
    between = (spans.asked_S, spans.starts_S, spans.asking, spans.longest, dropout)
    if runs_flash(capability, triple[0].dtype, triple[0].shape[-1]):
        q, k, v = (tensor[0] for tensor in rows)
        # Its causal mask is the bottom right one.
        out_THd: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, *between, spans.causal, False, scale=scaling
        )[0]
        return out_THd[None]
    with_sums = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in rows)  # the backward reads them
    out: Tensor = torch.ops.aten._efficient_attention_forward(
        *rows, None, *between, BOTTOM_RIGHT if spans.causal else 0, with_sums, scale=scaling
    )[0]
    return out


def _prefix_attention(
    module: nn.Module,
    triple: tuple[Tensor, Tensor, Tensor],
    plan: AttentionPlan,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Of T + W rows, in two parts: [1, T + W, H, head size]."""
    written, shown = plan.written, sum(plan.lengths)
    assert written is not None
    alone = dataclasses.replace(plan, written=None)
    q, k, v = (tensor[:, :, :shown] for tensor in triple)
    before = packed_attention(module, q, k, v, None, plan=alone, scaling=scaling, dropout=dropout)[0]
    query = triple[0][:, :, shown:]
    key, value = (tensor[:, :, written.joined] for tensor in triple[1:])
    lengths = [a + b for a, b in zip(plan.lengths, written.lengths, strict=True)]
    if plan.offsets_S is not None:
        spans = _Spans(written.cu_seqlens, written.joined_cu_seqlens, max(written.lengths), max(lengths), causal=True)
        after = _kernel((query, key, value), spans, plan.capability, dropout, scaling)
        return torch.cat([before, after], dim=1)
    dtype = torch.promote_types(query.dtype, torch.float32)
    counts = (list(written.lengths), lengths, lengths)
    wide = ((tensor.to(dtype), each) for tensor, each in zip((query, key, value), counts, strict=True))
    triples = zip(*(torch.split(tensor, each, dim=2) for tensor, each in wide), strict=True)
    pieces = [_attend(q, k, v, dropout, scaling, _bottom_right(q, k)) for q, k, v in triples]
    return torch.cat([before, torch.cat(pieces, dim=2).transpose(1, 2).to(query.dtype)], dim=1)


def _bottom_right(query: Tensor, key: Tensor) -> Tensor:
    """bool [queries, keys]: which keys each query sees."""
    rows, columns = query.shape[2], key.shape[2]
    return torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None, seen: Tensor | None = None
) -> Tensor:
    """One sequence. With dropout torch has no kernel for CPUs, and these products take two thirds of its time."""
    if not dropout:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)
    scores = (q * (scaling if scaling is not None else q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ v


AttentionInterface.register(PACKED, packed_attention)
