"""From the `optimizer.params` of DeepSpeed's JSON to LAMB over a model's parameters, in param groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mbsd.errors import UserError
from mbsd.optim.lamb import Lamb, expect

JSON_KEYS = ("lr", "betas", "eps", "weight_decay", "bias_correction", "max_coeff", "min_coeff", "adapt_excluded")


# Rates of a schedule that are absolute, by its type, with DeepSpeed's defaults; WarmupCosineLR's are shares of the rate
# that a group begins with.
SCHEDULE_RATES: Mapping[str, Mapping[str, float]] = {
    "WarmupLR": {"warmup_min_lr": 0.0, "warmup_max_lr": 0.001},
    "WarmupDecayLR": {"warmup_min_lr": 0.0, "warmup_max_lr": 0.001},
    "WarmupCosineLR": {},
    "OneCycle": {"cycle_min_lr": 0.0, "cycle_max_lr": 0.0},
    "LRRangeTest": {"lr_range_test_min_lr": 1e-3},
}


@dataclass(frozen=True)
class PartRates:
    """Learning rates of a model's parts, as multiples of a run's rate.

    Attributes:
        multiples: part -> multiple, above 0.
        part_of: name of a parameter -> its part; frozen parameters need none.
    """

    multiples: Mapping[str, float]
    part_of: Mapping[str, str]


def no_decay(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a bias or belongs to a norm: neither decayed nor, by default, given a trust ratio."""
    return parameter.ndim <= 1 or name.endswith("bias")


def parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    weight_decay: float,
    adapt_excluded: bool = False,
    rates: PartRates | None = None,
) -> list[dict[str, Any]]:
    """Return the param groups of `Lamb`: weights, then biases and norms (no decay; r = 1 unless `adapt_excluded`).

    `params` of a group are (name, parameter) pairs, which torch splits into `params` and `param_names`. Frozen
    parameters and empty groups are left out. With `rates`, parts of one multiple share their groups, and a group holds
    `multiple` and `parts` too.
    """
    trainable = [(name, p) for name, p in named_parameters if p.requires_grad]
    if rates is None:
        return _decayed_or_not(trainable, weight_decay, adapt_excluded)
    groups = []
    for multiple in dict.fromkeys(rates.multiples.values()):
        parts = tuple(part for part, its in rates.multiples.items() if its == multiple)
        named = [(name, p) for name, p in trainable if rates.part_of[name] in parts]
        groups += [
            group | {"multiple": multiple, "parts": parts}
            for group in _decayed_or_not(named, weight_decay, adapt_excluded)
        ]
    return groups


def _decayed_or_not(
    trainable: list[tuple[str, Tensor]], weight_decay: float, adapt_excluded: bool
) -> list[dict[str, Any]]:
    weights = [(name, p) for name, p in trainable if not no_decay(name, p)]
    excluded = [(name, p) for name, p in trainable if no_decay(name, p)]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": weight_decay, "adapt": True},
        {"params": excluded, "weight_decay": 0.0, "adapt": adapt_excluded},
    ]
    return [group for group in groups if group["params"]]


def with_rates(groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
    """The groups with `lr`, the optimizer's rate, times their multiple; groups without one are left as they are."""
    return [group | {"lr": lr * group["multiple"]} if "multiple" in group else group for group in groups]


def scheduler_of_groups(scheduler: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """A schedule of DeepSpeed's JSON whose rates are those of each group: lists where they were numbers."""
    params = dict(scheduler["params"])
    for key, default in SCHEDULE_RATES[scheduler["type"]].items():
        rate = float(params.get(key, default))
        params[key] = [rate * group["multiple"] for group in groups]
    return {**scheduler, "params": params}


def learning_rates(groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`lr`, the rate that multiples are of, and `lr_PART` of each part where parts have rates of their own."""
    rates: dict[str, float] = {}
    for group in groups:
        rate, multiple = float(group["lr"]), group.get("multiple", 1.0)
        if "lr" not in rates or multiple == 1.0:
            rates["lr"] = rate / multiple
        rates |= {f"lr_{part}": rate for part in group.get("parts", ())}
    return rates


def build_optimizer(
    named_parameters: Iterable[tuple[str, Tensor]],
    ds_optimizer_params: Mapping[str, Any],
    rates: PartRates | None = None,
) -> Lamb:
    """Return `Lamb` for the `optimizer.params` of DeepSpeed's JSON (keys: `JSON_KEYS`, all optional; with `rates` not
    `lr`).

    Raises:
        UserError: an unknown key, or a value out of range.
    """
    settings = dict(ds_optimizer_params)
    unknown = sorted(set(settings) - set(JSON_KEYS))
    if unknown:
        raise UserError(
            f"optimizer.params: found unknown key {', '.join(map(repr, unknown))}, expected some of "
            f"{', '.join(JSON_KEYS)}; correct or remove it"
        )
    adapt_excluded = settings.pop("adapt_excluded", False)
    expect(isinstance(adapt_excluded, bool), "adapt_excluded", adapt_excluded, "true or false")
    groups = parameter_groups(named_parameters, settings.get("weight_decay", 0.01), adapt_excluded, rates)
    return Lamb(with_rates(groups, settings.get("lr", 0.0)), **settings)
