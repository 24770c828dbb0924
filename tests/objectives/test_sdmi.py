"""SDMI against the paper's equations 3-11, written again with plain numbers (`decimals.py`)."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal

import pytest
import torch
from torch import Tensor

from mbsd.objectives.sdmi import SdmiLoss, bernoulli_kl, match_loss, sdmi_loss
from tests.objectives.decimals import (
    TERMS,
    TOLERANCE,
    VARIANTS,
    decimals,
    kl_divergence,
    reference,
    reference_gradients,
    sigmoid,
)


def assert_near(found: Tensor, expected: Tensor, what: str, floor: float = 0.0) -> None:
    """The difference's norm is at most `TOLERANCE` of the expected norm; where 0 is expected, exactly 0 is found."""
    difference = (found.double() - expected.double()).norm().item()
    allowed = TOLERANCE * expected.double().norm().item() + floor
    assert difference <= allowed, f"{what}: {found} instead of {expected}, apart by {difference:.2e} > {allowed:.2e}"


def check(z_VB: Tensor, h_VBD: Tensor, y: list[int], floor: float = 0.0, **options: object) -> SdmiLoss:
    """Compare value and gradients of sdmi_loss in float32 with the reference."""
    options = {"variant": "paper", "unimodal_losses": True, "distillation": True, "weight": "adaptive", **options}
    z_VB, h_VBD = z_VB.clone().requires_grad_(), h_VBD.clone().requires_grad_()
    found = sdmi_loss(z_VB, h_VBD, torch.tensor(y, dtype=torch.float32), **options)
    expected = reference(
        decimals(z_VB.detach()), decimals(h_VBD.detach()), y, decimals(z_VB.detach()), decimals(h_VBD.detach()),
        **options,
    )  # fmt: skip
    for name in (*TERMS, "weight"):
        value = getattr(found, name)
        assert value.dtype == torch.float32 and value.shape == ()
        assert_near(value.detach(), torch.tensor(float(expected[name]), dtype=torch.float64), name, floor)
    names = ("loss", "kl", "rs")
    gradients = reference_gradients(z_VB.detach(), h_VBD.detach(), y, names, **options)
    for name in names:
        by_z, by_h = torch.autograd.grad(
            getattr(found, name), (z_VB, h_VBD), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert_near(by_z, gradients[name][0], f"d {name} / d z", floor)
        assert_near(by_h, gradients[name][1], f"d {name} / d h", floor)
    return found


def random_batch(seed: int, n: int, width: int = 3, spread: float = 2.0) -> tuple[Tensor, Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    z_VB = spread * torch.randn(3, n, generator=generator)
    h_VBD = torch.randn(3, n, width, generator=generator)
    return z_VB, h_VBD, torch.randint(0, 2, (n,), generator=generator).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_random_batches(variant: str, seed: int) -> None:
    z_VB, h_VBD, y = random_batch(seed, 6 + seed)
    assert set(y) == {0, 1}
    found = check(z_VB, h_VBD, y, variant=variant)
    assert found.kl > 1e-3 and found.rs > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weight", ["adaptive", 0.3, 1.0])
@pytest.mark.parametrize(("unimodal_losses", "distillation"), [(False, False), (True, False), (False, True)])
def test_switches(variant: str, weight: str | float, unimodal_losses: bool, distillation: bool) -> None:
    z_VB, h_VBD, y = random_batch(11, 5, width=2)
    check(
        z_VB, h_VBD, y, variant=variant, weight=weight, unimodal_losses=unimodal_losses, distillation=distillation
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_constant_weight(variant: str, weight: float) -> None:
    check(*random_batch(12, 6), variant=variant, weight=weight)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("weight", ["adaptive", 0.5])
def test_one_sample(variant: str, label: int, weight: str | float) -> None:
    z_VB, h_VBD, _ = random_batch(20 + label, 1)
    check(z_VB, h_VBD, [label], variant=variant, weight=weight)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_one_label_only(variant: str, labels: list[int]) -> None:
    z_VB, h_VBD, _ = random_batch(30, 5)
    check(z_VB, h_VBD, labels, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weight", ["adaptive", 0.5])
def test_no_sample_selected(variant: str, weight: str | float) -> None:
    """Both views wrong everywhere, or undecided at exactly 0.5: nothing is distilled, and no gradient is NaN."""
    z_VB, h_VBD, _ = random_batch(40, 4)
    y = [0, 1, 0, 1]
    side = 2 * torch.tensor(y) - 1
    z_VB[1:] = -side * z_VB[1:].abs()
    z_VB[1:, 3] = torch.tensor([0.0, -1.0])
    found = check(z_VB, h_VBD, y, variant=variant, weight=weight)
    assert found.kl == 0 and found.rs == 0 and found.weight == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_from_one_direction(variant: str) -> None:
    """The image is always the stronger view: the released mean over the text's selected samples is 0, not 0 / 0."""
    z_VB, h_VBD, y = random_batch(50, 5)
    side = 2 * torch.tensor(y) - 1
    z_VB[2] = side * (z_VB[1].abs() + 1)
    assert check(z_VB, h_VBD, y, variant=variant).text_stronger == 0
    z_VB[[1, 2]] = z_VB[[2, 1]]
    assert check(z_VB, h_VBD, y, variant=variant).text_stronger == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_ties_weigh_nothing(variant: str) -> None:
    z_VB, h_VBD, y = random_batch(60, 6)
    z_VB[2, :3] = z_VB[1, :3]
    check(z_VB, h_VBD, y, variant=variant)
    z_VB[2] = z_VB[1]
    found = check(z_VB, h_VBD, y, variant=variant)
    assert found.kl == 0 and found.rs == 0


def test_a_tie_under_a_constant_weight_makes_the_text_the_student() -> None:
    """Eq. 6's first case, p^w = p^t where p^s = p^v, holds at a tie; only a constant weight lets it show."""
    z_VB, h_VBD, _ = random_batch(61, 2)
    z_VB[1:] = torch.tensor([2.0, -2.0])
    check(z_VB, h_VBD, [1, 0], floor=1e-8, weight=0.5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("low", [4.0, 8.0, 14.0])
def test_a_well_learned_batch(variant: str, low: float) -> None:
    """Every view right and sure: w, the cross-entropies and their gradients are differences of numbers near 1."""
    z_VB, h_VBD, y = random_batch(70, 5)
    side = 2 * torch.tensor(y) - 1
    generator = torch.Generator().manual_seed(71)
    check(side * (low + 2 * torch.rand(3, 5, generator=generator)), h_VBD, y, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weight", ["adaptive", 0.5])
def test_saturated_logits(variant: str, weight: str | float) -> None:
    """Every sign of +-80 (and 0) in both views under both labels: finite, and still the paper's value and gradient."""
    cells = [(t, v, y) for t in (-80.0, 0.0, 80.0) for v in (-80.0, 1.0, 80.0) for y in (0, 1) if t != v]
    z_VB = torch.tensor([[80.0 * (-1) ** i for i in range(len(cells))], [c[0] for c in cells], [c[1] for c in cells]])
    generator = torch.Generator().manual_seed(80)
    h_VBD = torch.randn(3, len(cells), 2, generator=generator)
    for signs in (z_VB, -z_VB):
        found = check(signs, h_VBD, [c[2] for c in cells], variant=variant, weight=weight)
        assert all(torch.isfinite(getattr(found, name)) for name in TERMS)


@pytest.mark.parametrize("seed", range(40))
def test_any_batch(seed: int) -> None:
    """Quarters from -15 to 15 for logits: views that tie, lean to one side, are sure and right, or sure and wrong."""
    rng = random.Random(seed)
    n = rng.randint(1, 3)
    widest = rng.choice([2, 8, 60])
    variant, weight = rng.choice(VARIANTS), rng.choice(["adaptive", 0.25])
    z_VB = torch.tensor([[rng.randint(-widest, widest) / 4 for _ in range(n)] for _ in range(3)])
    # A tie under a constant weight has its own test.
    z_VB[2] += torch.where(z_VB[1] == z_VB[2], 0.0 if weight == "adaptive" else 0.25, 0.0)
    h_VBD = torch.tensor([[[rng.gauss(0, 1)] for _ in range(n)] for _ in range(3)])
    check(z_VB, h_VBD, [rng.randint(0, 1) for _ in range(n)], variant=variant, weight=weight)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_teacher_of_kl_is_constant(variant: str) -> None:
    """d L_KL / d z_strong is 0 and d L_KL / d z_weak is not; h has no part in it."""
    z_VB, h_VBD, y = random_batch(90, 8)
    z_VB.requires_grad_()
    h_VBD.requires_grad_()
    kl = sdmi_loss(z_VB, h_VBD, torch.tensor(y), variant=variant).kl
    by_z, by_h = torch.autograd.grad(kl, (z_VB, h_VBD), allow_unused=True)
    assert by_h is None or not by_h.any()
    assert not by_z[0].any()
    side = 2 * torch.tensor(y) - 1
    strong = torch.where(side * z_VB[1] > side * z_VB[2], 1, 2)
    samples = torch.arange(8)
    right = (side * z_VB[strong, samples]).detach() > 0
    assert right.any() and not right.all()
    assert not by_z[strong, samples].any()
    assert (by_z[3 - strong, samples] != 0).equal(right)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_teacher_of_rs(variant: str) -> None:
    """Paper: h_strong and every z (so also w) are constant. Released: both sides move, by opposite gradients."""
    z_VB, h_VBD, y = random_batch(91, 8)
    z_VB.requires_grad_()
    h_VBD.requires_grad_()
    rs = sdmi_loss(z_VB, h_VBD, torch.tensor(y), variant=variant).rs
    by_z, by_h = torch.autograd.grad(rs, (z_VB, h_VBD), allow_unused=True, materialize_grads=True)
    assert not by_z.any() and not by_h[0].any()
    side = 2 * torch.tensor(y) - 1
    strong = torch.where(side * z_VB[1] > side * z_VB[2], 1, 2)
    samples = torch.arange(8)
    assert by_h[3 - strong, samples].any()
    if variant == "paper":
        assert not by_h[strong, samples].any()
    else:
        assert by_h[strong, samples].equal(-by_h[3 - strong, samples])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_low_precision_inputs_are_computed_in_float32(dtype: torch.dtype, variant: str) -> None:
    z_VB, h_VBD, y = random_batch(100, 6)
    z_VB[:, 0] = torch.tensor([80.0, -80.0, 80.0])
    z_VB[:, 1] = torch.tensor([12.0, 11.0, 13.0])
    low_z, low_h = z_VB.to(dtype).requires_grad_(), h_VBD.to(dtype).requires_grad_()
    wide_z, wide_h = low_z.detach().float().requires_grad_(), low_h.detach().float().requires_grad_()
    low = sdmi_loss(low_z, low_h, torch.tensor(y, dtype=dtype), variant=variant)
    wide = sdmi_loss(wide_z, wide_h, torch.tensor(y), variant=variant)
    for name in (*TERMS, "weight", "text_stronger"):
        assert getattr(low, name).dtype == torch.float32
        assert getattr(low, name).equal(getattr(wide, name))
    low.loss.backward()
    wide.loss.backward()
    assert low_z.grad.equal(wide_z.grad.to(dtype)) and low_h.grad.equal(wide_h.grad.to(dtype))
    assert low_z.grad.isfinite().all() and low_h.grad.isfinite().all()
    assert match_loss(low_z[0], torch.tensor(y)).dtype == torch.float32


def test_float64_inputs_stay_float64() -> None:
    z_VB, h_VBD, y = random_batch(101, 6)
    z_VB, h_VBD = z_VB.double(), h_VBD.double()
    options = {"variant": "paper", "unimodal_losses": True, "distillation": True, "weight": "adaptive"}
    found = sdmi_loss(z_VB, h_VBD, torch.tensor(y)).loss
    z, h = decimals(z_VB), decimals(h_VBD)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(float(reference(z, h, y, z, h, **options)["loss"]), rel=1e-13)


@pytest.mark.parametrize("a", [-80.0, -9.0, -0.5, 0.0, 3.0, 80.0])
@pytest.mark.parametrize("b", [-80.0, -4.0, 0.5, 0.0, 9.0, 80.0])
def test_bernoulli_kl(a: float, b: float) -> None:
    za = torch.tensor(a, requires_grad=True)
    found = bernoulli_kl(za, torch.tensor(b))
    (slope,) = torch.autograd.grad(found, za)
    expected = kl_divergence(sigmoid(Decimal(a)), sigmoid(Decimal(b)))
    p = sigmoid(Decimal(a))
    assert found.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-7)
    # d/dz of sum p log(p / q) is p (1 - p) (z_a - z_b), by hand.
    assert slope.item() == pytest.approx(float(p * (1 - p) * (Decimal(a) - Decimal(b))), rel=1e-5, abs=1e-7)


def traced(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, fullgraph=True, backend="eager")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weight", ["adaptive", 0.5])
def test_one_graph_without_host_synchronisation(variant: str, weight: str | float) -> None:
    """It traces as one graph, and runs on the meta device, where reading any value would raise."""
    z_VB, h_VBD, y = random_batch(110, 6)
    labels_B = torch.tensor(y, dtype=torch.float32)

    def terms(z_VB: Tensor, h_VBD: Tensor, labels_B: Tensor) -> tuple[Tensor, ...]:
        found = sdmi_loss(z_VB, h_VBD, labels_B, variant=variant, weight=weight)
        return tuple(getattr(found, name) for name in (*TERMS, "weight", "text_stronger"))

    eager = terms(z_VB, h_VBD, labels_B)
    for found, expected in zip(traced(terms)(z_VB, h_VBD, labels_B), eager, strict=True):
        assert found.equal(expected)
    meta_z = z_VB.to("meta").requires_grad_()
    on_meta = terms(meta_z, h_VBD.to("meta"), labels_B.to("meta"))
    assert all(term.shape == () and term.device.type == "meta" for term in on_meta)
    on_meta[0].backward()
    assert meta_z.grad.shape == z_VB.shape
