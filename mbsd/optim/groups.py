"""From the `optimizer.params` of DeepSpeed's JSON to LAMB over a model's parameters, in param groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mbsd.errors import UserError
from mbsd.optim.lamb import Lamb, expect

JSON_KEYS = ("lr", "betas", "eps", "weight_decay", "bias_correction", "max_coeff", "min_coeff", "adapt_excluded")


def no_decay(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a bias or belongs to a norm: neither decayed nor, by default, given a trust ratio."""
    return parameter.ndim <= 1 or name.endswith("bias")


def parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float, adapt_excluded: bool = False
) -> list[dict[str, Any]]:
    """Return the param groups of `Lamb`: weights, then biases and norms (no decay; r = 1 unless `adapt_excluded`).

    `params` of a group are (name, parameter) pairs, which torch splits into `params` and `param_names`. Frozen
    parameters and empty groups are left out.
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
    """Return `Lamb` for the `optimizer.params` of DeepSpeed's JSON (keys: `JSON_KEYS`, all optional).

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
    return Lamb(parameter_groups(named_parameters, settings.get("weight_decay", 0.01), adapt_excluded), **settings)
