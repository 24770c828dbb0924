"""Losses of the downstream tasks, from logits: a yes/no question and C classes, averaged over views and samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.objectives.sdmi import match_loss


def binary_loss(logits_VB: Tensor, labels_B: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, mean over V views and B samples of the label's weight times the sample's loss (float32).

    Args:
        labels_B: 0 or 1.
        weights_C: of label 0 and 1; None: 1 and 1.
    """
    if weights_C is None:
        return match_loss(logits_VB, labels_B.expand_as(logits_VB))
    logits_VB = logits_VB.to(torch.promote_types(logits_VB.dtype, torch.float32))
    signs_B = (2 * labels_B - 1).to(logits_VB.dtype)
    return (_of_samples(weights_C, labels_B, logits_VB) * F.softplus(-signs_B * logits_VB)).mean()


def class_loss(logits_VBC: Tensor, labels_B: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """Cross-entropy, mean over V views and B samples of the class's weight times the sample's loss (float32).

    Not torch's weighted mean, which divides by the micro-batch's own weights: its mean over ranks would be another
    number than the global batch's.

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
