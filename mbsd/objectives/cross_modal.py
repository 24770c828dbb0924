"""Title and picture asked of each other, as a whole: `masking.cross_modal`.

A picture predicts the words of its title as a bag (Joulin et al., "Learning visual features from large weakly
supervised data", 2016), a title the gradients and colours of its picture (`mbsd.model.gradients`). A contrast between
the samples of a batch needs large batches to say as much.

Losses are SUMS over the samples that are asked, as those of `mbsd.objectives.masked`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import CrossModal
from mbsd.objectives.masked import in_float32


def title_loss(logits_BV: Tensor, asked: CrossModal) -> Tensor:
    """Cross-entropy between the words of each title, all equally likely, and one softmax over the vocabulary; 0-d.

    Args:
        logits_BV: [B, vocabulary].
        asked: the words.
    """
    surprise_BV = -F.log_softmax(in_float32(logits_BV), dim=-1)
    return (asked.share_U * surprise_BV[asked.title_U, asked.words_U]).sum()


def picture_loss(values_BX: Tensor, targets_IX: Tensor, asked: CrossModal) -> Tensor:
    """Mean squared error of each picture's X numbers, summed over the samples that are asked; 0-d.

    Args:
        values_BX: predicted.
        targets_IX: of the pictures; I may be 0 if no sample is asked.
        asked: which picture each sample shows.
    """
    values_BX = in_float32(values_BX)
    if targets_IX.shape[0] == 0:
        return (values_BX * 0).sum()
    apart_BX = values_BX - in_float32(targets_IX)[asked.picture_B]
    return (asked.asked_B * apart_BX.square().mean(-1)).sum()
