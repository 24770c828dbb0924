"""The optimizer's step: LAMB with one trust ratio per parameter TENSOR, whichever ranks hold its elements.

LAMB is Algorithm 2 of You et al., "Large Batch Optimization for Deep Learning" (2020). Its only quantity that is not
elementwise is a pair of norms per tensor. On ordinary parameters those are local; on the flat slices that DeepSpeed's
ZeRO gives to each rank they are sums over ranks, computed by a `Shard` (made by `mbsd.optim.zero.bind`).

Shape legend: N parameter tensors of a group, P of them (or pieces of them) on this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from mbsd.errors import UserError
from mbsd.optim.fused import Adam, Operands, adamw_step, first_pass, norms, second_pass, step_counts


class Shard(Protocol):
    """The layout of one flat tensor that holds pieces of several parameters."""

    names: tuple[str, ...]  # N
    owned: slice  # the P of the N parameters of which this rank has a piece

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the P views of `flat`, one for each owned piece."""

    def whole_norms(self, norms_2P: Tensor) -> Tensor:
        """Return norms_2N of the whole tensors from the norms of the pieces; collective."""


class Lamb(torch.optim.Optimizer):
    """LAMB. With g the gradient and w the weights of one tensor, at step t:

        m = β₁ m + (1 - β₁) g,    v = β₂ v + (1 - β₂) g²
        u = m̂ / (√v̂ + eps) + weight_decay · w,    m̂ = m / (1 - β₁ᵗ),    v̂ = v / (1 - β₂ᵗ)
        w ← w - lr · r · u,    r = ‖w‖ / ‖u‖, or 1 where either norm is 0

    A param group with `adapt: False` takes r = 1. `max_coeff` and `min_coeff` clamp r (`None`: no bound).
    Only the first step waits for the device: it reads which parameters have no gradient.

    Raises:
        UserError: a setting out of range, named as in DeepSpeed's JSON.
        RuntimeError (in `step`): ZeRO has flattened the parameters and the slices were not bound.
    """

    def __init__(  # noqa: PLR0913 (the keys of optimizer.params in DeepSpeed's JSON)
        self,
        params: ParamsT,
        lr: float = 2e-4,
        betas: Sequence[float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        max_coeff: float | None = None,
        min_coeff: float = 0.0,
    ) -> None:
        for key, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay, "min_coeff": min_coeff}.items():
            expect(_is_number(value) and value >= 0, key, value, "a number ≥ 0")
        expected = "two numbers in [0, 1)"
        pair = isinstance(betas, Sequence) and len(betas) == 2
        expect(pair and all(_is_number(b) and 0 <= b < 1 for b in betas), "betas", betas, expected)
        expect(isinstance(bias_correction, bool), "bias_correction", bias_correction, "true or false")
        bounded = max_coeff is None or (_is_number(max_coeff) and max_coeff >= min_coeff)
        expect(bounded, "max_coeff", max_coeff, "null or a number ≥ min_coeff")
        self.shards: dict[Tensor, Shard] = {}
        # By first tensor of a group: names without gradient in the first step; and names, ratios_N of the last step.
        self.idle: dict[Tensor, frozenset[str]] = {}
        self._ratios: dict[Tensor, tuple[tuple[str, ...], Tensor]] = {}
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "max_coeff": max_coeff,
            "min_coeff": min_coeff,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, and store its tensors' names and shapes, by which `step` detects that they were flattened."""
        super().add_param_group(param_group)
        group, i = self.param_groups[-1], len(self.param_groups) - 1
        group["names"] = group.get("param_names") or [f"{i}.{n}" for n in range(len(group["params"]))]
        group["shapes"] = [tuple(p.shape) for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return the closure's loss, if one is given.

        The gradients of bound slices are overwritten: ZeRO drops them after its step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group, group["params"][0])
        return loss

    def trust_ratios(self) -> dict[str, Tensor]:
        """Return name → trust ratio (0-d, on the device) of the last step, for the tensors of adapted groups."""
        return {
            name: ratio
            for names, ratios_N in self._ratios.values()
            for name, ratio in zip(names, ratios_N.unbind(), strict=True)
        }

    def unused(self) -> list[str]:
        """Return the parameters that had no gradient other than 0 in the first step, the same on every rank.

        ZeRO gives the optimizer gradients of 0 for parameters that no loss reaches, and weight decay alone would shrink
        them at every step. They are left unchanged until they get a gradient.
        """
        return sorted(name for names in self.idle.values() for name in names)

    def _step_group(self, group: dict[str, Any], key: Tensor) -> None:
        shard = self.shards.get(key)
        if shard is None:
            self._check_per_tensor(group)
        given = [(name, p) for name, p in zip(group["names"], group["params"], strict=False) if p.grad is not None]
        params = [p for _, p in given]
        names = shard.names if shard is not None else tuple(name for name, _ in given)
        if key not in self.idle:
            self.idle[key] = self._find_unused(group, params, names, shard)
        if not params:
            return
        decayed_unused = bool(self.idle[key]) and group["weight_decay"] > 0
        adam = Adam(group["betas"], group["eps"], group["weight_decay"], group["bias_correction"])
        two_passes = group["adapt"] or decayed_unused
        x = self._operands(params, group, shard, overwrite=two_passes)
        if not two_passes:
            if x.w_P:  # a rank may own nothing but padding
                adamw_step(x, adam, group["lr"])
            return

        whole = shard.whole_norms if shard is not None else _same
        nothing_2P = torch.zeros(2, 0, dtype=torch.float64, device=key.device)
        norms_2N = whole(first_pass(x, adam) if x.w_P else nothing_2P)
        ratios_N = torch.ones_like(norms_2N[0])
        if group["adapt"]:
            ratios_N = _trust_ratios(norms_2N, group["min_coeff"], group["max_coeff"])
        if decayed_unused:  # a tensor whose moments are 0 has never had a gradient
            moments_2N = whole(norms(x.m_P).expand(2, -1) if x.w_P else nothing_2P)
            ratios_N = ratios_N * (moments_2N[0] > 0)
        if group["adapt"]:
            self._ratios[key] = (names, ratios_N.float())
        owned = shard.owned if shard is not None else slice(None)
        second_pass(x.w_P, x.g_P, (group["lr"] * ratios_N[owned]).to(key.dtype))

    def _operands(self, params: list[Tensor], group: dict[str, Any], shard: Shard | None, overwrite: bool) -> Operands:
        """Count one more step of the group and return its operands.

        `overwrite`: `first_pass` will overwrite the gradients, so those of ordinary parameters are copied.
        """
        for p in params:
            state = self.state[p]
            if "exp_avg" not in state:
                state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["step"] += 1
        gradients = [p.grad for p in params if p.grad is not None]
        m, v = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
        counts = step_counts([self.state[p]["step"] for p in params], group["bias_correction"], params[0].device)
        if shard is not None:
            w_P, g_P, m_P, v_P = (shard.pieces(flats[0]) for flats in (params, gradients, m, v))
            return Operands(w_P, g_P, m_P, v_P, counts * len(w_P))
        if overwrite:
            gradients = [torch.empty_like(p).copy_(g) for p, g in zip(params, gradients, strict=True)]
        return Operands(params, gradients, m, v, counts)

    def _find_unused(
        self, group: dict[str, Any], params: list[Tensor], names: tuple[str, ...], shard: Shard | None
    ) -> frozenset[str]:
        """Return the names of the group's parameters without a gradient; the only call that waits for the device."""
        without = {name for name in group["names"] if name not in names} if shard is None else set()
        gradients = [p.grad for p in params if p.grad is not None]
        pieces = shard.pieces(gradients[0]) if shard is not None else gradients
        norms_P = norms(pieces) if pieces else torch.zeros(0, dtype=torch.float64, device=group["params"][0].device)
        norms_N = shard.whole_norms(norms_P.expand(2, -1))[0] if shard is not None else norms_P
        return frozenset(without | {name for name, norm in zip(names, norms_N.tolist(), strict=True) if norm == 0})

    def _check_per_tensor(self, group: dict[str, Any]) -> None:
        """Raise RuntimeError if the parameters were flattened: the norm of a flat slice is not that of a tensor."""
        found = [tuple(p.shape) for p in group["params"]]
        if found != group["shapes"]:
            raise RuntimeError(
                f"Lamb holds {len(found)} tensors {found[:3]} where it was given {len(group['shapes'])} parameters: "
                "ZeRO has flattened them. Call mbsd.optim.zero.bind(lamb, engine.optimizer) after deepspeed.initialize"
            )


def _trust_ratios(norms_2N: Tensor, min_coeff: float, max_coeff: float | None) -> Tensor:
    """Return ratios_N = ‖w‖ / ‖u‖, clamped, and 1 where either norm is 0."""
    weight_N, update_N = norms_2N
    ratio_N = (weight_N / update_N).clamp(min=min_coeff, max=max_coeff)
    return torch.where((weight_N > 0) & (update_N > 0), ratio_N, torch.ones_like(ratio_N))


def _same(norms_2N: Tensor) -> Tensor:
    return norms_2N


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def expect(holds: bool, key: str, found: object, expected: str) -> None:
    """Raise `UserError` for `optimizer.params.<key>` unless `holds`, with the value found and what was expected."""
    if not holds:
        raise UserError(f"optimizer.params.{key}: found {found!r}, expected {expected}; correct it")
