"""The rate of each step as settings, plan and start block name it: DeepSpeed's own schedule gives the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.deepspeed_keys import SCHEDULERS
from mbsd.config.schedules import learning_rate, peak_learning_rate
from tests.settings import DS_CONFIG

STEPS = 30
CASES: list[tuple[str, dict[str, Any]]] = [
    ("WarmupLR", {}),
    ("WarmupLR", {"warmup_num_steps": 7, "warmup_min_lr": 1e-5, "warmup_max_lr": 0.1, "warmup_type": "linear"}),
    ("WarmupLR", {"warmup_num_steps": 500, "warmup_type": "linear"}),  # the run ends before its peak
    ("WarmupDecayLR", {}),
    ("WarmupDecayLR", {"warmup_num_steps": 1, "warmup_type": "linear"}),
    ("WarmupDecayLR", {"warmup_num_steps": 40, "warmup_max_lr": 0.5}),
    ("WarmupCosineLR", {}),
    ("WarmupCosineLR", {"warmup_num_steps": 9, "warmup_min_ratio": 0.1, "cos_min_ratio": 0.2, "warmup_type": "linear"}),
    ("OneCycle", {"cycle_min_lr": 0.001, "cycle_max_lr": 0.01, "cycle_first_step_size": 10}),
    ("OneCycle", {"cycle_min_lr": 0.001, "cycle_max_lr": 0.01, "cycle_first_step_size": 100}),
    ("OneCycle", {"cycle_min_lr": 0.001, "cycle_max_lr": 0.01, "cycle_first_step_size": 6, "cycle_second_step_size": 9,
                  "cycle_first_stair_count": 3, "cycle_second_stair_count": 2, "decay_step_size": 2,
                  "decay_lr_rate": 0.3}),
    ("LRRangeTest", {}),
    ("LRRangeTest", {"lr_range_test_step_size": 4, "lr_range_test_staircase": True, "lr_range_test_step_rate": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "params"), CASES)
def test_the_rates_are_those_of_deepspeeds_schedules(kind: str, params: dict[str, Any]) -> None:
    from deepspeed.runtime import lr_schedules

    tree = {**DS_CONFIG, "scheduler": {"type": kind, "params": dict(params)}}
    resolved = DeepSpeedConfig(tree).resolved(1, STEPS)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], **{"lr": resolved["optimizer"]["params"]["lr"]})
    scheduler = getattr(lr_schedules, kind)(optimizer, **resolved["scheduler"]["params"])
    used = []
    for done in range(STEPS):
        used.append(optimizer.param_groups[0]["lr"])
        assert learning_rate(resolved, done) == pytest.approx(used[-1], rel=1e-12, abs=1e-15), f"after {done} steps"
        scheduler.step()
    assert peak_learning_rate(resolved, STEPS) == pytest.approx(max(used), rel=1e-12)
    assert tree["scheduler"]["params"] == params, "resolving leaves what was read as it is"


def test_every_schedule_is_compared() -> None:
    from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES

    assert {kind for kind, _ in CASES} == set(SCHEDULERS) == set(VALID_LR_SCHEDULES)


def test_what_a_schedule_lacks_follows_from_the_run() -> None:
    """DeepSpeed's own defaults would warm up for 1,000 steps, to 0.001."""
    for kind, expected in {
        "WarmupLR": {"warmup_num_steps": 3, "warmup_max_lr": 0.004},
        "WarmupDecayLR": {"warmup_num_steps": 3, "warmup_max_lr": 0.004, "total_num_steps": STEPS},
        "WarmupCosineLR": {"warmup_num_steps": 3, "total_num_steps": STEPS},
    }.items():
        for given in ({}, dict.fromkeys(expected, "auto")):
            tree = {**DS_CONFIG, "scheduler": {"type": kind, "params": given}}
            assert DeepSpeedConfig(tree).resolved(1, STEPS)["scheduler"]["params"] == expected
    tree = {**DS_CONFIG, "optimizer": {"type": "adamw"}, "scheduler": {"type": "WarmupLR"}}
    resolved = DeepSpeedConfig(tree).resolved(1, STEPS)
    assert resolved["optimizer"] == {"type": "AdamW", "params": {"lr": 0.001}}, "torch's and DeepSpeed's default"
    assert resolved["scheduler"]["params"]["warmup_max_lr"] == 0.001
