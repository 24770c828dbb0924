"""LAMB on ordinary parameters: the float64 textbook, its edge cases, its param groups and DeepSpeed's JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mbsd.errors import UserError
from mbsd.optim import fused
from mbsd.optim.groups import JSON_KEYS, build_optimizer, no_decay, parameter_groups
from mbsd.optim.lamb import Lamb
from mbsd.optim.zero import FlatShard
from tests.optim.textbook import (
    BETA1,
    BETA2,
    EPS,
    STEPS,
    WEIGHT_DECAY,
    Awkward,
    learning_rate,
    mean_gradients,
    textbook_lamb,
    worst_relative_error,
)

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Make waiting for a GPU an error."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("adapt_excluded", [False, True])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_equals_the_textbook(device: str, adapt_excluded: bool) -> None:
    module = Awkward()
    gradients = mean_gradients(module, world_size=1, accumulation=1, clip=0.0)
    expected, ratios = textbook_lamb(module, gradients, adapt_excluded)
    module.to(device)
    optimizer = Lamb(
        parameter_groups(module.named_parameters(), WEIGHT_DECAY, adapt_excluded), betas=(BETA1, BETA2), eps=EPS
    )
    for step in range(STEPS):
        for name, p in module.named_parameters():
            p.grad = gradients(step)[name].float().to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        with no_waiting(device) if step else nullcontext():  # the first step asks what has no gradient
            optimizer.step()
    assert worst_relative_error(module.cpu(), expected) < 1e-6
    found = {name: float(ratio) for name, ratio in optimizer.trust_ratios().items()}
    assert found == pytest.approx(ratios, rel=1e-5)
    assert max(ratios.values()) > 3 * min(ratios.values())  # one ratio for all of them would have been seen


def one_step(weight: torch.Tensor, gradient: torch.Tensor, **settings: Any) -> torch.Tensor:
    p = nn.Parameter(weight.clone())
    p.grad = gradient.clone()
    Lamb([p], lr=0.5, **settings).step()
    return p.detach()


def test_ratio_is_1_where_a_norm_is_0() -> None:
    weight, gradient = torch.zeros(2, 3), torch.ones(2, 3)
    torch.testing.assert_close(one_step(weight, gradient, eps=0.0), torch.full((2, 3), -0.5))
    torch.testing.assert_close(one_step(weight + 2, gradient * 0, weight_decay=0.0), weight + 2)


def test_clamps_the_ratio_only_when_asked() -> None:
    weight, gradient = torch.full((2, 2), 100.0), torch.ones(2, 2)  # u = 1, so r = 100
    settings = {"eps": 0.0, "weight_decay": 0.0}
    torch.testing.assert_close(one_step(weight, gradient, **settings), weight - 50)
    torch.testing.assert_close(one_step(weight, gradient, max_coeff=math.inf, **settings), weight - 50)
    torch.testing.assert_close(one_step(weight, gradient, max_coeff=10.0, **settings), weight - 5)
    torch.testing.assert_close(one_step(weight, gradient, min_coeff=150.0, **settings), weight - 75)


def test_without_bias_correction() -> None:
    found = one_step(torch.zeros(1, 1), torch.full((1, 1), 2.0), bias_correction=False, weight_decay=0.0)
    u = 0.1 * 2 / (math.sqrt(0.02 * 4) + 1e-6)
    torch.testing.assert_close(found, torch.full((1, 1), -0.5 * u))


def test_a_parameter_without_gradient_stays_and_keeps_its_own_step_count() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Lamb([("used", used), ("unused", unused)])
    used.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2, 2)) and list(optimizer.trust_ratios()) == ["used"]
    unused.grad = torch.ones(2, 2)
    optimizer.step()
    assert [optimizer.state[p]["step"] for p in (used, unused)] == [2, 1]


def test_what_has_no_gradient_is_named_and_left_alone_until_it_gets_one() -> None:
    """As under ZeRO, where no gradient is a gradient of 0: decay alone would shrink such a tensor by lr a step."""
    used, idle, late, absent = (nn.Parameter(torch.ones(2, 2)) for _ in range(4))
    optimizer = Lamb([("used", used), ("late", late), ("idle", idle), ("absent", absent)], lr=0.1)
    for step in range(4):
        used.grad, idle.grad = torch.ones(2, 2), torch.zeros(2, 2)
        late.grad = torch.full((2, 2), float(step >= 2))
        optimizer.step()
        assert optimizer.unused() == ["absent", "idle", "late"]
        assert torch.equal(idle, torch.ones(2, 2)) and torch.equal(absent, torch.ones(2, 2))
        assert (late < 1).all() == (step >= 2) and (used < 1).all()
    # A gradient of 0 later on is a gradient: the moments still move the weights.
    before = used.detach().clone()
    used.grad = torch.zeros(2, 2)
    optimizer.step()
    assert (used < before).all()


def test_strides_and_gradients_of_the_caller_are_kept() -> None:
    weight, gradient = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    plain, channels_last = nn.Parameter(weight.clone()), nn.Parameter(weight.to(memory_format=torch.channels_last))
    for p in (plain, channels_last):
        p.grad = gradient.clone()  # contiguous in both
        optimizer = Lamb([p], lr=0.1)
        optimizer.step()
        assert torch.equal(p.grad, gradient)
    torch.testing.assert_close(plain, channels_last)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gradient = torch.randn(7, 11), torch.randn(7, 11)
    whole = one_step(weight, gradient)
    monkeypatch.setattr(fused, "CPU_BLOCK", 10)
    torch.testing.assert_close(one_step(weight, gradient), whole, rtol=1e-6, atol=0)


def test_state_dict_continues_bitwise() -> None:
    def run(optimizer: Lamb, module: Awkward, steps: range) -> None:
        gradients = mean_gradients(module, 1, 1, 0.0)
        for step in steps:
            for name, p in module.named_parameters():
                p.grad = gradients(step)[name].float()
            optimizer.step()

    straight, first, second = Awkward(), Awkward(), Awkward(seed=1)
    run(build_optimizer(straight.named_parameters(), {}), straight, range(6))
    saved = build_optimizer(first.named_parameters(), {})
    run(saved, first, range(3))
    loaded = build_optimizer(second.named_parameters(), {})
    second.load_state_dict(first.state_dict())
    loaded.load_state_dict(saved.state_dict())
    run(loaded, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


def test_biases_and_norms_are_excluded() -> None:
    module = Awkward()
    module.one.weight.requires_grad_(False)
    optimizer = build_optimizer(module.named_parameters(), {"lr": 1e-3, "weight_decay": 0.1, "max_coeff": None})
    weights, excluded = optimizer.param_groups
    assert weights["param_names"] == ["embedding.weight", "dense.weight", "head.weight"]
    assert excluded["param_names"] == ["one.bias", "norm.weight", "norm.bias", "head.bias"]
    assert (weights["weight_decay"], weights["adapt"], weights["lr"]) == (0.1, True, 1e-3)
    assert (excluded["weight_decay"], excluded["adapt"]) == (0.0, False)
    assert build_optimizer(module.named_parameters(), {"adapt_excluded": True}).param_groups[1]["adapt"]
    assert no_decay("head.bias", module.head.bias) and not no_decay("head.weight", module.head.weight)


def test_unknown_json_key_is_refused() -> None:
    with pytest.raises(UserError, match="'freeze_step'") as refused:
        build_optimizer(Awkward().named_parameters(), {"lr": 1e-3, "freeze_step": 10})
    assert all(key in str(refused.value) for key in JSON_KEYS)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", "auto"), ("lr", -1), ("betas", [0.9]), ("betas", [0.9, 1.0]), ("eps", None), ("weight_decay", "0"),
     ("bias_correction", 1), ("max_coeff", "inf"), ("adapt_excluded", "yes")],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.params\.{key}"):
        build_optimizer(Awkward().named_parameters(), {key: value})


def test_a_flattened_group_is_refused() -> None:
    optimizer = build_optimizer(Awkward().named_parameters(), {})
    flat = torch.zeros(100, requires_grad=True)
    flat.grad = torch.ones(100)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match="bind"):
        optimizer.step()


@pytest.mark.parametrize("sharded", [False, True])
def test_the_step_never_waits_for_the_device(sharded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have no values: reading one on the host raises."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: tensor)
    with FakeTensorMode():
        p = nn.Parameter(torch.ones(10))
        optimizer = Lamb([("p", p)])
        if sharded:
            optimizer.shards = {p: FlatShard(("a", "b", "c"), slice(1, 3), ((0, 4), (4, 5)), None)}
        p.grad = torch.ones(10)
        optimizer.idle = {p: frozenset()}  # what has no gradient is asked once, in the first step
        optimizer.step()
        with pytest.raises(DataDependentOutputException):
            next(iter(optimizer.trust_ratios().values())).item()
    assert list(optimizer.trust_ratios()) == (["a", "b", "c"] if sharded else ["p"])
