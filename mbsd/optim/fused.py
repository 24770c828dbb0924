"""The two passes of LAMB over a list of tensors, made of torch's own fused kernels.

The norms stand between the passes, so a step of LAMB moves at least 10 words per parameter where AdamW moves 7. On a
CPU the first pass works on blocks that fit the last-level cache, so that norms and decay do not read memory again.

Shape legend: P tensors, each of any shape; w weights, m and v moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_BLOCK = 1 << 20  # elements: w, u, m and v of a block take 16 MiB; smaller blocks lose time in calls


@dataclass(frozen=True)
class Adam:
    """The settings of Adam's update, as in `Lamb`."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    bias_correction: bool


@dataclass(frozen=True)
class Operands:
    """What a step reads and writes: P tensors of each kind, all on one device."""

    w_P: list[Tensor]
    g_P: list[Tensor]
    m_P: list[Tensor]
    v_P: list[Tensor]
    steps_P: list[Tensor]  # 0-d float32 on the device: number of steps of each, this one included


def step_counts(steps_P: list[int], bias_correction: bool, device: torch.device) -> list[Tensor]:
    """Return `Operands.steps_P`, filled on the device, so that nothing is copied from the host."""
    # The CUDA kernel reads four bytes as a float32 whatever the tensor holds. At step ∞ both bias corrections are 1.
    counts = {
        n: torch.full((), n if bias_correction else math.inf, dtype=torch.float32, device=device) for n in set(steps_P)
    }
    return [counts[n] for n in steps_P]


def adamw_step(x: Operands, adam: Adam, lr: float) -> None:
    """Make one step of AdamW in place: w ← w - lr (m̂ / (√v̂ + eps) + weight_decay w), LAMB's step at ratio 1."""
    torch._fused_adamw_(
        x.w_P, x.g_P, x.m_P, x.v_P, [], x.steps_P, lr=lr, beta1=adam.betas[0], beta2=adam.betas[1],
        weight_decay=adam.weight_decay, eps=adam.eps, amsgrad=False, maximize=False,
    )  # fmt: skip


def first_pass(x: Operands, adam: Adam) -> Tensor:
    """Update the moments, overwrite the gradients with MINUS the updates u, return norms_2P: ‖w‖ and ‖u‖ in float64.

    u = m̂ / (√v̂ + eps) + weight_decay w. torch's fused AdamW computes param (1 - lr decay) - lr m̂ / (√v̂ + eps): with
    lr = decay = 1 and the gradient in the place of the parameter, it leaves - m̂ / (√v̂ + eps) there, exactly.
    """
    in_place = Adam(adam.betas, adam.eps, 1.0, adam.bias_correction)
    if x.w_P[0].device.type != "cpu":
        adamw_step(Operands(x.g_P, x.g_P, x.m_P, x.v_P, x.steps_P), in_place, lr=1.0)
        if adam.weight_decay:
            torch._foreach_add_(x.g_P, x.w_P, alpha=-adam.weight_decay)
        return torch.stack([norms(x.w_P), norms(x.g_P)])
    squares = []
    for w, u, m, v, step in zip(x.w_P, x.g_P, x.m_P, x.v_P, x.steps_P, strict=True):
        of_blocks = []
        for w_b, u_b, m_b, v_b in zip(*map(_blocks, (w, u, m, v)), strict=True):
            adamw_step(Operands([u_b], [u_b], [m_b], [v_b], [step]), in_place, lr=1.0)
            if adam.weight_decay:
                u_b.add_(w_b, alpha=-adam.weight_decay)
            of_blocks.append((_square(w_b), _square(u_b)))
        squares.append(torch.stack([_sum(of_one) for of_one in zip(*of_blocks, strict=True)]))
    return torch.stack(squares, dim=1).sqrt_()


def second_pass(w_P: list[Tensor], minus_u_P: list[Tensor], rates_P: Tensor) -> None:
    """Update w ← w - rate · u in place; rates_P is lr times the trust ratio of each tensor."""
    for w, minus_u, rate in zip(w_P, minus_u_P, rates_P.unbind(), strict=True):
        w.addcmul_(minus_u, rate)


def norms(tensors_P: list[Tensor]) -> Tensor:
    """Return the 2-norms of P ≥ 1 tensors, norms_P in float64."""
    if tensors_P[0].device.type != "cpu":
        return torch.stack(list(torch._foreach_norm(tensors_P))).double()
    return torch.stack([_sum(map(_square, _blocks(t))) for t in tensors_P]).sqrt_()


def _blocks(tensor: Tensor) -> Sequence[Tensor]:
    """Views of a tensor that fit the cache; a tensor that is not contiguous stays whole."""
    return tensor.view(-1).split(CPU_BLOCK) if tensor.is_contiguous() and tensor.numel() > CPU_BLOCK else (tensor,)


def _square(block: Tensor) -> Tensor:
    """‖block‖², 0-d, in float32 or float64."""
    # A dot product: torch's norm is several times slower on CPUs, and twenty times where it sums in float64.
    flat = block.reshape(-1)
    flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    return torch.dot(flat, flat)


def _sum(squares: Iterable[Tensor]) -> Tensor:
    """The sum over blocks, in float64."""
    return torch.stack(list(squares)).double().sum()
