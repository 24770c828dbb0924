"""Losses of the downstream tasks, from logits: binary and C-class cross-entropy, averaged over views and samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.objectives.sdmi import match_loss


def binary_loss(logits_VB: Tensor, labels_B: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """Binary cross-entropy times the label's weight, mean over V views and B samples; 0-d, at least float32.

    Args:
        labels_B: 0 or 1.
        weights_C: [2], of labels 0 and 1; None: both 1.
    """
    if weights_C is None:
        return match_loss(logits_VB, labels_B.expand_as(logits_VB))
    logits_VB = logits_VB.to(torch.promote_types(logits_VB.dtype, torch.float32))
    signs_B = (2 * labels_B - 1).to(logits_VB.dtype)
    return (_of_samples(weights_C, labels_B, logits_VB) * F.softplus(-signs_B * logits_VB)).mean()


def class_loss(logits_VBC: Tensor, labels_B: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """Cross-entropy times the class's weight, mean over V views and B samples; 0-d, at least float32.

    Not torch's weighted mean, which divides by the sum of the micro-batch's weights: averaged over ranks it would not
    be that of the global batch.

    Args:
        labels_B: int64, 0 ... C - 1.
        weights_C: of the classes; None: 1 each.
    """
    logits_VBC = logits_VBC.to(torch.promote_types(logits_VBC.dtype, torch.float32))
    views, samples, classes = logits_VBC.shape
    losses = F.cross_entropy(logits_VBC.reshape(-1, classes), labels_B.repeat(views), reduction="none")
    if weights_C is None:
        return losses.mean()
    return (_of_samples(weights_C, labels_B, losses) * losses.view(views, samples)).mean()


def _of_samples(weights_C: Tensor, labels_B: Tensor, like: Tensor) -> Tensor:
    return weights_C.to(like)[labels_B.long()]
