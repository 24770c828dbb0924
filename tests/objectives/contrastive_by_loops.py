"""The contrastive losses again: pair by pair with plain numbers, and as a textbook writes them, for autograd.

Neither knows chunks, ranks or logarithms of sums that others have found. Which pairs count is decided here one pair at
a time, from Python sets of keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_KEY
from mbsd.objectives.contrastive import Rule


@dataclass(frozen=True)
class Case:
    """A global batch, scale and bias; see `mbsd.objectives.contrastive.Rows`."""

    image_NE: Tensor
    text_NE: Tensor
    keys_NK: Tensor
    has_image_N: Tensor
    has_text_N: Tensor
    scale: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> Case:
        names = ("image_NE", "text_NE", "scale", "bias")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})

    def rows(self, chosen: Tensor) -> Case:
        names = ("image_NE", "text_NE", "keys_NK", "has_image_N", "has_text_N")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


def draw(seed: int, n: int, size: int = 5, **changes: Any) -> Case:
    """Unit vectors; a third of the rows share some key with another, a fifth lack a modality, some both."""
    generator = torch.Generator().manual_seed(seed)
    image_NE, text_NE = F.normalize(torch.randn(2, n, size, generator=generator, dtype=torch.float64), dim=-1)
    keys_NK = torch.randint(NO_KEY, 2 * n, (n, 3), generator=generator)
    case = Case(
        image_NE,
        text_NE,
        torch.where(keys_NK == NO_KEY, NO_KEY, keys_NK * 1_000_000_007),  # not small numbers, as hashes are not
        torch.rand(n, generator=generator) > 0.2,
        torch.rand(n, generator=generator) > 0.2,
        torch.tensor([14.0], dtype=torch.float64),
        torch.tensor([-6.0], dtype=torch.float64),
    )
    return replace(case, **changes)


def same_product(case: Case) -> list[list[bool]]:
    """P: a row itself, and rows that share a key of the same kind."""
    sets = [{(kind, key) for kind, key in enumerate(row) if key != NO_KEY} for row in case.keys_NK.tolist()]
    return [[i == j or bool(a & b) for j, b in enumerate(sets)] for i, a in enumerate(sets)]


def counted_and_positive(case: Case, targets: str) -> tuple[list[list[bool]], list[list[bool]]]:
    """C of Eq. (1), and which of its pairs are positives; [picture][title]."""
    same, n = same_product(case), range(len(case.image_NE))
    shown = [[bool(case.has_image_N[i] and case.has_text_N[j]) for j in n] for i in n]
    if targets == "masked":
        shown = [[shown[i][j] and (i == j or not same[i][j]) for j in n] for i in n]
    wanted = [[same[i][j] if targets == "shared" else i == j for j in n] for i in n]
    return shown, [[shown[i][j] and wanted[i][j] for j in n] for i in n]


def logits_of(case: Case) -> list[list[float]]:
    u, v, s = case.image_NE.double().tolist(), case.text_NE.double().tolist(), float(case.scale)
    return [[s * math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in v] for x in u]


def losses_by_loops(case: Case, rule: Rule) -> tuple[float, float]:
    """L_I and L_T of Eq. (4), or twice L of Eq. (8)."""
    n = range(len(case.image_NE))
    counted, positive = counted_and_positive(case, rule.targets)
    z = logits_of(case)
    if rule.loss == "sigmoid":
        complete = sum(bool(case.has_image_N[i] and case.has_text_N[i]) for i in n)
        signed = [(1 if positive[i][j] else -1) * (z[i][j] + float(case.bias)) for i in n for j in n if counted[i][j]]
        loss = math.fsum(math.log1p(math.exp(-x)) for x in signed) / complete if complete else 0.0
        return loss, loss
    z_of_titles = [[z[i][j] for i in n] for j in n]
    return (
        _softmax_by_loops(z, counted, positive),
        _softmax_by_loops(z_of_titles, _transposed(counted), _transposed(positive)),
    )


def _softmax_by_loops(z: list[list[float]], counted: list[list[bool]], positive: list[list[bool]]) -> float:
    losses = []
    for logits, among, wanted in zip(z, counted, positive, strict=True):
        if any(wanted):
            log_sum = math.log(math.fsum(math.exp(x) for x, is_in in zip(logits, among, strict=True) if is_in))
            chosen = [x for x, is_in in zip(logits, wanted, strict=True) if is_in]
            losses.append(log_sum - math.fsum(chosen) / len(chosen))
    return math.fsum(losses) / len(losses) if losses else 0.0


def watched_by_loops(case: Case, rule: Rule) -> dict[str, float]:
    """accuracy_image, accuracy_text, positives, empty: as `Gradients.sums` has them on one rank."""
    n = range(len(case.image_NE))
    counted, positive = counted_and_positive(case, rule.targets)
    same, z = same_product(case), logits_of(case)
    complete = [bool(case.has_image_N[i] and case.has_text_N[i]) for i in n]
    found: dict[str, float] = {}
    for name, at in (("image", lambda i, j: (i, j)), ("text", lambda i, j: (j, i))):
        anchors, right, positives = 0, 0, 0
        for i in n:
            pairs = [at(i, j) for j in n]
            mine = [(a, b) for a, b in pairs if positive[a][b]]
            if not (complete[i] if rule.loss == "sigmoid" else mine):
                continue
            anchors, positives = anchors + 1, positives + len(mine)
            best = max((z[a][b] for a, b in pairs if counted[a][b] and same[a][b]), default=-math.inf)
            other = max((z[a][b] for a, b in pairs if counted[a][b] and not same[a][b]), default=-math.inf)
            right += best > other
        found[f"accuracy_{name}"] = right / max(anchors, 1)
        found.setdefault("positives", positives / max(anchors, 1))
        found["empty"] = float(anchors == 0)
    return found


def textbook(case: Case, rule: Rule) -> tuple[Tensor, list[Tensor]]:
    """The loss over the dense [N, N] logits and autograd's gradients: of image, text, log scale and bias."""
    image_NE, text_NE, bias = (x.detach().double().requires_grad_() for x in (case.image_NE, case.text_NE, case.bias))
    log_scale = case.scale.detach().double().log().requires_grad_()
    counted_NN, positive_NN = (torch.tensor(pairs) for pairs in counted_and_positive(case, rule.targets))
    z_NN = log_scale.exp() * image_NE @ text_NE.T
    if rule.loss == "sigmoid":
        signs_NN = torch.where(positive_NN, 1.0, -1.0).double()
        complete = (case.has_image_N & case.has_text_N).sum()
        pairs_NN = torch.where(counted_NN, -F.logsigmoid(signs_NN * (z_NN + bias)), 0)
        loss = pairs_NN.sum() / complete if complete else 0 * pairs_NN.sum()
    else:
        loss = (_dense(z_NN, counted_NN, positive_NN) + _dense(z_NN.T, counted_NN.T, positive_NN.T)) / 2
    inputs = [image_NE, text_NE, log_scale, bias]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return loss.detach(), list(gradients)


def _dense(z_NN: Tensor, counted_NN: Tensor, positive_NN: Tensor) -> Tensor:
    anchors = positive_NN.any(1)
    if not anchors.any():
        return 0 * z_NN.sum()
    z, counted, positive = z_NN[anchors], counted_NN[anchors], positive_NN[anchors]
    log_p = z.masked_fill(~counted, -math.inf).log_softmax(1)
    q = positive.double() / positive.sum(1, keepdim=True)
    return -torch.where(positive, q * log_p, 0).sum(1).mean()


def _transposed(pairs: list[list[bool]]) -> list[list[bool]]:
    return [list(column) for column in zip(*pairs, strict=True)]
