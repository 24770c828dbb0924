"""Learning rates of a model's parts: each group's rate at each step, and the weights that follow, on 1 and 2 ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from mbsd.optim.groups import PartRates, learning_rates, parameter_groups
from tests.optim.textbook import (
    BETA1,
    BETA2,
    EPS,
    WEIGHT_DECAY,
    Awkward,
    given_gradients,
    mean_gradients,
    textbook_lamb,
)
from tests.ranks import call

RATE, STEPS = 0.02, 9
PART_OF = {
    "embedding.weight": "backbone", "one.weight": "image", "one.bias": "image", "dense.weight": "backbone",
    "norm.weight": "backbone", "norm.bias": "backbone", "head.weight": "head", "head.bias": "head",
}  # fmt: skip
MULTIPLES = {"backbone": 0.1, "image": 2.0, "head": 10.0}
FROZEN = {"backbone": 1.0, "head": 3.0}  # without the image stem, which is not trained
LINEAR = {"warmup_num_steps": 3, "warmup_type": "linear"}
SCHEDULES: dict[str, Any] = {
    "none": None,
    "WarmupLR": {"type": "WarmupLR", "params": {**LINEAR, "warmup_min_lr": 0.001}},
    "WarmupDecayLR": {"type": "WarmupDecayLR", "params": LINEAR},
    "WarmupCosineLR": {"type": "WarmupCosineLR", "params": {**LINEAR, "cos_min_ratio": 0.1}},
    "OneCycle": {
        "type": "OneCycle",
        "params": {"cycle_min_lr": 0.002, "cycle_max_lr": RATE, "cycle_first_step_size": 4, "cycle_momentum": False},
    },
    "LRRangeTest": {"type": "LRRangeTest", "params": {"lr_range_test_min_lr": 0.001, "lr_range_test_step_size": 2}},
}
# (optimizer, ZeRO stage, schedule, multiples)
CASES: list[tuple[str, int, str, dict[str, float]]] = [
    ("Lamb", 0, "WarmupCosineLR", MULTIPLES),
    ("Lamb", 1, "WarmupLR", MULTIPLES),
    ("Lamb", 2, "WarmupDecayLR", MULTIPLES),
    ("Lamb", 2, "WarmupCosineLR", FROZEN),
    ("AdamW", 0, "WarmupDecayLR", MULTIPLES),
    ("AdamW", 1, "WarmupCosineLR", MULTIPLES),
    ("AdamW", 2, "none", MULTIPLES),
    ("AdamW", 2, "OneCycle", MULTIPLES),
    ("AdamW", 0, "LRRangeTest", FROZEN),
]


def resolved_json(optimizer: str, zero: int, schedule: str, world_size: int) -> dict[str, Any]:
    from mbsd.config.deepspeed import DeepSpeedConfig

    params: dict[str, Any] = {"lr": RATE, "betas": [BETA1, BETA2], "eps": EPS, "weight_decay": WEIGHT_DECAY}
    tree: dict[str, Any] = {
        "train_batch_size": world_size,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": zero},
        "optimizer": {"type": optimizer, "params": params | ({"torch_adam": True} if optimizer == "AdamW" else {})},
    }
    if SCHEDULES[schedule] is not None:
        tree["scheduler"] = SCHEDULES[schedule]
    return DeepSpeedConfig(tree).resolved(world_size, STEPS)


def trained(rank: int, world_size: int) -> list[tuple[list[dict[str, float]], dict[str, torch.Tensor]]]:
    """Of each case: the rates of each step, and the weights at the end."""
    from mbsd.training.engine import build_engine

    results = []
    for optimizer, zero, schedule, multiples in CASES:
        module = Awkward()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(PART_OF[name] in multiples)
        resolved = resolved_json(optimizer, zero, schedule, world_size)
        engine = build_engine(module, resolved, PartRates(multiples, PART_OF))
        used = []
        for step in range(STEPS):
            used.append(learning_rates(engine.optimizer.param_groups))
            engine.backward(engine(given_gradients(module, step, 0, rank)))
            engine.step()
        results.append((used, {name: p.detach().double() for name, p in module.named_parameters()}))
        engine.destroy()
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_part_has_its_multiple_of_the_schedules_rate(world_size: int) -> None:
    """Against the schedule as `config.schedules` lays it out, and LAMB and AdamW of the textbook in float64."""
    from mbsd.config.schedules import learning_rate

    for results in call(trained, world_size):
        for (optimizer, zero, schedule, multiples), (used, weights) in zip(CASES, results, strict=True):
            case, resolved = (optimizer, zero, schedule), resolved_json(optimizer, zero, schedule, world_size)
            for done, rates in enumerate(used):
                base = learning_rate(resolved, done)
                expected = {"lr": base} | {f"lr_{part}": base * multiple for part, multiple in multiples.items()}
                assert rates == pytest.approx(expected, rel=1e-12, abs=1e-15), (case, done)
            assert any(rates["lr"] > 0.01 * RATE for rates in used)

            def rate_of(name: str, step: int, resolved: Any = resolved, multiples: Any = multiples) -> float:
                return learning_rate(resolved, step) * multiples.get(PART_OF[name], 0.0)

            expected_weights, _ = textbook_lamb(
                Awkward(), mean_gradients(Awkward(), world_size, 1, 0.0), steps=STEPS, rate_of=rate_of,
                adapt=optimizer == "Lamb",
            )  # fmt: skip
            start = dict(Awkward().named_parameters())
            for name, found in weights.items():
                error = float((found - expected_weights[name]).norm() / expected_weights[name].norm())
                assert error < 2e-6, (case, name, error)
                assert torch.equal(found, start[name].double()) == (PART_OF[name] not in multiples), (case, name)


def test_parts_of_one_multiple_share_their_groups() -> None:
    """Where all have one, the groups are those of a run without rates of parts."""
    named = partial(Awkward().named_parameters)
    plain = parameter_groups(named(), 0.1)
    same = parameter_groups(named(), 0.1, rates=PartRates({"backbone": 2.0, "image": 2.0, "head": 2.0}, PART_OF))
    assert [[name for name, _ in group["params"]] for group in plain] == [
        [name for name, _ in group["params"]] for group in same
    ]
    assert [group["parts"] for group in same] == [("backbone", "image", "head")] * 2
    mixed = parameter_groups(named(), 0.1, rates=PartRates({"backbone": 1.0, "image": 2.0, "head": 1.0}, PART_OF))
    assert [(group["parts"], group["weight_decay"], group["multiple"]) for group in mixed] == [
        (("backbone", "head"), 0.1, 1.0), (("backbone", "head"), 0.0, 1.0), (("image",), 0.1, 2.0),
        (("image",), 0.0, 2.0),
    ]  # fmt: skip
    assert learning_rates([{**group, "lr": 0.5 * group["multiple"]} for group in mixed]) == {
        "lr": 0.5, "lr_backbone": 0.5, "lr_head": 0.5, "lr_image": 1.0
    }  # fmt: skip
    assert learning_rates([{"lr": 0.25}, {"lr": 0.25}]) == {"lr": 0.25}
