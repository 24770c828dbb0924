"""Stage 1: masked words and masked patches (Eq. 1, 2).

Both functions return SUMS over what is masked. A mean over all ranks and micro-steps of a global batch needs the
batch's own counts, which only the loop knows; a mean of means would weigh a word by how many others share its rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_word_loss(word_logits: Tensor, labels_K: Tensor) -> Tensor:
    """Cross-entropy summed over the K masked tokens (Eq. 1 times K); 0 where nothing is masked.

    Args:
        word_logits: [K, vocabulary].
        labels_K: int64, the words that were there.
    """
    return F.cross_entropy(_wide(word_logits), labels_K, reduction="sum")


def masked_patch_loss(patch_pixels: Tensor, patch_target: Tensor) -> Tensor:
    """Absolute error summed over the Q masked patches, each patch's the mean over its own values.

    Eq. 2 as the authors' code reduces it: divided by Q it is the mean over all masked values. The plain sum over a
    patch's 3 * 32^2 values would be 3,072 times larger and drown the words.

    Args:
        patch_pixels, patch_target: [Q, 3 * side^2], predicted and true normalised pixels.
    """
    return (_wide(patch_pixels) - _wide(patch_target)).abs().sum() / patch_pixels.shape[-1]


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: fp16 logits lose what a loss needs."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
