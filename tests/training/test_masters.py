"""AdamW in bf16 keeps float32 master weights: updates far below bf16's resolution add up, from the first step on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import call

RATE, DECAY, STEPS = 1e-5, 0.5, 30


class One(nn.Module):
    """Weights of 1, whose gradients are those given; bf16's next number below 1 is 1 - 2**-8."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 5))

    def forward(self, gradient: float) -> torch.Tensor:
        return self.weight.float().sum() * gradient


def masters(rank: int, world_size: int, fused: bool) -> dict[int, tuple[float, float, float]]:
    """ZeRO stage -> the master of a weight and the weight itself at the end, and the master before the first step."""
    from mbsd.checkpoint.flat_layout import read_layout
    from mbsd.config.deepspeed import DeepSpeedConfig
    from mbsd.training.engine import build_engine

    found = {}
    for zero in (0, 1, 2):
        params: dict[str, Any] = {"lr": RATE, "weight_decay": DECAY, "torch_adam": True}
        tree = {
            "train_batch_size": world_size,
            "bf16": {"enabled": True},
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": zero},
            "optimizer": {"type": "AdamW", "params": params | ({"fused": True} if fused else {})},
        }
        module = One()
        engine = build_engine(module, DeepSpeedConfig(tree).resolved(world_size, STEPS))
        (flat,) = read_layout(engine).flats
        first = float(flat.master.detach().view(-1)[0])
        for step in range(STEPS):
            engine.backward(engine(0.25 if step % 3 else -0.125))
            engine.step()
        found[zero] = float(flat.master.detach().view(-1)[0]), float(module.weight.detach()[0, 0]), first
        assert flat.master.dtype == torch.float32 and module.weight.dtype == torch.bfloat16
        engine.destroy()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(("world_size", "fused"), [(1, False), (1, True), (2, False)])
def test_small_updates_add_up(world_size: int, fused: bool) -> None:
    """Against AdamW in float64, which DeepSpeed's step at construction (without ZeRO) would have shifted by one."""
    w, m, v = 1.0, 0.0, 0.0
    for step in range(STEPS):
        g = 0.25 if step % 3 else -0.125
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))) ** 0.5 + 1e-8)
        w = w * (1 - RATE * DECAY) - RATE * update
    for found in call(masters, world_size, fused):
        for zero, (master, weight, first) in found.items():
            assert first == 1.0, f"ZeRO-{zero}: nothing is decayed before the first step"
            assert weight == 1.0, f"ZeRO-{zero}: all updates together are below bf16's resolution"
            assert 1 - master == pytest.approx(1 - w, rel=2e-3), f"ZeRO-{zero}"


def gradient_norms(rank: int, world_size: int) -> dict[str, list[float]]:
    """Precision and ZeRO stage -> the norm that the log names after each step, of gradients that are clipped by it."""
    from mbsd.config.deepspeed import DeepSpeedConfig
    from mbsd.training.engine import build_engine, training_state

    found = {}
    for precision, zero in (("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 0), ("bf16", 2)):
        tree: dict[str, Any] = {
            "train_batch_size": world_size,
            "gradient_clipping": 0.5,
            "zero_optimization": {"stage": zero},
            "optimizer": {"type": "AdamW", "params": {"lr": RATE, "torch_adam": True}},
        }
        if precision == "bf16":
            tree["bf16"] = {"enabled": True}
        engine = build_engine(One(), DeepSpeedConfig(tree).resolved(world_size, STEPS))
        norms = []
        for step in range(3):
            engine.backward(engine(0.5 * (step + 1) + rank))
            engine.step()
            norms.append(training_state(engine)["grad_norm"])
        found[f"{precision}, ZeRO-{zero}"] = norms
        engine.destroy()
    return found


@pytest.mark.distributed
def test_the_gradients_norm_is_known_at_every_stage() -> None:
    """Of the mean over ranks, before it is clipped: 15 weights with the gradient 0.5 (step + 1) + 1/2 each."""
    expected = [15**0.5 * (0.5 * (step + 1) + 0.5) for step in range(3)]
    for found in call(gradient_norms, 2):
        for engine, norms in found.items():
            assert norms == pytest.approx(expected, rel=1e-2 if "bf16" in engine else 1e-6), engine
