"""SDMI in decimals of 80 digits: the paper's equations 3-11 with plain numbers, one sample at a time.

It works in probabilities with min, max and cases, as the paper prints them: 1 - p does not round to 0 here at |z| = 80,
which it does in float64. Its gradients are central differences of the student's variables alone; the teacher's are a
separate, constant copy.
"""

from __future__ import annotations

from decimal import Decimal, getcontext
from functools import lru_cache

import torch
from torch import Tensor

getcontext().prec = 80
STEP = Decimal("1e-20")
TERMS = ("loss", "qi", "qt", "qv", "kl", "rs")
VARIANTS = ("paper", "released")
TOLERANCE = 1e-5

Logits = list[list[Decimal]]
Representations = list[list[list[Decimal]]]


@lru_cache(maxsize=100_000)
def sigmoid(z: Decimal) -> Decimal:
    return 1 / (1 + (-z).exp())


@lru_cache(maxsize=100_000)
def log(p: Decimal) -> Decimal:
    return p.ln()


def kl_divergence(a: Decimal, b: Decimal) -> Decimal:
    return a * (log(a) - log(b)) + (1 - a) * (log(1 - a) - log(1 - b))


def cross_entropy(z: list[Decimal], y: list[int]) -> Decimal:
    total = Decimal(0)
    for z_i, y_i in zip(z, y, strict=True):
        p = sigmoid(z_i)
        total += y_i * log(p) + (1 - y_i) * log(1 - p)
    return -total / len(y)


def reference(  # noqa: PLR0913 (the parameters of the function under test)
    z: Logits,
    h: Representations,
    y: list[int],
    teacher_z: Logits,
    teacher_h: Representations,
    *,
    variant: str,
    unimodal_losses: bool,
    distillation: bool,
    weight: str | float,
) -> dict[str, Decimal]:
    """The terms of Eq. 11; what the teacher says is read from `teacher_z` and `teacher_h`."""
    n = len(y)
    kl_of: list[Decimal] = []
    rs_of: list[Decimal] = []
    w_of: list[Decimal] = []
    strong_of: list[int] = []
    right_of: list[bool] = []
    for i in range(n):
        p_t, p_v = sigmoid(teacher_z[1][i]), sigmoid(teacher_z[2][i])
        p_s = min(p_t, p_v) if y[i] == 0 else max(p_t, p_v)  # Eq. 6, its cases in the order they are printed
        strong, weak = (2, 1) if p_s == p_v else (1, 2)
        p_w = p_t if weak == 1 else p_v
        if y[i] == 0 and p_s < Decimal("0.5"):  # Eq. 9
            w, right = p_w - p_s, True
        elif y[i] == 1 and p_s > Decimal("0.5"):
            w, right = p_s - p_w, True
        else:
            w, right = Decimal(0), False
        if weight != "adaptive":
            w = Decimal(weight) if right else Decimal(0)
        student_p = sigmoid(z[weak][i])
        kl_of.append(w * (kl_divergence(student_p, p_s) if variant == "paper" else kl_divergence(p_s, student_p)))
        h_s = teacher_h[strong][i] if variant == "paper" else h[strong][i]
        h_w = h[weak][i]
        rs_of.append(w * sum((s - t) ** 2 for s, t in zip(h_s, h_w, strict=True)) / len(h_w))
        w_of.append(w)
        strong_of.append(strong)
        right_of.append(right)

    def reduce(values: list[Decimal]) -> Decimal:
        if variant == "paper":
            return sum(values, Decimal(0)) / n
        total = Decimal(0)
        for direction in (1, 2):
            chosen = [values[i] for i in range(n) if right_of[i] and strong_of[i] == direction]
            total += sum(chosen, Decimal(0)) / (len(chosen) + Decimal("1e-6"))
        return total

    terms = {"qi": cross_entropy(z[0], y), "qt": cross_entropy(z[1], y), "qv": cross_entropy(z[2], y)}
    terms |= {"kl": reduce(kl_of), "rs": reduce(rs_of), "weight": sum(w_of, Decimal(0)) / n}
    terms["loss"] = terms["qi"]
    if unimodal_losses:
        terms["loss"] += terms["qt"] + terms["qv"]
    if distillation:
        terms["loss"] += terms["kl"] + terms["rs"]
    return terms


def decimals(tensor: Tensor) -> list:
    if tensor.ndim == 0:
        return Decimal(tensor.item())
    return [decimals(row) for row in tensor]


def reference_gradients(
    z_VB: Tensor, h_VBD: Tensor, y: list[int], names: tuple[str, ...], **options: object
) -> dict[str, tuple[Tensor, Tensor]]:
    """d term / d z and d term / d h, float64, by central differences with the teacher held."""
    teacher_z, teacher_h = decimals(z_VB), decimals(h_VBD)
    z, h = decimals(z_VB), decimals(h_VBD)

    def slope(row: list[Decimal], index: int) -> dict[str, float]:
        centre = row[index]
        row[index] = centre + STEP
        above = reference(z, h, y, teacher_z, teacher_h, **options)
        row[index] = centre - STEP
        below = reference(z, h, y, teacher_z, teacher_h, **options)
        row[index] = centre
        return {name: float((above[name] - below[name]) / (2 * STEP)) for name in names}

    by_z = [[slope(row, i) for i in range(len(row))] for row in z]
    by_h = [[[slope(row, i) for i in range(len(row))] for row in rows] for rows in h]
    return {
        name: (
            torch.tensor([[cell[name] for cell in row] for row in by_z], dtype=torch.float64),
            torch.tensor([[[cell[name] for cell in row] for row in rows] for rows in by_h], dtype=torch.float64),
        )
        for name in names
    }
