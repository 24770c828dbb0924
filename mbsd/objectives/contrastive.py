"""Contrast between products: the loss of a whole global batch and its gradient in closed form, some rows at a time.

Nothing here is differentiated by autograd, nothing talks to other ranks and nothing waits for the device: a rank calls
`row_statistics`, gathers what all ranks found, and calls `loss_and_gradients`. A rank whose own rows are all rows finds
both directions, pictures against titles and titles against pictures, in one sweep over the similarities.

Letters beside those of batch.py: N rows of the global batch, n of them this rank's own, R rows of a block, E numbers of
a vector, K keys of an item; 2, the two directions, pictures first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.objectives.anchors import LOG_SUM, MASS, RIGHT, Anchors
from mbsd.objectives.similarities import Block, Similarities, key_numbers

SAMPLE = 64  # rows of the global batch whose pairs give the uniformity: more would cost a small batch much
LINEAR_FROM = 40.0  # where softplus(x) is x: e^-40 is below the last digit of float64
softplus: Any = F.softplus  # torch's stub does not know its `out`


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
        sums: this rank's shares, each [], to be SUMMED over ranks. The sums are: loss_image, loss_text (the loss is
            their mean); log_scale and bias, the gradients with respect to the logarithm of the scale and to the bias;
            and what is watched: accuracy_image and accuracy_text, how often the highest logit of an anchor is of its
            product (a tie with another product counts against it); positives, how many an anchor has; empty, 1 where
            the global batch has no anchor. The anchors of the sigmoid loss are the rows with both modalities.
    """

    image_nE: Tensor
    text_nE: Tensor
    sums: dict[str, Tensor]


@dataclass
class Kept:
    """What `row_statistics` leaves for `loss_and_gradients`: the sides; the logits, if one chunk holds all of them."""

    sides: list[Similarities] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


@torch.no_grad()
def row_statistics(rows: Rows, scale: Tensor, rule: Rule, kept: Kept | None = None) -> Tensor:
    """Eq. (2) and the positives of each own row: [2, n, 4].

    The last dimension: the logarithm of the sum over the row's candidates, the number of positives among them, the sum
    of their logits, and 1 where the highest logit is of the row's product. The sigmoid loss needs none of it: zeros.

    Args:
        kept: given to both functions, it saves the second the products of the first where one chunk holds them.
    """
    if rule.loss == "sigmoid":
        return rows.image_NE.new_zeros(2, rows.own[1] - rows.own[0], 4)
    sides = _sides(rows, scale, None, rule)
    if kept is not None:
        kept.sides = sides
    anchors = Anchors(sides, shares=rule.targets == "shared")
    for d, blocks in enumerate(_blocks(sides, rule.chunk)):
        for block in blocks:
            anchors.see(d, block)
            if kept is not None and len(sides[d].anchor_nE) <= sides[d].rows_at_once(rule.chunk):
                kept.blocks.append(block)
        del block  # and its room, before the next side takes its own
    return anchors.statistics()


@torch.no_grad()
def loss_and_gradients(
    rows: Rows, statistics_2N4: Tensor, scale: Tensor, bias: Tensor | None, rule: Rule, kept: Kept | None = None
) -> Gradients:
    """Eq. (4)-(9).

    Args:
        statistics_2N4: `row_statistics` of all ranks, rank after rank.
        scale, bias: [1], s and c; bias of the sigmoid loss alone.
        kept: as `row_statistics` left it; it is emptied.
    """
    sides = kept.sides if kept is not None and kept.sides else _sides(rows, scale, bias, rule)
    loss = _Softmax(rows, sides, statistics_2N4, rule) if rule.loss == "softmax" else _Sigmoid(rows, sides, rule)
    gradients = []
    for d, blocks in enumerate(_blocks(sides, rule.chunk, kept)):
        gradients += _products(sides[d], blocks, partial(loss.weights, d))
    image_nE, text_nE = (gradient.mul_(scale * loss.factor) for gradient in gradients)
    log_scale = _products_of_rows(rows.image_NE[slice(*rows.own)], image_nE).sum()
    return Gradients(image_nE, text_nE, {**loss.sums(), "log_scale": log_scale})


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
    lengths_N = _products_of_rows(image_NE, image_NE) + _products_of_rows(text_NE, text_NE)
    apart_N = lengths_N - 2 * _products_of_rows(image_NE, text_NE)
    values = {
        "incomplete": 1 - both_N.mean(),
        "modality_gap": gap.norm(),
        "alignment": (apart_N * both_N).sum() / both_N.sum().clamp_min(1),
        "uniformity_image": _uniformity(image_NE, has_image_N),
        "uniformity_text": _uniformity(text_NE, has_text_N),
    }
    return {name: value * _part_of(rows) for name, value in values.items()}


def _products_of_rows(x_NE: Tensor, y_NE: Tensor) -> Tensor:
    """[N], without the room of [N, E] that their product would take."""
    return torch.einsum("ne,ne->n", x_NE, y_NE)


def _part_of(rows: Rows) -> float:
    """What part of all rows this rank's are."""
    start, end = rows.own
    return (end - start) / len(rows.image_NE)


def _mean(x_NE: Tensor, has_N: Tensor) -> Tensor:
    return has_N @ x_NE / has_N.sum().clamp_min(1)


def _uniformity(x_NE: Tensor, has_N: Tensor) -> Tensor:
    every = -(-len(x_NE) // SAMPLE)
    x_SE, has_S = x_NE[::every], has_N[::every]
    pairs_SS = (has_S[:, None] * has_S).triu(1)
    # Of unit vectors: |a - b|^2 = 2 - 2 a . b.
    total, count = (torch.exp(4 * (x_SE @ x_SE.T - 1)) * pairs_SS).sum(), pairs_SS.sum()
    return torch.where(count > 0, torch.log(total / count.clamp_min(1)), 0)


def _sides(rows: Rows, scale: Tensor, bias: Tensor | None, rule: Rule) -> list[Similarities]:
    """Pictures against titles and titles against pictures; the first alone where its columns are the second."""
    own = slice(*rows.own)
    shared = key_numbers(rows.keys_NK), rows.own, scale, bias, rule.targets == "masked"
    image = Similarities(rows.image_NE[own], rows.text_NE, rows.has_image_N[own], rows.has_text_N, *shared)
    if image.is_whole:
        return [image]
    return [image, Similarities(rows.text_NE[own], rows.image_NE, rows.has_text_N[own], rows.has_image_N, *shared)]


def _blocks(sides: Sequence[Similarities], chunk: int, kept: Kept | None = None) -> list[Iterable[Block]]:
    """Of each side: as they were kept, or computed."""
    if kept is not None and kept.blocks:
        found, kept.blocks, kept.sides = kept.blocks, [], []
        return [[block] for block in found]
    spare = sides[0].spare_room(chunk)
    return [side.blocks(chunk, spare) for side in sides]


def _products(side: Similarities, blocks: Iterable[Block], weights: Callable[[Block], Tensor]) -> list[Tensor]:
    """Eq. (6) without the scale: of the anchors [n, E]; of a whole side, of the candidates [N, E], too."""
    of_anchor_nE = torch.empty_like(side.anchor_nE)
    of_candidate_NE = torch.empty_like(side.candidate_NE)
    for number, block in enumerate(blocks):
        own = side.among_own(block.rows)
        weight_RN = weights(block)
        torch.mm(weight_RN, side.candidate_NE, out=of_anchor_nE[own])
        if side.is_whole and number == 0:
            torch.mm(weight_RN.T, side.anchor_nE[own], out=of_candidate_NE)
        elif side.is_whole:
            of_candidate_NE.addmm_(weight_RN.T, side.anchor_nE[own])
    return [of_anchor_nE, of_candidate_NE] if side.is_whole else [of_anchor_nE]


class _Softmax:
    """Eq. (4) and (5), from every row's statistics."""

    def __init__(self, rows: Rows, sides: Sequence[Similarities], statistics_2N4: Tensor, rule: Rule) -> None:
        self._rows, self._sides, self._statistics_2N4 = rows, sides, statistics_2N4
        self._shares = rule.targets == "shared"
        self.factor = 1.0
        log_sum_2N, mass_2N = statistics_2N4[..., LOG_SUM], statistics_2N4[..., MASS]
        self._is_anchor_2N = mass_2N > 0
        self._num_anchors_2 = self._is_anchor_2N.sum(1).clamp_min(1).to(log_sum_2N.dtype)
        twice_21 = 2 * self._num_anchors_2[:, None]
        # Of rows that are no anchors: exp(logit - inf) = 0.
        self._less_2N = torch.where(self._is_anchor_2N, log_sum_2N + twice_21.log(), math.inf)
        self._share_2N = torch.where(self._is_anchor_2N, 1 / (twice_21 * mass_2N.clamp_min(1)), 0)

    def weights(self, d: int, block: Block) -> Tensor:
        """G of Eq. (5), [R, N], in the room of the block's logits."""
        weight_RN, spare_RN = block.logits_RN, block.spare_RN
        torch.sub(weight_RN, self._less_2N[d, block.rows, None], out=spare_RN).exp_()
        weight_RN.sub_(self._less_2N[1 - d]).exp_().add_(spare_RN)
        of_row_R, of_column_N = self._share_2N[d, block.rows], self._share_2N[1 - d]
        if self._shares and block.same_RN is not None:
            spare_RN.copy_(block.same_RN)
            weight_RN.addcmul_(spare_RN, of_row_R[:, None], value=-1).addcmul_(spare_RN, of_column_N, value=-1)
        of_itself_R = (of_row_R + of_column_N[block.rows]) * self._sides[d].both(block.rows)
        block.with_itself(weight_RN).sub_(of_itself_R)
        return weight_RN

    def sums(self) -> dict[str, Tensor]:
        """`Gradients.sums` but for log_scale."""
        own = slice(*self._rows.own)
        log_sum_2n, mass_2n, positive_2n, right_2n = self._statistics_2N4[:, own].unbind(-1)
        of_anchors = log_sum_2n - positive_2n / mass_2n.clamp_min(1), right_2n, mass_2n
        losses, accuracies, positives = (
            torch.where(self._is_anchor_2N[:, own], x_2n, 0).sum(1) / self._num_anchors_2 for x_2n in of_anchors
        )
        return {
            "loss_image": losses[0],
            "loss_text": losses[1],
            "bias": torch.zeros_like(losses[0]),
            "accuracy_image": accuracies[0],
            "accuracy_text": accuracies[1],
            "positives": positives[0],
            "empty": (~self._is_anchor_2N.any()).to(losses.dtype) * _part_of(self._rows),
        }


class _Sigmoid:
    """Eq. (8) and (9); no row needs what another has found."""

    def __init__(self, rows: Rows, sides: Sequence[Similarities], rule: Rule) -> None:
        assert sides[0].bias is not None, "the sigmoid loss has a bias"
        self._rows, self._sides = rows, sides
        self._shares = rule.targets == "shared"
        self._anchors = Anchors(sides, shares=self._shares, weighs=False)
        both_N = rows.has_image_N & rows.has_text_N
        self._both_n = both_N[slice(*rows.own)]
        self._num_pairs = both_N.sum().to(rows.image_NE.dtype)
        self.factor = torch.where(self._num_pairs > 0, 1 / self._num_pairs, 0)  # 1 / N_p of Eq. (8)
        self._losses: list[list[Tensor]] = [[] for _ in sides]
        self._of_bias: list[Tensor] = []

    def weights(self, d: int, block: Block) -> Tensor:
        """G of Eq. (9) without 1 / N_p, [R, N], in the room of the block's logits."""
        self._anchors.see(d, block)
        self._turn_positives(d, block)
        self._losses[d].append(softplus(block.logits_RN, threshold=LINEAR_FROM, out=block.spare_RN).sum())
        block.logits_RN.sigmoid_()
        self._turn_positives(d, block)
        if d == 0:
            self._of_bias.append(block.logits_RN.sum())
        return block.logits_RN

    def _turn_positives(self, d: int, block: Block) -> None:
        """Other signs for what belongs to positives: -y times the logit is what is to be low."""
        if self._shares and block.same_RN is not None:
            same_RN = block.spare_RN.copy_(block.same_RN)
            block.logits_RN.addcmul_(block.logits_RN, same_RN, value=-2)
        itself_R = block.with_itself(block.logits_RN)
        itself_R.copy_(torch.where(self._sides[d].both(block.rows), -itself_R, itself_R))

    def sums(self) -> dict[str, Tensor]:
        """`Gradients.sums` but for log_scale, once all blocks have been seen."""
        losses = [torch.stack(found).sum() * self.factor for found in self._losses]
        statistics_2n4 = self._anchors.statistics() * (self._both_n * self.factor)[:, None]
        return {
            "loss_image": losses[0],
            "loss_text": losses[-1],
            "bias": torch.stack(self._of_bias).sum() * self.factor,
            "accuracy_image": statistics_2n4[0, :, RIGHT].sum(),
            "accuracy_text": statistics_2n4[1, :, RIGHT].sum(),
            "positives": statistics_2n4[0, :, MASS].sum(),
            "empty": (self._num_pairs == 0).to(self.factor.dtype) * _part_of(self._rows),
        }
