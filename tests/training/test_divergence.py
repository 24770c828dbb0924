"""fp16 through the real engine: what overflows is skipped and counted, and a run that only skips ends in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mbsd.config.run import RunConfig
from mbsd.errors import UserError
from mbsd.training.overflow import any_overflow
from tests.optim.textbook import Awkward, given_gradients
from tests.ranks import call
from tests.settings import DS_CONFIG

LIMIT = 6
OPTIMIZERS: dict[str, dict[str, Any]] = {"Lamb": {}, "AdamW": {"torch_adam": True}}  # DeepSpeed's is compiled first


def overflowing_steps(rank: int, world_size: int, zero_stage: int, optimizer: str) -> dict[str, Any]:
    from deepspeed.accelerator import get_accelerator

    from mbsd.config.deepspeed import DeepSpeedConfig
    from mbsd.training.divergence import SkippedSteps
    from mbsd.training.engine import build_engine, lamb_of, training_state

    # DeepSpeed offers fp16 on GPUs alone; its loss scaling is the same code on a CPU.
    type(get_accelerator()).is_fp16_supported = lambda self: True
    unscheduled = {key: value for key, value in DS_CONFIG.items() if key != "scheduler"}
    ds_config = unscheduled | {
        "train_batch_size": world_size,
        "zero_optimization": {"stage": zero_stage},
        "fp16": {"enabled": True, "initial_scale_power": 3, "hysteresis": 1, "min_loss_scale": 1},
        "optimizer": {
            "type": optimizer,
            "params": {"lr": 0.01} | ({"torch_adam": True} if optimizer == "AdamW" else {}),
        },
    }
    module = Awkward()
    engine = build_engine(module, DeepSpeedConfig(ds_config).resolved(world_size, 100))
    assert (lamb_of(engine) is not None) == (optimizer == "Lamb")
    skipped = SkippedSteps(engine, RunConfig("run", max_steps=1, max_skipped_steps=LIMIT))

    def step(at: int, overflow: bool) -> None:
        gradients = {name: g / 100 for name, g in given_gradients(module, at, 0, rank).items()}
        if overflow and rank == 0:  # one rank's overflow is everybody's
            gradients["dense.weight"] = torch.full((5, 11), 1e30)
        engine.backward(engine(gradients))
        engine.step()
        skipped.check(at)

    seen = {}
    for at in range(1, LIMIT + 4):  # two good steps in it: never LIMIT in a row
        step(at, overflow=at not in (2, 5))
    seen["in_a_row"], seen["skipped"] = skipped.in_a_row, training_state(engine)["skipped_steps"]
    before = [p.detach().clone() for p in engine.module.parameters()]
    with pytest.raises(UserError) as stopped:
        for at in range(100, 100 + LIMIT):
            step(at, overflow=True)
    assert all(map(torch.equal, before, engine.module.parameters()))
    # The good steps did count.
    assert not all(map(torch.equal, before, [p.half() for p in Awkward().parameters()]))
    seen["message"], seen["shared"], seen["scale"] = str(stopped.value), stopped.value.shared, training_state(engine)
    return seen


@pytest.mark.distributed
@pytest.mark.parametrize(("zero_stage", "optimizer"), [(2, "Lamb"), (2, "AdamW"), (0, "Lamb")])
def test_a_run_that_only_skips_is_stopped_on_every_rank(zero_stage: int, optimizer: str) -> None:
    for seen in call(overflowing_steps, 2, zero_stage, optimizer):
        assert seen["in_a_row"] == 4 and seen["skipped"] == LIMIT + 1
        assert seen["shared"] and seen["scale"]["loss_scale"] == 1.0
        # four were already skipped when the last rounds began
        assert f"step {100 + LIMIT - 4 - 1}: {LIMIT} steps in a row" in seen["message"]
        assert "run.max_skipped_steps" in seen["message"] and "optimizer.params.lr" in seen["message"]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("at", [(0, 0), (1, 3), (2, 0)])
def test_one_value_that_is_no_number_is_found_wherever_it_is(value: float, at: tuple[int, int]) -> None:
    gradients = [torch.zeros(1), torch.full((4,), 65504.0), torch.tensor([6e-8, -65504.0])]
    gradients = [gradient.half() for gradient in gradients]
    before = [gradient.clone() for gradient in gradients]
    assert any_overflow(gradients).tolist() == [False]
    assert all(map(torch.equal, gradients, before)), "they are looked at, and left as they are"
    gradients[at[0]][at[1]] = value
    assert any_overflow(gradients).tolist() == [True]
    assert any_overflow([]).tolist() == [False]
