"""Stage 1: masked words and masked patches (Eq. 1, 2).

All losses are SUMS over what is masked. The mean over a global batch divides by the batch's counts over all ranks and
micro-steps, which are not known here; a mean of means would give a word less weight the more words share its rank.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mbsd.batch import NO_WORD

WORDS_AT_ONCE = 1024  # 87 MB of float32 logits with bert-base-chinese's vocabulary


def masked_word_loss_in_chunks(
    rows_KD: Tensor, table: Tensor, bias: Tensor, labels_K: Tensor, at_once: int = WORDS_AT_ONCE
) -> Tensor:
    """`masked_word_loss` of the logits rows_KD @ table.T + bias, of which at most `at_once` rows exist at a time.

    If there are more rows than that, the backward computes each chunk's logits again instead of keeping them.

    Args:
        rows_KD: the transformed representations of the K masked tokens.
        table: [vocabulary, D], the word embeddings.
        bias: [vocabulary].
        labels_K: int64, the original words.
        at_once: rows of a chunk.

    Returns:
        The sum over the K tokens, 0-d.
    """
    if rows_KD.shape[0] <= at_once:
        return _chunk_loss(rows_KD, table, bias, labels_K)
    chunks = zip(rows_KD.split(at_once), labels_K.split(at_once), strict=True)
    losses = [
        checkpoint(_chunk_loss, rows, table, bias, labels, use_reentrant=False, preserve_rng_state=False)
        for rows, labels in chunks
    ]
    return torch.stack(losses).sum()


def words_right(rows_KD: Tensor, table: Tensor, bias: Tensor, labels_K: Tensor, at_once: int = WORDS_AT_ONCE) -> Tensor:
    """Number of the K words whose logit is the highest (0-d int64, no gradient); as many rows of logits at a time."""
    chunks = zip(rows_KD.detach().split(at_once), labels_K.split(at_once), strict=True)
    return torch.stack([(F.linear(rows, table, bias).argmax(-1) == labels).sum() for rows, labels in chunks]).sum()


def _chunk_loss(rows: Tensor, table: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    return masked_word_loss(F.linear(rows, table, bias), labels)


def masked_word_loss(word_logits: Tensor, labels_K: Tensor) -> Tensor:
    """Cross-entropy summed over the K masked tokens (Eq. 1 times K), 0-d; 0 if nothing is masked.

    Args:
        word_logits: [K, vocabulary].
        labels_K: int64, the original words; `NO_WORD`: the token is not predicted.
    """
    return F.cross_entropy(in_float32(word_logits), labels_K, reduction="sum", ignore_index=NO_WORD)


def masked_patch_loss(
    patch_values: Tensor, patch_target: Tensor, error: Literal["absolute", "squared"] = "absolute"
) -> Tensor:
    """Sum over the Q masked patches of the mean error of a patch's values, 0-d.

    Of the absolute error this is Eq. 2 as the authors' code reduces it: divided by Q it is the mean over all masked
    values. The sum over a patch's 3 * 32^2 values would be 3,072 times larger, and the loss of the words negligible
    beside it.

    Args:
        patch_values, patch_target: [Q, values], predicted and true: normalised pixels, or gradients and colours.
        error: absolute for pixels, as in Eq. 2; squared for gradients and colours, as in MaskFeat.
    """
    apart = in_float32(patch_values) - in_float32(patch_target)
    return (apart.square() if error == "squared" else apart.abs()).sum() / patch_values.shape[-1]


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least: fp16 is too coarse for a loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
