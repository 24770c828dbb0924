"""The contrastive losses and their gradients in closed form, against `contrastive_by_loops.py` in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from mbsd.batch import NO_KEY
from mbsd.objectives import similarities
from mbsd.objectives.contrastive import Kept, Rows, Rule, loss_and_gradients, row_statistics, watched
from mbsd.objectives.similarities import Block
from tests.objectives.contrastive_by_loops import (
    Case,
    draw,
    losses_by_loops,
    textbook,
    watched_by_loops,
)

RULES = [Rule(loss, targets, chunk=4) for loss in ("softmax", "sigmoid") for targets in ("shared", "masked", "own")]
SOFTMAX = [rule for rule in RULES if rule.loss == "softmax"]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.loss}-{rule.targets}")


@dataclass(frozen=True)
class Solved:
    """What all ranks together found."""

    image_NE: Tensor
    text_NE: Tensor
    sums: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        return (self.sums["loss_image"] + self.sums["loss_text"]) / 2

    @property
    def gradients(self) -> list[Tensor]:
        return [self.image_NE, self.text_NE, self.sums["log_scale"][None], self.sums["bias"][None]]


def ranks_of(case: Case, cuts: Sequence[int]) -> list[Rows]:
    """Rank r has the rows from cut r to cut r + 1."""
    shared = case.image_NE, case.text_NE, case.keys_NK, case.has_image_N, case.has_text_N
    bounds = [0, *cuts, len(case.image_NE)]
    return [Rows(*shared, own) for own in zip(bounds, bounds[1:], strict=False)]


def solve(case: Case, rule: Rule, cuts: Sequence[int] = (), *, keep: bool = True) -> Solved:
    """Both calls, as ranks make them; cuts: where the next rank's rows begin."""
    ranks = ranks_of(case, cuts)
    kept = [Kept() if keep else None for _ in ranks]
    found = [row_statistics(rows, case.scale, rule, left) for rows, left in zip(ranks, kept, strict=True)]
    statistics = torch.cat(found, 1)
    bias = case.bias if rule.loss == "sigmoid" else None
    parts = [
        loss_and_gradients(rows, statistics, case.scale, bias, rule, left)
        for rows, left in zip(ranks, kept, strict=True)
    ]
    sums = {name: torch.stack([part.sums[name] for part in parts]).sum() for name in parts[0].sums}
    return Solved(torch.cat([part.image_nE for part in parts]), torch.cat([part.text_nE for part in parts]), sums)


def assert_near(found: Tensor, expected: Tensor, relative: float, what: str, floor: float = 0.01) -> None:
    apart = (found.double() - expected.double()).norm().item()
    allowed = relative * (expected.double().norm().item() + floor)
    assert apart <= allowed, f"{what}: apart by {apart:.2e} > {allowed:.2e}"


def check(case: Case, rule: Rule, cuts: Sequence[int] = (), relative: float = 1e-12) -> Solved:
    """Value, gradients and what is watched are the oracle's."""
    found = solve(case, rule, cuts)
    of_image, of_text = losses_by_loops(case, rule)
    for name, expected in (("loss_image", of_image), ("loss_text", of_text)):
        assert_near(found.sums[name], torch.tensor(expected, dtype=torch.float64), relative, name)
    loss, gradients = textbook(case, rule)
    assert_near(found.loss, loss, relative, "loss")
    names = ("image", "text", "log scale", "bias")
    # A logit's last digit grows with the scale, and the gradient multiplies it by the scale again.
    floor = 0.01 + float(case.scale) ** 2 / 1000
    for name, mine, expected in zip(names, found.gradients, gradients, strict=True):
        assert_near(mine, expected, relative, f"gradient of {name}", floor)
    for name, number in watched_by_loops(case, rule).items():
        assert found.sums[name].item() == pytest.approx(number, abs=1e-6), name
    return found


@each_rule
@pytest.mark.parametrize("n", [2, 12])
def test_value_and_gradients_are_the_oracles(rule: Rule, n: int) -> None:
    for seed in range(4):
        check(draw(seed, n), rule)
        found = check(draw(seed, n, size=64).to(torch.float32), rule, relative=1e-6)
        assert found.loss.dtype == found.image_NE.dtype == torch.float32


flags = st.lists(st.booleans(), min_size=9, max_size=9)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_any_batch_on_any_ranks(data: st.DataObject) -> None:
    """Of any keys, gaps, ranks and chunks."""
    n = data.draw(st.integers(2, 9))
    kinds = data.draw(st.integers(0, 3))
    key = st.lists(st.integers(NO_KEY, 3), min_size=kinds, max_size=kinds)
    case = draw(
        data.draw(st.integers(0, 99)),
        n,
        keys_NK=torch.tensor(data.draw(st.lists(key, min_size=n, max_size=n)), dtype=torch.int64).view(n, kinds),
        has_image_N=torch.tensor(data.draw(flags)[:n]),
        has_text_N=torch.tensor(data.draw(flags)[:n]),
        scale=torch.tensor([data.draw(st.sampled_from([0.5, 14.0, 100.0]))], dtype=torch.float64),
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=2)))
    rule = replace(data.draw(st.sampled_from(RULES)), chunk=data.draw(st.sampled_from([1, 2, 7, 1024])))
    check(case, rule, cuts)


def test_own_pairs_of_complete_rows_are_clips_loss() -> None:
    case = draw(0, 10, has_image_N=torch.ones(10).bool(), has_text_N=torch.ones(10).bool())
    found = solve(case, Rule(targets="own"))
    image_NE, text_NE = case.image_NE.requires_grad_(), case.text_NE.requires_grad_()
    loss = image_text_contrastive_loss(case.scale * text_NE @ image_NE.T)
    of_image, of_text = torch.autograd.grad(loss, (image_NE, text_NE))
    assert_near(found.loss, loss.detach(), 1e-12, "loss")
    assert_near(found.image_NE, of_image, 1e-12, "gradient of image")
    assert_near(found.text_NE, of_text, 1e-12, "gradient of text")


def test_the_sigmoid_loss_is_siglips() -> None:
    """As the appendix of the paper prints it: labels = 2 eye(n) - 1; -sum(log_sigmoid(labels * logits)) / n."""
    case = draw(0, 10, has_image_N=torch.ones(10).bool(), has_text_N=torch.ones(10).bool())
    logits = case.image_NE @ case.text_NE.T * case.scale + case.bias
    labels = 2 * torch.eye(10, dtype=torch.float64) - 1
    expected = -F.logsigmoid(labels * logits).sum() / 10
    assert_near(solve(case, Rule("sigmoid", "own")).loss, expected, 1e-12, "loss")


@each_rule
def test_gradcheck(rule: Rule) -> None:
    case = draw(1, 5, size=3)

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, image_NE: Tensor, text_NE: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
            found = solve(replace(case, image_NE=image_NE, text_NE=text_NE, scale=log_scale.exp(), bias=bias), rule)
            ctx.save_for_backward(*found.gradients)
            return found.loss

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            return tuple(gradient * mine for mine in ctx.saved_tensors)

    inputs = [x.clone().requires_grad_() for x in (case.image_NE, case.text_NE, case.scale.log(), case.bias)]
    assert torch.autograd.gradcheck(Loss.apply, inputs, atol=1e-7, rtol=1e-6)


@each_rule
@pytest.mark.parametrize("cuts", [(), (5,), (3, 4)], ids=["1 rank", "2 ranks", "3 ranks"])
def test_chunks_ranks_and_what_is_kept_change_nothing(rule: Rule, cuts: tuple[int, ...]) -> None:
    case = draw(2, 13)
    expected = solve(case, replace(rule, chunk=1), keep=False)
    for chunk in (1, 7, 13):
        for keep in (True, False):
            found = solve(case, replace(rule, chunk=chunk), cuts, keep=keep)
            for mine, other in zip(found.gradients, expected.gradients, strict=True):
                assert_near(mine, other, 1e-12, f"chunk {chunk}")
            for name, value in expected.sums.items():
                assert_near(found.sums[name], value, 1e-12, name)


def test_logits_are_kept_only_where_one_chunk_holds_them() -> None:
    case = draw(2, 13)
    for cuts, chunk, sizes in (((), 13, [13]), ((), 12, []), ((5,), 8, [5, 5]), ((5,), 4, [])):
        rows, kept = ranks_of(case, cuts)[0], Kept()
        row_statistics(rows, case.scale, Rule(chunk=chunk), kept)
        assert [len(block.logits_RN) for block in kept.blocks] == sizes


@each_rule
@pytest.mark.parametrize("cuts", [(), (5,)], ids=["1 rank", "2 ranks"])
def test_a_block_is_no_larger_in_a_larger_batch(
    rule: Rule, cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """13 candidates are more than `WIDE`: the blocks have fewer rows, and nothing else changes."""
    case, sizes = draw(2, 13), []
    expected = solve(case, replace(rule, chunk=6), cuts, keep=False)
    monkeypatch.setattr(similarities, "WIDE", 5)
    monkeypatch.setattr(similarities, "Block", lambda *parts: sizes.append(parts[1].numel()) or Block(*parts))
    found = solve(case, replace(rule, chunk=6), cuts)
    assert max(sizes) == 2 * 13 <= 6 * 5  # chunk x WIDE
    for mine, other in zip(found.gradients, expected.gradients, strict=True):
        assert_near(mine, other, 1e-12, "gradient")
    for name, value in expected.sums.items():
        assert_near(found.sums[name], value, 1e-12, name)


@each_rule
def test_all_rows_one_product(rule: Rule) -> None:
    n = 8
    whole = dict(
        keys_NK=torch.full((n, 1), 7), has_image_N=torch.ones(n).bool(), has_text_N=torch.ones(n).bool()
    )  # fmt: skip
    found = check(draw(3, n, **whole), rule)
    assert all(gradient.isfinite().all() for gradient in found.gradients)
    if rule.loss == "softmax" and rule.targets == "shared":
        assert found.loss >= math.log(n)
        one = torch.ones(n, 5, dtype=torch.float64) / math.sqrt(5)
        equal = solve(draw(3, n, image_NE=one, text_NE=one, **whole), rule)
        assert equal.loss.item() == pytest.approx(math.log(n), abs=1e-12)
        assert_near(equal.image_NE, torch.zeros(n, 5), 1e-12, "gradient")
    if rule.loss == "softmax" and rule.targets == "masked":
        assert found.loss.item() == 0.0  # each row has no candidate but its own
        assert_near(found.image_NE, torch.zeros(n, 5), 1e-12, "gradient")


@each_rule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_highest_temperature(rule: Rule, dtype: torch.dtype) -> None:
    """Logits of -100 to 100; exp(100) is more than float32 holds. Of float32, rounded logits alone are 1e-5."""
    case = draw(4, 12, scale=torch.tensor([100.0], dtype=torch.float64)).to(dtype)
    check(case, rule, (5,), relative=1e-12 if dtype == torch.float64 else 2e-5)
    opposite = replace(case, text_NE=-case.image_NE)
    found = solve(opposite, rule)
    assert found.loss.isfinite() and all(gradient.isfinite().all() for gradient in found.gradients)


NO, YES = torch.zeros(12).bool(), torch.ones(12).bool()
EVEN = torch.arange(12) % 2 == 0
HALF = torch.arange(12) < 6
GAPS = {
    "no picture": (NO, YES),
    "no title": (YES, NO),
    "neither": (NO, NO),
    "none complete": (EVEN, ~EVEN),
    "one picture": (torch.arange(12) == 3, YES),
    "a rank without pictures": (HALF, YES),
    "a rank without titles": (YES, ~HALF),
    "a rank without anything": (HALF, HALF),
}


@each_rule
@pytest.mark.parametrize("gap", GAPS)
def test_missing_modalities(rule: Rule, gap: str) -> None:
    has_image_N, has_text_N = GAPS[gap]
    # A missing modality's vector says nothing, however long it is.
    case = draw(5, 12, has_image_N=has_image_N, has_text_N=has_text_N)
    case = replace(case, image_NE=torch.where(has_image_N[:, None], case.image_NE, 50.0))
    found = check(case, rule, (6,))
    assert not found.image_NE[~has_image_N].any() and not found.text_NE[~has_text_N].any()
    alone = replace(case, keys_NK=torch.full((12, 2), NO_KEY))
    found = check(alone, rule, (6,))
    if not (has_image_N & has_text_N).any():
        assert found.loss.item() == 0.0 and found.sums["empty"].item() == 1.0
        assert all(not gradient.any() for gradient in found.gradients)
    else:
        assert found.sums["empty"].item() == 0.0


@each_rule
def test_a_damaged_picture_is_a_picture_less(rule: Rule) -> None:
    """Its row is left out of the pictures; the rest is as in a batch whose rows never had it."""
    case = draw(6, 9, has_text_N=torch.ones(9).bool(), has_image_N=torch.arange(9) != 4)
    loss = solve(case, rule).loss
    for noise in (0.0, 1.0, -30.0):
        changed = case.image_NE.clone()
        changed[4] = noise
        assert solve(replace(case, image_NE=changed), rule).loss == loss


@each_rule
def test_names_of_keys_and_the_order_of_rows_do_not_matter(rule: Rule) -> None:
    case = draw(7, 12)
    expected = solve(case, rule)
    renamed = torch.where(case.keys_NK == NO_KEY, NO_KEY, 3 - 5 * case.keys_NK)
    kinds = renamed[:, [2, 0, 1]]
    assert_near(solve(replace(case, keys_NK=kinds), rule).loss, expected.loss, 1e-12, "renamed")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    found = solve(case.rows(order), rule)
    assert_near(found.loss, expected.loss, 1e-12, "loss of permuted rows")
    assert_near(found.image_NE, expected.image_NE[order], 1e-12, "gradient of permuted rows")
    swapped = replace(
        case, image_NE=case.text_NE, text_NE=case.image_NE, has_image_N=case.has_text_N, has_text_N=case.has_image_N
    )
    found = solve(swapped, rule)
    assert_near(found.loss, expected.loss, 1e-12, "loss of swapped towers")
    assert_near(found.text_NE, expected.image_NE, 1e-12, "gradient of swapped towers")
    assert_near(found.sums["loss_text"], expected.sums["loss_image"], 1e-12, "loss of titles")


def test_a_key_of_another_kind_or_none_is_no_product() -> None:
    case = draw(8, 4, has_image_N=torch.ones(4).bool(), has_text_N=torch.ones(4).bool())
    crossed = torch.tensor([[1, 2], [2, 1], [NO_KEY, NO_KEY], [NO_KEY, NO_KEY]])
    assert solve(replace(case, keys_NK=crossed), Rule()).sums["positives"] == 1.0


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_equal_rows_of_one_product_get_equal_gradients(loss: Any) -> None:
    case = draw(9, 8, has_image_N=torch.ones(8).bool(), has_text_N=torch.ones(8).bool())
    twice = case.rows(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 2]))
    keys_NK = torch.arange(9)[:, None].clone()
    keys_NK[8] = 2
    found = solve(replace(twice, keys_NK=keys_NK), Rule(loss, "shared", chunk=4))
    assert_near(found.image_NE[8], found.image_NE[2], 1e-12, "gradient of image")
    assert_near(found.text_NE[8], found.text_NE[2], 1e-12, "gradient of text")


def test_a_tie_counts_against_the_anchor() -> None:
    """Collapsed towers are right nowhere, not everywhere."""
    one = torch.ones(6, 5, dtype=torch.float64)
    case = draw(10, 6, image_NE=one, text_NE=one, keys_NK=torch.arange(6)[:, None])
    for rule in RULES:
        assert solve(case, rule).sums["accuracy_image"] == 0.0
        assert solve(case, rule, (2,)).sums["accuracy_text"] == 0.0


def test_what_is_watched_of_the_vectors() -> None:
    n = 40
    case = draw(11, n)
    both_N = case.has_image_N & case.has_text_N
    u, v = case.image_NE, case.text_NE
    expected = {
        "incomplete": 1 - both_N.double().mean(),
        "modality_gap": (u[case.has_image_N].mean(0) - v[case.has_text_N].mean(0)).norm(),
        "alignment": (u - v)[both_N].square().sum(1).mean(),
        "uniformity_image": F.pdist(u[case.has_image_N]).square().mul(-2).exp().mean().log(),
        "uniformity_text": F.pdist(v[case.has_text_N]).square().mul(-2).exp().mean().log(),
    }
    for cuts in ((), (13,), (1, 30)):
        found = [watched(rows) for rows in ranks_of(case, cuts)]
        assert set(found[0]) == set(expected)
        for name, value in expected.items():
            assert_near(torch.stack([part[name] for part in found]).sum(), value, 1e-12, name)
    nothing = watched(ranks_of(replace(case, has_image_N=torch.zeros(n).bool()), ())[0])
    assert all(value.isfinite() for value in nothing.values()) and nothing["incomplete"] == 1.0
    many = draw(12, 2000)
    sample = watched(ranks_of(many, ())[0])["uniformity_text"]
    whole = F.pdist(many.text_NE[many.has_text_N]).square().mul(-2).exp().mean().log()
    assert sample.item() == pytest.approx(whole.item(), abs=0.1)


@each_rule
def test_nothing_is_changed_and_nothing_has_a_graph(rule: Rule) -> None:
    """The caller's tensors stay, even where they ask for gradients themselves."""
    case = draw(13, 9)
    asking = replace(case, scale=case.scale.clone().requires_grad_(), bias=case.bias.clone().requires_grad_())
    found = solve(asking, rule)
    assert not any(x.requires_grad for x in (*found.gradients, *found.sums.values()))
    again = draw(13, 9)
    for name in ("image_NE", "text_NE", "keys_NK", "has_image_N", "has_text_N", "scale", "bias"):
        assert torch.equal(getattr(case, name), getattr(again, name)), name
