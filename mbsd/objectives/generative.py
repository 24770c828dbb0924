"""The generative stage: cross-entropy of the next token, with teacher forcing.

Losses are of single tokens. The mean over a global batch divides by the batch's number of tokens over all ranks and
micro-steps, which is not known here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mbsd.batch import NO_WORD
from mbsd.objectives.masked import WORDS_AT_ONCE


def next_token_losses(rows_WD: Tensor, table: Tensor, labels_W: Tensor, at_once: int = WORDS_AT_ONCE) -> Tensor:
    """Cross-entropy of each of the W tokens, [W] in at least float32; 0 where nothing is asked for.

    At most `at_once` rows of logits exist at a time: if there are more rows than that, the backward computes each
    chunk's logits again instead of keeping them.

    Args:
        rows_WD: last hidden states; logits are rows_WD @ table.T.
        table: [vocabulary, D].
        labels_W: int64; the tokens that follow; `NO_WORD`: none is asked for.
    """
    if rows_WD.shape[0] <= at_once:
        return _losses(rows_WD, table, labels_W)
    chunks = zip(rows_WD.split(at_once), labels_W.split(at_once), strict=True)
    return torch.cat(
        [
            checkpoint(_losses, rows, table, labels, use_reentrant=False, preserve_rng_state=False)
            for rows, labels in chunks
        ]
    )


def tokens_right(rows_WD: Tensor, table: Tensor, labels_W: Tensor, at_once: int = WORDS_AT_ONCE) -> Tensor:
    """Number of the W tokens whose logit is the highest (0-d int64, no gradient); as many rows of logits at a time."""
    chunks = zip(rows_WD.detach().split(at_once), labels_W.split(at_once), strict=True)
    return torch.stack([(F.linear(rows, table).argmax(-1) == labels).sum() for rows, labels in chunks]).sum()


def _losses(rows: Tensor, table: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(rows, table)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels, reduction="none", ignore_index=NO_WORD)
