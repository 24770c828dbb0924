"""DeepSpeed's JSON with another batch size and learning rate."""

from __future__ import annotations

import copy
from typing import Any

from mbsd.errors import UserError

AUTO = (None, "auto")


def with_batch_and_rate(
    ds_config: dict[str, Any], path: str, batch_size: int | None, learning_rate: float | None
) -> dict[str, Any]:
    """A copy with these; None leaves what is there.

    A smaller batch has a smaller micro-batch on the same ranks with the same accumulation; a larger one accumulates.

    Raises:
        UserError: the JSON at `path` says something else that would have to change with it.
    """
    changed = copy.deepcopy(ds_config)
    if learning_rate is not None:
        changed.setdefault("optimizer", {}).setdefault("params", {})["lr"] = learning_rate
        peak = changed.get("scheduler", {}).get("params", {}).get("warmup_max_lr", "auto")
        if peak != "auto":
            raise UserError(f'{path}: scheduler.params.warmup_max_lr={peak} says the learning rate too: write "auto"')
    if batch_size is not None:
        before, micro = changed.get("train_batch_size"), changed.get("train_micro_batch_size_per_gpu")
        changed["train_batch_size"] = batch_size
        if micro not in AUTO and before not in AUTO and batch_size < before:
            if micro * batch_size % before:
                raise UserError(
                    f"batch size {batch_size}: {path} has train_micro_batch_size_per_gpu={micro} of "
                    f"train_batch_size={before}, and the same share of {batch_size} is no whole number; leave the "
                    "micro-batch out there, or choose another batch size"
                )
            changed["train_micro_batch_size_per_gpu"] = micro * batch_size // before
        elif micro not in AUTO:
            changed.pop("gradient_accumulation_steps", None)  # follows from the other two
    return changed


def batch_and_rate(ds_config: dict[str, Any], path: str) -> tuple[int, float]:
    """What the JSON at `path` says.

    Raises:
        UserError: it does not say one of them.
    """
    batch = ds_config.get("train_batch_size")
    rate = ds_config.get("optimizer", {}).get("params", {}).get("lr")
    if not isinstance(batch, int) or not isinstance(rate, (int, float)):
        raise UserError(f"{path}: train_batch_size and optimizer.params.lr are what a study tells runs by: say both")
    return batch, float(rate)
