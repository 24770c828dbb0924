"""The learning rate of each step, as DeepSpeed's schedules lay it out; without importing deepspeed.

`mbsd plan`, the start of a run and its settings in TensorBoard name the highest rate by it. What trains is DeepSpeed's
own schedule: `tests/config/test_schedules.py` compares the two step by step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Params = Mapping[str, Any]


def learning_rate(resolved: Mapping[str, Any], done: int) -> float:
    """The rate of the step that follows `done` steps, none of which fp16 skipped.

    Args:
        resolved: of `DeepSpeedConfig.resolved`.
    """
    base = float(resolved["optimizer"]["params"]["lr"])
    scheduler = resolved.get("scheduler")
    if scheduler is None:
        return base
    params, at = scheduler["params"], done - 1  # DeepSpeed counts a schedule's steps from -1
    kind = scheduler["type"]
    if kind == "OneCycle":
        return _one_cycle(params, at)
    if kind == "LRRangeTest":
        return _range_test(params, at)
    if kind == "WarmupCosineLR":
        return base * _cosine(params, at)
    low, high = float(params.get("warmup_min_lr", 0.0)), float(params["warmup_max_lr"])
    if at < 0:
        return low
    share = _warmup(params, at)
    if share is None:
        share = 1.0 if kind == "WarmupLR" else _linear_decay(params, at)
    return low + (high - low) * share


def peak_learning_rate(resolved: Mapping[str, Any], total_steps: int) -> float:
    """The highest rate of a run's steps: the schedule's own peak, or less where the run ends before it."""
    scheduler = resolved.get("scheduler")
    turns: set[int] = set()  # between them, and one step beside them, a schedule rises or falls
    if scheduler is not None and scheduler["type"] == "OneCycle":
        first, second = _halves(scheduler["params"])
        turns = {int(first), int(first + second)}
    elif scheduler is not None and "warmup_num_steps" in scheduler["params"]:
        turns = {_warmup_steps(scheduler["params"])}
    around = {0, total_steps - 1} | {turn + beside for turn in turns for beside in (-1, 0, 1, 2)}
    return max(learning_rate(resolved, done) for done in around if 0 <= done < total_steps)


def _warmup_steps(params: Params) -> int:
    return max(2, int(params["warmup_num_steps"]))


def _warmup(params: Params, at: int) -> float | None:
    """The share of the way from the lowest rate to the highest; None: the warm-up is over."""
    steps = _warmup_steps(params)
    if at >= steps:
        return None
    return at / steps if params.get("warmup_type", "log") == "linear" else math.log(at + 1) / math.log(steps)


def _linear_decay(params: Params, at: int) -> float:
    total, steps = int(params["total_num_steps"]), _warmup_steps(params)
    return max(0.0, (total - at) / max(1.0, total - steps))


def _cosine(params: Params, at: int) -> float:
    if at < 0:
        return 0.0
    low, floor = float(params.get("warmup_min_ratio", 0.0)), float(params.get("cos_min_ratio", 0.0001))
    share = _warmup(params, at)
    if share is not None:
        return low + share * (1.0 - low)
    steps = _warmup_steps(params)
    progress = min(1.0, (at - steps + 1) / max(1, params["total_num_steps"] - steps))
    return max(0.0, floor + (1.0 - floor) * (1.0 + math.cos(math.pi * progress)) / 2.0)


def _halves(params: Params) -> tuple[float, float]:
    """Steps of a cycle's rise and fall."""
    first = float(params.get("cycle_first_step_size", 2000))
    second = params.get("cycle_second_step_size")
    return first, float(second) if second is not None else first


def _one_cycle(params: Params, at: int) -> float:
    (first, second), low, high = _halves(params), float(params["cycle_min_lr"]), float(params["cycle_max_lr"])
    if at >= first + second:
        every, rate = params.get("decay_step_size", 0), float(params.get("decay_lr_rate", 0.0))
        return low if not every or not rate else low / (1.0 + rate * (at - first - second + 1.0) / every)
    place = (at + 1) % (first + second)
    rising = place <= first
    share = place / first if rising else (first + second - place) / second
    stairs = params.get("cycle_first_stair_count", 0)
    if not rising and params.get("cycle_second_stair_count") is not None:
        stairs = params["cycle_second_stair_count"]
    if stairs:
        share = math.floor((place * stairs / first) if rising else (first + second - place) * stairs / second) / stairs
    return low + (high - low) * share


def _range_test(params: Params, at: int) -> float:
    interval = (at + 1) / int(params.get("lr_range_test_step_size", 2000))
    if params.get("lr_range_test_staircase", False):
        interval = math.floor(interval)
    rise = 1.0 + float(params.get("lr_range_test_step_rate", 1.0)) * interval
    return float(params.get("lr_range_test_min_lr", 1e-3)) * rise
