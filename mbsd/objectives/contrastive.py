"""Contrast between products: the loss of a whole global batch and its gradient in closed form, some rows at a time.

Nothing here is differentiated by autograd and nothing talks to other ranks: a rank calls `row_statistics`, gathers what
all ranks found, and calls `loss_and_gradients`. Letters beside those of batch.py: N rows of the global batch, n of them
this rank's own, E numbers of a vector, K keys of an item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_KEY

INF = math.inf
LOG_SUM, MASS = 0, 1
SAMPLE = 256  # rows of the global batch whose pairs give the uniformity


@dataclass(frozen=True)
class Rule:
    """Which loss: the settings of `ContrastiveConfig` that it reads."""

    loss: Literal["softmax", "sigmoid"] = "softmax"
    targets: Literal["shared", "masked", "own"] = "shared"
    chunk: int = 1024


@dataclass(frozen=True)
class Rows:
    """The rows of the global batch, rank after rank.

    Attributes:
        image_NE, text_NE: unit vectors, without graph.
        keys_NK: int64; equal ones (but for NO_KEY) are the same product.
        has_image_N, has_text_N: bool; which vectors are of something.
        own: first and one past the last row of this rank.
    """

    image_NE: Tensor
    text_NE: Tensor
    keys_NK: Tensor
    has_image_N: Tensor
    has_text_N: Tensor
    own: tuple[int, int]


@dataclass(frozen=True)
class Gradients:
    """Of the loss of the whole global batch.

    Attributes:
        image_nE, text_nE: with respect to this rank's own vectors: complete.
        sums: this rank's shares, each [], whose sums over ranks are: loss_image, loss_text (the loss is their mean);
            log_scale and bias, the gradients with respect to the logarithm of the scale and to the bias; and what is
            watched: accuracy_image, accuracy_text, positives, and empty (1 where the global batch has no anchor).
    """

    image_nE: Tensor
    text_nE: Tensor
    sums: dict[str, Tensor]


def row_statistics(rows: Rows, scale: Tensor, rule: Rule) -> Tensor:
    """Eq. (2) and the positives of each own row: [2, n, 2], of pictures against titles and of titles against pictures.

    The last dimension is the logarithm of the sum over the row's candidates (softmax alone; else 0) and the number of
    positives among them.
    """
    return torch.stack([_statistics(side, scale, rule) for side in _sides(rows)])


def loss_and_gradients(rows: Rows, statistics_2N2: Tensor, scale: Tensor, bias: Tensor | None, rule: Rule) -> Gradients:
    """Eq. (4)-(9).

    Args:
        statistics_2N2: `row_statistics` of all ranks, rank after rank.
        scale, bias: [1], s and c; bias of the sigmoid loss alone.
    """
    image, text = _sides(rows)
    images, titles = statistics_2N2.unbind(0)
    of_image = _direction(image, (images, titles), scale, bias, rule)
    of_text = _direction(text, (titles, images), scale, bias, rule)
    start, end = rows.own
    log_scale = (rows.image_NE[start:end] * of_image.gradient_nE).sum()
    sums = {
        "loss_image": of_image.loss,
        "loss_text": of_text.loss,
        "log_scale": log_scale,
        "bias": of_image.bias,
        "accuracy_image": of_image.accuracy,
        "accuracy_text": of_text.accuracy,
        "positives": of_image.positives,
        "empty": (of_image.empty & of_text.empty).to(rows.image_NE.dtype) * _share_of(rows),
    }
    return Gradients(of_image.gradient_nE, of_text.gradient_nE, sums)


def watched(rows: Rows) -> dict[str, Tensor]:
    """What shows how the two towers lie to one another: like `Gradients.sums`, shares [] to be SUMMED over ranks.

    Every rank has every row, so each finds the value itself and gives its part of the rows of it. The values are:
    incomplete, the share of rows without picture or without title; modality_gap, how far the towers' means are apart;
    alignment, the mean |u_i - v_i|^2 of the rows with both; uniformity_image and uniformity_text, the logarithm of the
    mean exp(-2 |x_i - x_j|^2) over the pairs of `SAMPLE` rows spread over the global batch. Of no row or pair: 0.
    """
    image_NE, text_NE = rows.image_NE, rows.text_NE
    has_image_N, has_text_N = rows.has_image_N.to(image_NE.dtype), rows.has_text_N.to(image_NE.dtype)
    both_N = has_image_N * has_text_N
    gap = _mean(image_NE, has_image_N) - _mean(text_NE, has_text_N)
    apart_N = (image_NE - text_NE).square().sum(1)
    values = {
        "incomplete": 1 - both_N.mean(),
        "modality_gap": gap.norm(),
        "alignment": (apart_N * both_N).sum() / both_N.sum().clamp_min(1),
        "uniformity_image": _uniformity(image_NE, has_image_N),
        "uniformity_text": _uniformity(text_NE, has_text_N),
    }
    return {name: value * _share_of(rows) for name, value in values.items()}


def _share_of(rows: Rows) -> float:
    """This rank's part of the rows."""
    start, end = rows.own
    return (end - start) / rows.image_NE.shape[0]


def _mean(x_NE: Tensor, has_N: Tensor) -> Tensor:
    return has_N @ x_NE / has_N.sum().clamp_min(1)


def _uniformity(x_NE: Tensor, has_N: Tensor) -> Tensor:
    every = -(-x_NE.shape[0] // SAMPLE)
    x_SE, has_S = x_NE[::every], has_N[::every]
    # Of unit vectors |a - b|^2 = 2 - 2 a.b; torch.cdist's gradient-friendly form is slower and needs no less memory.
    pairs_SS = (has_S[:, None] * has_S).triu(1)
    total, count = (torch.exp(4 * (x_SE @ x_SE.T - 1)) * pairs_SS).sum(), pairs_SS.sum()
    return torch.where(count > 0, torch.log(total / count.clamp_min(1)), 0)


@dataclass(frozen=True)
class _Side:
    """One direction: anchors of one modality against candidates of the other."""

    anchor_NE: Tensor
    candidate_NE: Tensor
    is_anchor_N: Tensor
    is_candidate_N: Tensor
    keys_NK: Tensor
    own: tuple[int, int]

    def blocks(self, chunk: int) -> Iterator[slice]:
        start, end = self.own
        for first in range(start, end, chunk):
            yield slice(first, min(first + chunk, end))

    def pairs(self, block: slice, targets: str) -> tuple[Tensor, Tensor]:
        """[R, N] bool each: C of Eq. (1), and the positives among it."""
        num_rows = self.anchor_NE.shape[0]
        numbers = torch.arange(num_rows, device=self.anchor_NE.device)
        itself = numbers[block, None] == numbers
        considered = self.is_anchor_N[block, None] & self.is_candidate_N
        if targets == "own":
            return considered, itself & considered
        same = itself.clone()
        for key_N in self.keys_NK.unbind(1):
            same |= (key_N[block, None] == key_N) & (key_N != NO_KEY)
        if targets == "masked":
            considered = considered & (itself | ~same)
            return considered, itself & considered
        return considered, same & considered


def _sides(rows: Rows) -> tuple[_Side, _Side]:
    shared = rows.keys_NK, rows.own
    return (
        _Side(rows.image_NE, rows.text_NE, rows.has_image_N, rows.has_text_N, *shared),
        _Side(rows.text_NE, rows.image_NE, rows.has_text_N, rows.has_image_N, *shared),
    )


def _statistics(side: _Side, scale: Tensor, rule: Rule) -> Tensor:
    found = []
    for block in side.blocks(rule.chunk):
        considered, positive = side.pairs(block, rule.targets)
        mass = positive.sum(1).to(side.anchor_NE.dtype)
        if rule.loss == "softmax":
            logits = (scale * (side.anchor_NE[block] @ side.candidate_NE.T)).masked_fill(~considered, -INF)
            log_sum = torch.logsumexp(logits, 1)
        else:
            log_sum = torch.zeros_like(mass)
        found.append(torch.stack([log_sum, mass], 1))
    return torch.cat(found)


@dataclass(frozen=True)
class _Direction:
    gradient_nE: Tensor
    loss: Tensor
    bias: Tensor
    accuracy: Tensor
    positives: Tensor
    empty: Tensor


def _direction(
    side: _Side, statistics: tuple[Tensor, Tensor], scale: Tensor, bias: Tensor | None, rule: Rule
) -> _Direction:
    """One side's own rows: their share of the loss, and the gradient of the WHOLE loss with respect to them."""
    own, other = statistics
    is_anchor_N = side.is_anchor_N & (own[:, MASS] > 0)
    is_other_N = side.is_candidate_N & (other[:, MASS] > 0)
    num_anchors, num_others = (flags.sum().clamp_min(1) for flags in (is_anchor_N, is_other_N))
    num_complete = (side.is_anchor_N & side.is_candidate_N).sum().clamp_min(1)
    zero = side.anchor_NE.new_zeros(())
    loss, bias_gradient, right, positives = zero, zero, zero, zero
    gradients = []
    for block in side.blocks(rule.chunk):
        considered, positive = side.pairs(block, rule.targets)
        logits = scale * (side.anchor_NE[block] @ side.candidate_NE.T)
        anchors = is_anchor_N[block]
        if rule.loss == "softmax":
            # Rows that are no anchors have no share: exp(z - inf) = 0.
            log_own = own[block, LOG_SUM].masked_fill(~anchors, INF)[:, None]
            log_other = other[:, LOG_SUM].masked_fill(~is_other_N, INF)
            of_row = torch.exp(logits - log_own) - _share(positive, own[block, MASS])
            of_column = torch.exp(logits - log_other) - _share(positive, other[:, MASS][None])
            of_row = torch.where(considered & anchors[:, None], of_row, 0) / num_anchors
            of_column = torch.where(considered & is_other_N, of_column, 0) / num_others
            gradient = (of_row + of_column) / 2
            mean_positive = torch.where(positive, logits, 0).sum(1) / own[block, MASS].clamp_min(1)
            loss = loss + torch.where(anchors, own[block, LOG_SUM] - mean_positive, 0).sum() / num_anchors
        else:
            assert bias is not None, "the sigmoid loss has a bias"
            signs = torch.where(positive, 1.0, -1.0).to(logits.dtype)
            signed = signs * (logits + bias)
            gradient = torch.where(considered, -signs * torch.sigmoid(-signed), 0) / num_complete
            loss = loss + torch.where(considered, F.softplus(-signed), 0).sum() / num_complete
            bias_gradient = bias_gradient + gradient.sum()
        gradients.append(scale * (gradient @ side.candidate_NE))
        best = logits.masked_fill(~positive, -INF).amax(1)
        best_other = logits.masked_fill(~considered | positive, -INF).amax(1)
        right = right + (anchors & (best > best_other)).sum() / num_anchors
        positives = positives + torch.where(anchors, own[block, MASS], 0).sum() / num_anchors
    return _Direction(torch.cat(gradients), loss, bias_gradient, right, positives, ~is_anchor_N.any())


def _share(positive: Tensor, mass: Tensor) -> Tensor:
    """q_ij: what each positive has of the mass 1 of its row (mass [R]) or column (mass [1, N])."""
    whole = mass[:, None] if mass.ndim == 1 else mass
    return positive / whole.clamp_min(1)
