"""Does the picture belong to the title: a yes/no question of which some samples are not asked.

Losses are SUMS, as in `mbsd.objectives.masked`: how many samples are asked is known of the global batch alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_MATCH


def match_sum(logits_B: Tensor, labels_B: Tensor) -> Tensor:
    """Binary cross-entropy summed over the samples whose label, 0 or 1, is not `NO_MATCH`; 0-d, at least float32."""
    logits_B = logits_B.to(torch.promote_types(logits_B.dtype, torch.float32))
    signs_B = 2 * labels_B - 1
    return torch.where(labels_B == NO_MATCH, 0.0, F.softplus(-signs_B * logits_B)).sum()


def matches_right(logits_B: Tensor, labels_B: Tensor) -> Tensor:
    """Number of samples whose answer is right, 0-d int64; those of `NO_MATCH` are none of them."""
    return (((logits_B > 0) == (labels_B > 0.5)) & (labels_B != NO_MATCH)).sum()


def num_asked(labels_B: Tensor) -> Tensor:
    """Number of samples whose label is not `NO_MATCH`, 0-d int64."""
    return (labels_B != NO_MATCH).sum()
