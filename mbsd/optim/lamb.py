"""The optimizer's step: LAMB with one trust ratio per parameter TENSOR, whoever holds the tensor's elements.

LAMB is Algorithm 2 of You et al., "Large Batch Optimization for Deep Learning" (2020). Its only quantity that is not
elementwise is a pair of norms per tensor. On ordinary parameters those are local; on the flat slices that DeepSpeed's
ZeRO leaves to each rank they are sums over ranks, which a `Shard` (made by `mbsd.optim.zero.bind`) knows how to take.

Shape legend: N parameter tensors of a group, P of them (or pieces of them) on this rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from mbsd.errors import UserError

JSON_KEYS = ("lr", "betas", "eps", "weight_decay", "bias_correction", "max_coeff", "min_coeff", "adapt_excluded")


class Shard(Protocol):
    """What `Lamb` asks about one flat tensor that holds pieces of several parameters."""

    names: tuple[str, ...]  # N
    owned: slice  # which P of the N this rank has a piece of

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the P views of `flat`, one for each owned piece."""

    def whole_norms(self, norms_2P: Tensor) -> Tensor:
        """Return norms_2N of the whole tensors from the norms of the pieces; every rank calls it together."""


class Lamb(torch.optim.Optimizer):
    """LAMB. With g the gradient and w the weights of one tensor, at step t:

        m = β₁ m + (1 - β₁) g,    v = β₂ v + (1 - β₂) g²
        u = m̂ / (√v̂ + eps) + weight_decay · w,    m̂ = m / (1 - β₁ᵗ),    v̂ = v / (1 - β₂ᵗ)
        w ← w - lr · r · u,    r = ‖w‖ / ‖u‖, or 1 where either norm is 0

    A param group with `adapt: False` takes r = 1. `max_coeff` and `min_coeff` clamp r (`None`: no bound).
    The step launches no host synchronisation. A flat slice that was not bound is refused with `RuntimeError`.
    """

    def __init__(
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
            _expect(_is_number(value) and value >= 0, key, value, "a number ≥ 0")
        expected = "two numbers in [0, 1)"
        pair = isinstance(betas, Sequence) and len(betas) == 2
        _expect(pair and all(_is_number(b) and 0 <= b < 1 for b in betas), "betas", betas, expected)
        _expect(isinstance(bias_correction, bool), "bias_correction", bias_correction, "true or false")
        bounded = max_coeff is None or (_is_number(max_coeff) and max_coeff >= min_coeff)
        _expect(bounded, "max_coeff", max_coeff, "null or a number ≥ min_coeff")
        self.shards: dict[Tensor, Shard] = {}
        self._ratios: dict[Tensor, tuple[tuple[str, ...], Tensor]] = {}  # first tensor of a group → names, ratios_N
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
        """Add a group, and note its tensors' names and shapes: a wrapper that flattens them is found out by `step`."""
        super().add_param_group(param_group)
        group, i = self.param_groups[-1], len(self.param_groups) - 1
        group["names"] = group.get("param_names") or [f"{i}.{n}" for n in range(len(group["params"]))]
        group["shapes"] = [tuple(p.shape) for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shard = self.shards.get(group["params"][0])
            if shard is None:
                self._check_per_tensor(group)
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                updates = self._updates(params, group)
                if group["adapt"]:
                    self._adapt(params, updates, group, shard)
                torch._foreach_add_(params, updates, alpha=-group["lr"])
        return loss

    def trust_ratios(self) -> dict[str, Tensor]:
        """Return name → trust ratio (0-d, on the device) of the last step, for the tensors of adapted groups."""
        return {
            name: ratio
            for names, ratios_N in self._ratios.values()
            for name, ratio in zip(names, ratios_N.unbind(), strict=True)
        }

    def _check_per_tensor(self, group: dict[str, Any]) -> None:
        """Refuse tensors that are not the parameters as given: a norm over a flat slice is no tensor's norm."""
        found = [tuple(p.shape) for p in group["params"]]
        if found != group["shapes"]:
            raise RuntimeError(
                f"Lamb holds {len(found)} tensors {found[:3]} where it was given {len(group['shapes'])} parameters: "
                "ZeRO has flattened them. Call mbsd.optim.zero.bind(lamb, engine.optimizer) after deepspeed.initialize"
            )

    def _updates(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Return u for each tensor (new storage), and move its moments in place."""
        for p in params:
            state = self.state[p]
            if "exp_avg" not in state:
                state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["step"] += 1
        gradients = [p.grad for p in params if p.grad is not None]
        steps = [self.state[p]["step"] for p in params]
        m = [self.state[p]["exp_avg"] for p in params]
        v = [self.state[p]["exp_avg_sq"] for p in params]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(m, gradients, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
        # m̂ / (√v̂ + eps) in one buffer: a second one of the size of the shard would live through the peak of the step
        u = list(torch._foreach_sqrt(v))
        if group["bias_correction"]:
            torch._foreach_div_(u, [math.sqrt(1 - beta2**t) for t in steps])
        torch._foreach_add_(u, group["eps"])
        torch._foreach_reciprocal_(u)
        torch._foreach_mul_(u, m)
        if group["bias_correction"]:
            torch._foreach_div_(u, [1 - beta1**t for t in steps])
        if group["weight_decay"]:
            torch._foreach_add_(u, params, alpha=group["weight_decay"])
        return u

    def _adapt(self, params: list[Tensor], updates: list[Tensor], group: dict[str, Any], shard: Shard | None) -> None:
        """Scale each update in place by its tensor's trust ratio, and keep the ratios for the log."""
        device = params[0].device
        if shard is None:
            named = zip(group["names"], group["params"], strict=True)
            names = tuple(name for name, p in named if p.grad is not None)
            norms_2N = torch.stack([_norms(params, device), _norms(updates, device)])
            owned = slice(None)
        else:
            names, owned = shard.names, shard.owned
            weights, updates = shard.pieces(params[0]), shard.pieces(updates[0])
            norms_2N = shard.whole_norms(torch.stack([_norms(weights, device), _norms(updates, device)]))
        ratios_N = _trust_ratios(norms_2N, group["min_coeff"], group["max_coeff"])
        if updates:  # none where this rank owns nothing but padding
            torch._foreach_mul_(updates, list(ratios_N[owned].unbind()))
        self._ratios[group["params"][0]] = (names, ratios_N)


def no_decay(name: str, parameter: Tensor) -> bool:
    """Say whether a parameter is a bias or belongs to a norm: neither decayed nor, by default, adapted."""
    return parameter.ndim <= 1 or name.endswith("bias")


def parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float, adapt_excluded: bool = False
) -> list[dict[str, Any]]:
    """Return the param groups of `Lamb`: weights, then biases and norms (no decay; r = 1 unless `adapt_excluded`).

    `params` are (name, parameter) pairs, which torch turns into `params` and `param_names`. Frozen ones are left out.
    """
    trainable = [(name, p) for name, p in named_parameters if p.requires_grad]
    weights = [(name, p) for name, p in trainable if not no_decay(name, p)]
    excluded = [(name, p) for name, p in trainable if no_decay(name, p)]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": weight_decay, "adapt": True},
        {"params": excluded, "weight_decay": 0.0, "adapt": adapt_excluded},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(named_parameters: Iterable[tuple[str, Tensor]], ds_optimizer_params: Mapping[str, Any]) -> Lamb:
    """Return `Lamb` from the `optimizer.params` of DeepSpeed's JSON (keys: `JSON_KEYS`, all optional).

    Raises `UserError` for an unknown key or a value out of range.
    """
    settings = dict(ds_optimizer_params)
    unknown = sorted(set(settings) - set(JSON_KEYS))
    if unknown:
        raise UserError(
            f"optimizer.params: found unknown key {', '.join(map(repr, unknown))}, expected some of "
            f"{', '.join(JSON_KEYS)}; correct or remove it"
        )
    adapt_excluded = settings.pop("adapt_excluded", False)
    _expect(isinstance(adapt_excluded, bool), "adapt_excluded", adapt_excluded, "true or false")
    return Lamb(parameter_groups(named_parameters, settings.get("weight_decay", 0.01), adapt_excluded), **settings)


def _trust_ratios(norms_2N: Tensor, min_coeff: float, max_coeff: float | None) -> Tensor:
    """Return ratios_N = ‖w‖ / ‖u‖ in float32, clamped, and 1 where either norm is 0."""
    weight_N, update_N = norms_2N
    ratio_N = (weight_N / update_N).clamp(min=min_coeff, max=max_coeff)
    return torch.where((weight_N > 0) & (update_N > 0), ratio_N, torch.ones_like(ratio_N)).float()


def _norms(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Return the 2-norms of P tensors, norms_P in float64 and accumulated in it."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64, device=device)
    return torch.stack(list(torch._foreach_norm(tensors, 2, dtype=torch.float64)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise UserError(f"optimizer.params.{key}: found {found!r}, expected {expected}; correct it")
