"""Attention over packed sequences: every token attends to the tokens of its own sequence, and there is no padding.

Registered with transformers under `PACKED`, so that BERT's own encoder layers call it: all the rest of a BERT layer is
per token and needs no change for packed input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged
from transformers import AttentionInterface

from mbsd.batch import Views

PACKED = "mbsd_packed"


@dataclass(frozen=True)
class AttentionPlan:
    """How the layers of one forward attend; built once, used by all of them.

    Attributes:
        lengths: tokens of each of the S sequences, on the host.
        offsets_S: int32 [S + 1], the sequences' first rows, of the type that the kernels read. With it they are one
            jagged tensor; torch takes the flash-attention kernel where the GPU has it (from sm_80, in fp16 and bf16),
            else the memory-efficient one (V100, fp32).
        pad_SL: int64; the packed row each cell of the padded [S, L] layout reads (cells past the end repeat a row).
        unpad_T: int64; the cell of the flattened padded layout each packed row is read back from.
        mask_S11L: bool; which cells are real tokens. Where all four are None, sequences are attended one by one.
    """

    lengths: tuple[int, ...]
    offsets_S: Tensor | None = None
    pad_SL: Tensor | None = None
    unpad_T: Tensor | None = None
    mask_S11L: Tensor | None = None

    @classmethod
    def of(cls, views: Views) -> AttentionPlan:
        """The plan for the device the index plan lies on; asks the device for nothing.

        On a CPU the sequences are attended one after the other, on a GPU all in one kernel; no cell is wasted. Other
        devices (`mbsd plan` traces on meta) get rows that are padded in the attention alone.
        """
        kind = views.source_T.device.type
        if kind == "cpu":
            return cls(views.lengths)
        return cls.jagged(views) if kind == "cuda" else cls.padded(views)

    @classmethod
    def jagged(cls, views: Views) -> AttentionPlan:
        """The plan that lays no cell out beside the tokens."""
        return cls(views.lengths, offsets_S=views.cu_seqlens)

    @classmethod
    def padded(cls, views: Views) -> AttentionPlan:
        """The plan that pads inside the attention alone."""
        device = views.source_T.device
        longest, total = max(views.lengths), views.source_T.shape[0]
        starts_S = views.cu_seqlens[:-1].long()
        lengths_S = views.cu_seqlens[1:].long() - starts_S
        column_L = torch.arange(longest, device=device)
        mask_SL = column_L < lengths_S[:, None]
        pad_SL = torch.where(mask_SL, starts_S[:, None] + column_L, starts_S[:, None])
        row_T = torch.arange(total, device=device)
        sequence_T = torch.repeat_interleave(
            torch.arange(len(views.lengths), device=device), lengths_S, output_size=total
        )
        unpad_T = sequence_T * longest + row_T - starts_S[sequence_T]
        return cls(views.lengths, None, pad_SL, unpad_T, mask_SL[:, None, None, :])


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

    Args:
        query, key, value: [1, H, T, head size], all sequences one after the other.
        attention_mask: unused where a plan says which rows belong together.
        plan: None for padded input (as an exported graph has): query, key and value are [B, H, L, head size] then, and
            attention_mask, bool [B, 1, 1, L], says which rows are real.

    Returns:
        [1, T, H, head size] ([B, L, H, head size]), and no weights.
    """
    if plan is None:
        out_BHLd = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return out_BHLd.transpose(1, 2), None
    if plan.offsets_S is not None:
        return _jagged(query, key, value, plan, dropout, scaling), None
    if plan.pad_SL is None or plan.unpad_T is None:
        triples = zip(*(torch.split(tensor, list(plan.lengths), dim=2) for tensor in (query, key, value)), strict=True)
        pieces = [_attend(q, k, v, dropout, scaling) for q, k, v in triples]
        return torch.cat(pieces, dim=2).transpose(1, 2), None
    q, k, v = (tensor[0].transpose(0, 1)[plan.pad_SL].transpose(1, 2) for tensor in (query, key, value))
    out_SHLd = F.scaled_dot_product_attention(q, k, v, attn_mask=plan.mask_S11L, dropout_p=dropout, scale=scaling)
    return out_SHLd.transpose(1, 2).flatten(0, 1)[plan.unpad_T][None], None


def _jagged(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, dropout: float, scaling: float | None
) -> Tensor:
    """All sequences in one call. Their shortest and longest come from the host, or torch would ask the device."""
    assert plan.offsets_S is not None
    shortest, longest = min(plan.lengths), max(plan.lengths)
    q, k, v = (
        nested_tensor_from_jagged(
            tensor[0].transpose(0, 1), plan.offsets_S, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)
        for tensor in (query, key, value)
    )
    out: Tensor = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
    rows: Tensor = out.transpose(1, 2).values()
    return rows[None]


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """One sequence. With dropout torch has no kernel for CPUs, and these products take two thirds of its time."""
    if not dropout:
        return F.scaled_dot_product_attention(q, k, v, scale=scaling)
    scores = (q * (scaling if scaling is not None else q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)
    return F.dropout(scores.softmax(-1), dropout) @ v


AttentionInterface.register(PACKED, packed_attention)
