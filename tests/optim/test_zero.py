"""LAMB through the real DeepSpeed engine: the same weights as the textbook at every ZeRO stage ≤ 2 and world size."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mbsd.errors import UserError
from mbsd.optim.groups import build_optimizer, parameter_groups
from mbsd.optim.lamb import Lamb
from mbsd.optim.zero import bind
from tests.optim.textbook import (
    BETA1,
    BETA2,
    EPS,
    STEPS,
    WEIGHT_DECAY,
    Awkward,
    Tiny,
    given_gradients,
    learning_rate,
    mean_gradients,
    textbook_lamb,
    worst_relative_error,
)
from tests.ranks import call

pytestmark = pytest.mark.distributed

SMALL_BUCKETS = {"reduce_bucket_size": 20, "allgather_bucket_size": 20}
ROUND_ROBIN = {"round_robin_gradients": True}
# name → (zero_optimization, gradient accumulation, clipping, adapt_excluded, module)
CONFIGURATIONS: dict[str, tuple[dict[str, Any], int, float, bool, type[Awkward]]] = {
    "0": ({"stage": 0}, 1, 0.0, False, Awkward),
    "0, accumulated, clipped": ({"stage": 0}, 2, 5.0, True, Awkward),
    "1": ({"stage": 1, "overlap_comm": False}, 1, 0.0, False, Awkward),
    "1, round robin, overlapped": (
        {"stage": 1, "overlap_comm": True} | ROUND_ROBIN | SMALL_BUCKETS, 1, 0.0, True, Awkward,
    ),
    "1, accumulated, clipped": ({"stage": 1, "contiguous_gradients": False}, 2, 5.0, False, Awkward),
    "2": ({"stage": 2, "overlap_comm": False}, 1, 0.0, False, Awkward),
    "2, round robin, overlapped, accumulated, clipped": (
        {"stage": 2, "overlap_comm": True} | ROUND_ROBIN | SMALL_BUCKETS, 2, 5.0, False, Awkward,
    ),
    "2, aligned": ({"stage": 2, "parameter_alignment": True} | SMALL_BUCKETS, 1, 0.0, True, Awkward),
    "2, a rank of padding": ({"stage": 2} | ROUND_ROBIN, 1, 0.0, True, Tiny),
}  # fmt: skip


class PerSlice(Lamb):
    """The mistake: one trust ratio for whatever tensor the optimizer is handed."""

    def _check_per_tensor(self, group: dict[str, Any]) -> None:
        group["names"] = [str(i) for i in range(len(group["params"]))]


def build_engine(
    module: nn.Module, optimizer: Lamb, zero: dict[str, Any], accumulation: int = 1, clip: float = 0.0, **more: Any
) -> Any:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config | more)
    return engine


def make_optimizer(module: nn.Module, adapt_excluded: bool = False, kind: type[Lamb] = Lamb) -> Lamb:
    groups = parameter_groups(module.named_parameters(), WEIGHT_DECAY, adapt_excluded)
    return kind(groups, betas=(BETA1, BETA2), eps=EPS)


def train(engine: Any, rank: int, steps: range) -> None:
    for step in steps:
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(step)
        for micro in range(engine.gradient_accumulation_steps()):
            engine.backward(engine(given_gradients(engine.module, step, micro, rank)))
            engine.step()


def weights_and_ratio_errors(rank: int, world_size: int) -> dict[str, tuple[float, float, int]]:
    """Return configuration → (worst relative error of a tensor, of a trust ratio, how many ratios)."""
    errors = {}
    for name, (_, accumulation, clip, adapt_excluded, kind) in CONFIGURATIONS.items():
        gradients = mean_gradients(kind(), world_size, accumulation, clip)
        expected, ratios = textbook_lamb(kind(), gradients, adapt_excluded)
        engine, optimizer = begin(name, seed=0)
        train(engine, rank, range(STEPS))
        found = {key: float(ratio) for key, ratio in optimizer.trust_ratios().items()}
        assert found.keys() == ratios.keys()
        worst_ratio = max(abs(found[key] / ratio - 1) for key, ratio in ratios.items())
        errors[name] = (worst_relative_error(engine.module, expected), worst_ratio, len(found))
        engine.destroy()
    return errors


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_equals_the_textbook_under_deepspeed(world_size: int) -> None:
    for rank, errors in enumerate(call(weights_and_ratio_errors, world_size)):
        for name, (weights, ratios, count) in errors.items():
            print(
                f"world size {world_size}, rank {rank}, ZeRO {name}: weights {weights:.1e}, {count} ratios {ratios:.1e}"
            )
            assert weights < 1e-6 and ratios < 1e-5, (rank, name)


def per_slice_errors(rank: int, world_size: int) -> dict[int, float]:
    errors = {}
    for stage in (0, 1, 2):
        module = Awkward()
        expected, _ = textbook_lamb(module, mean_gradients(module, world_size, 1, 0.0))
        engine = build_engine(module, make_optimizer(module, kind=PerSlice), {"stage": stage})
        train(engine, rank, range(STEPS))
        errors[stage] = worst_relative_error(engine.module, expected)
    return errors


def test_a_ratio_per_slice_fails_the_same_comparison() -> None:
    for errors in call(per_slice_errors, 2):
        print(errors)
        assert errors[0] < 1e-6
        assert errors[1] > 1e-2 and errors[2] > 1e-2


def snapshot(engine: Any, optimizer: Lamb) -> list[torch.Tensor]:
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    return [t.detach().clone() for t in [*engine.module.parameters(), *moments, *optimizer.trust_ratios().values()]]


RESUMED = ("0", "1, round robin, overlapped", "2, round robin, overlapped, accumulated, clipped")


def begin(name: str, seed: int) -> tuple[Any, Lamb]:
    zero, accumulation, clip, adapt_excluded, kind = CONFIGURATIONS[name]
    module = kind(seed)
    optimizer = make_optimizer(module, adapt_excluded)
    engine = build_engine(module, optimizer, zero, accumulation, clip)
    bind(optimizer, engine.optimizer)
    return engine, optimizer


def save_load_continue(rank: int, world_size: int, folder: str) -> dict[str, bool]:
    same = {}
    for name, fresh in itertools.product(RESUMED, (True, False)):
        engine, optimizer = begin(name, seed=0)
        train(engine, rank, range(5))
        engine.save_checkpoint(f"{folder}/{name}", tag="five")
        train(engine, rank, range(5, 10))
        straight = snapshot(engine, optimizer)

        engine, optimizer = begin(name, seed=1)
        if not fresh:
            train(engine, rank, range(1))
        engine.load_checkpoint(f"{folder}/{name}", tag="five")
        train(engine, rank, range(5, 10))
        resumed = snapshot(engine, optimizer)
        same[f"{name}, fresh {fresh}"] = len(straight) == len(resumed) and all(map(torch.equal, straight, resumed))
    return same


def test_save_and_load_continue_bitwise(tmp_path: Path) -> None:
    for same in call(save_load_continue, 2, str(tmp_path)):
        assert all(same.values()), same


class HalfUsed(Awkward):
    """A module with a weight that the loss does not reach."""

    def forward(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        reached = [(p * gradients[name]).sum() for name, p in self.named_parameters() if name != "dense.weight"]
        return torch.stack(reached).sum()


def unused_weights(rank: int, world_size: int) -> None:
    for stage in (0, 1, 2):
        module = HalfUsed()
        before = module.dense.weight.detach().clone()
        optimizer = make_optimizer(module)
        engine = build_engine(module, optimizer, {"stage": stage})
        bind(optimizer, engine.optimizer)
        train(engine, rank, range(3))
        assert optimizer.unused() == ["dense.weight"], stage
        assert torch.equal(module.dense.weight, before)
        assert not torch.equal(module.head.weight, HalfUsed().head.weight)


def refusals(rank: int, world_size: int) -> None:
    unbound = Awkward()
    engine = build_engine(unbound, make_optimizer(unbound), {"stage": 2})
    with pytest.raises(RuntimeError, match="bind"):
        train(engine, rank, range(1))

    module = Awkward()
    optimizer = make_optimizer(module)
    engine = build_engine(module, optimizer, {"stage": 2})
    if rank == 1:  # one rank's slice is wrong: every rank refuses
        engine.optimizer.single_partition_of_fp32_groups[0].data[0] += 1
    with pytest.raises(RuntimeError, match="param group 0"):
        bind(optimizer, engine.optimizer)
    with pytest.raises(RuntimeError, match="another Lamb"):
        bind(make_optimizer(Awkward()), engine.optimizer)

    module = Awkward()
    optimizer = make_optimizer(module)
    engine = build_engine(
        module, optimizer, {"stage": 1}, bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"}
    )
    with pytest.raises(UserError, match="BF16_Optimizer"):
        bind(optimizer, engine.optimizer)


def bf16_without_zero(rank: int, world_size: int) -> None:
    module = Awkward()
    optimizer = build_optimizer(module.named_parameters(), {})
    engine = build_engine(module, optimizer, {"stage": 0}, bf16={"enabled": True})
    bind(optimizer, engine.optimizer)
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    models = [p for group in engine.optimizer.fp16_groups for p in group]
    assert all(torch.equal(a, b.float()) for a, b in zip(masters, models, strict=True)) and not optimizer.state
    train(engine, rank, range(2))
    assert {state["step"] for state in optimizer.state.values()} == {2}


def bf16_with_zero(rank: int, world_size: int) -> None:
    module = Awkward()
    optimizer = build_optimizer(module.named_parameters(), {})
    engine = build_engine(module, optimizer, {"stage": 2}, bf16={"enabled": True})
    bind(optimizer, engine.optimizer)
    train(engine, rank, range(2))
    bind(optimizer, engine.optimizer)  # the fp32 slices now hold more digits than the model


def unused_refusals_and_bf16(rank: int, world_size: int) -> None:
    unused_weights(rank, world_size)
    refusals(rank, world_size)
    bf16_without_zero(rank, world_size)
    bf16_with_zero(rank, world_size)


def test_unused_weights_refusals_and_the_step_that_bf16_without_zero_takes_at_construction() -> None:
    call(unused_refusals_and_bf16, 2)
