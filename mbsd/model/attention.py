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
from transformers import AttentionInterface

from mbsd.batch import Views

PACKED = "mbsd_packed"


@dataclass(frozen=True)
class AttentionPlan:
    """How the layers of one forward attend; built once, used by all of them.

    Attributes:
        lengths: tokens of each of the S sequences, on the host.
        pad_SL: int64; the packed row each cell of the padded [S, L] layout reads (cells past the end repeat a row).
        unpad_T: int64; the cell of the flattened padded layout each packed row is read back from.
        mask_S11L: bool; which cells are real tokens. The three are None where sequences are attended one by one.
    """

    lengths: tuple[int, ...]
    pad_SL: Tensor | None = None
    unpad_T: Tensor | None = None
    mask_S11L: Tensor | None = None

    @classmethod
    def of(cls, views: Views) -> AttentionPlan:
        """The plan for the device the index plan lies on; asks the device for nothing.

        On a CPU the sequences are attended one after the other: no cell is wasted. An accelerator wants one kernel, so
        there only the attention itself (not the projections, which are most of the work) runs on padded rows.
        """
        if views.source_T.device.type == "cpu":
            return cls(views.lengths)
        return cls.padded(views)

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
        return cls(views.lengths, pad_SL, unpad_T, mask_SL[:, None, None, :])


def packed_attention(
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
        plan: None for padded input (`mbsd.model.padded`): query, key and value are [B, H, L, head size] then, and
            attention_mask, bool [B, 1, 1, L], says which rows are real.

    Returns:
        [1, T, H, head size] ([B, L, H, head size]), and no weights.
    """
    if plan is None:
        out_BHLd = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return out_BHLd.transpose(1, 2), None
    if plan.pad_SL is None or plan.unpad_T is None:
        triples = zip(*(torch.split(tensor, list(plan.lengths), dim=2) for tensor in (query, key, value)), strict=True)
        pieces = [F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling) for q, k, v in triples]
        return torch.cat(pieces, dim=2).transpose(1, 2), None
    q, k, v = (tensor[0].transpose(0, 1)[plan.pad_SL].transpose(1, 2) for tensor in (query, key, value))
    out_SHLd = F.scaled_dot_product_attention(q, k, v, attn_mask=plan.mask_S11L, dropout_p=dropout, scale=scaling)
    return out_SHLd.transpose(1, 2).flatten(0, 1)[plan.unpad_T][None], None


AttentionInterface.register(PACKED, packed_attention)
