"""Losses of the downstream tasks, from logits: binary and C-class cross-entropy, averaged over views and samples.

With label smoothing s the answer is 1 - s on the label and s / C on each of the C classes, the label's own among them
(Szegedy et al. 2016); a class's weight goes with its share, as in torch's `cross_entropy`:

    loss = (1 - s) w_y (-log p_y) + (s / C) sum_c w_c (-log p_c)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.objectives.sdmi import match_loss


def binary_loss(logits_VB: Tensor, labels_B: Tensor, weights_C: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy times the label's weight, mean over V views and B samples; 0-d, at least float32.

    Args:
        labels_B: 0 or 1.
        weights_C: [2], of labels 0 and 1; None: both 1.
        smoothing: of the labels, 0 … 1; C is 2.
    """
    if weights_C is None and not smoothing:
        return match_loss(logits_VB, labels_B.expand_as(logits_VB))
    logits_VB = logits_VB.to(torch.promote_types(logits_VB.dtype, torch.float32))
    signs_B = (2 * labels_B - 1).to(logits_VB.dtype)
    of_label_VB = F.softplus(-signs_B * logits_VB)
    if weights_C is not None:
        of_label_VB = _of_samples(weights_C, labels_B, logits_VB) * of_label_VB
    if not smoothing:
        return of_label_VB.mean()
    of_other_VB = F.softplus(signs_B * logits_VB)
    if weights_C is not None:
        of_other_VB = _of_samples(weights_C, 1 - labels_B, logits_VB) * of_other_VB
    return ((1 - smoothing / 2) * of_label_VB + smoothing / 2 * of_other_VB).mean()


def class_loss(logits_VBC: Tensor, labels_B: Tensor, weights_C: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy times the class's weight, mean over V views and B samples; 0-d, at least float32.

    Not torch's weighted mean, which divides by the sum of the micro-batch's weights: averaged over ranks it would not
    be that of the global batch.

    Args:
        labels_B: int64, 0 ... C - 1.
        weights_C: of the classes; None: 1 each.
        smoothing: of the labels, 0 … 1.
    """
    logits_VBC = logits_VBC.to(torch.promote_types(logits_VBC.dtype, torch.float32))
    views, samples, classes = logits_VBC.shape
    rows, labels = logits_VBC.reshape(-1, classes), labels_B.repeat(views)
    if smoothing:
        weights = weights_C.to(rows) if weights_C is not None else None
        return F.cross_entropy(rows, labels, weights, reduction="none", label_smoothing=smoothing).mean()
    losses = F.cross_entropy(rows, labels, reduction="none")
    if weights_C is None:
        return losses.mean()
    return (_of_samples(weights_C, labels_B, losses) * losses.view(views, samples)).mean()


def _of_samples(weights_C: Tensor, labels_B: Tensor, like: Tensor) -> Tensor:
    return weights_C.to(like)[labels_B.long()]
