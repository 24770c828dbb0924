"""FashionBERT and Kaleido-BERT: the features of hidden crops, and puzzles whose answer is a class.

As in `mbsd.objectives.masked`, all losses are SUMS: what they are divided by is known of the global batch alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_CLASS


def crop_feature_loss(predicted_QF: Tensor, true_QF: Tensor) -> Tensor:
    """sum_q KL(softmax(true_q) || softmax(predicted_q)), 0-d; 0 where no crop is hidden.

    Both papers compare features by the divergence of their softmax over the F features of a ResNet; divided by Q this
    is the mean that the authors' code takes (EasyTransfer, `image_reconstruction_kld_loss`).

    Args:
        true_QF: without gradient.
    """
    log_predicted, log_true = (_wide(values).log_softmax(-1) for values in (predicted_QF, true_QF))
    return F.kl_div(log_predicted, log_true, reduction="sum", log_target=True)


def puzzle_loss(logits_IC: Tensor, labels_I: Tensor) -> Tensor:
    """Cross-entropy summed over the pictures whose label is not `NO_CLASS`, 0-d."""
    return F.cross_entropy(_wide(logits_IC), labels_I, reduction="sum", ignore_index=NO_CLASS)


def puzzles_solved(logits_IC: Tensor, labels_I: Tensor) -> Tensor:
    """Number of pictures whose class is the most probable one, 0-d int64; those of `NO_CLASS` are none of them."""
    return (logits_IC.argmax(-1) == labels_I).sum()


def _wide(tensor: Tensor) -> Tensor:
    """In at least float32: fp16 is too coarse for a loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
