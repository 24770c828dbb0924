"""run.ema: the average is the formula's in float64, it is what is validated and saved, and the raw weights train on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.optim.textbook import Awkward, given_gradients
from tests.ranks import call

STEPS, DECAY = 12, 0.6  # the first 5 decays are below it: 2/11, 3/12, 4/13, 5/14, 6/15
ENGINES = [("Lamb", "fp32", 0), ("Lamb", "fp32", 2), ("Lamb", "bf16", 2), ("AdamW", "bf16", 0), ("AdamW", "fp32", 0),
           ("AdamW", "bf16", 1), ("AdamW", "fp16", 2), ("AdamW", "fp16", 0)]  # fmt: skip


def resolved_json(optimizer: str, precision: str, zero: int, world_size: int) -> dict[str, Any]:
    from mbsd.config.deepspeed import DeepSpeedConfig

    tree: dict[str, Any] = {
        "train_batch_size": world_size,
        "zero_optimization": {"stage": zero},
        "optimizer": {"type": optimizer, "params": {"lr": 0.01, "weight_decay": 0.05}},
    }
    if optimizer == "AdamW":
        tree["optimizer"]["params"]["torch_adam"] = True
    if precision == "fp16":  # the first scales overflow: steps are skipped
        tree["fp16"] = {"enabled": True, "initial_scale_power": 11, "loss_scale_window": 3, "hysteresis": 1}
    elif precision == "bf16":
        tree["bf16"] = {"enabled": True}
    return DeepSpeedConfig(tree).resolved(world_size, STEPS)


def whole_masters(engine: Any) -> dict[str, torch.Tensor]:
    """The float32 weights of all ranks put together, as float64."""
    import torch.distributed as dist

    from mbsd.checkpoint.flat_layout import read_layout

    layout = read_layout(engine)
    whole = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in layout.shapes.items()}
    for flat in layout.flats:
        for name, first, start, length in flat.pieces:
            piece = flat.master.detach().reshape(-1)[start : start + length].double()
            whole[name].view(-1)[first : first + length] = piece
    if layout.sliced:
        for value in whole.values():
            dist.all_reduce(value)
    return whole


def allow_fp16() -> None:
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def averages(rank: int, world_size: int) -> dict[str, int]:
    """Each engine with its average against the formula, and against the same engine without one; skipped steps."""
    from mbsd.training.average import WeightAverage
    from mbsd.training.engine import build_engine

    allow_fp16()
    skipped = {}
    for case in ENGINES:
        resolved = resolved_json(*case, world_size)
        plain, module = Awkward(), Awkward()
        without = build_engine(plain, resolved)
        engine = build_engine(module, resolved)
        average = WeightAverage(engine, DECAY)
        expected: dict[str, torch.Tensor] = {}
        updates = 0
        for step in range(STEPS):
            for each in (without, engine):
                each.backward(each(given_gradients(each.module, step, 0, rank)))
                each.step()
            before = engine.skipped_steps
            average.update()
            now = whole_masters(engine)
            applied = engine.global_steps - before
            if applied > updates:
                decay = min(DECAY, (1 + updates) / (10 + updates)) if updates else 0.0
                expected = {name: decay * expected.get(name, 0 * w) + (1 - decay) * w for name, w in now.items()}
                updates = applied
            raw = {name: p.detach().clone() for name, p in module.named_parameters()}
            with average.applied():
                shown = {name: p.detach().clone() for name, p in module.named_parameters()}
                found = whole_masters(engine)
            for name, w in expected.items():
                torch.testing.assert_close(found[name], w, rtol=2e-6, atol=1e-7)
                assert torch.equal(shown[name], found[name].to(shown[name].dtype)), "what is shown is the average"
                assert updates < 2 or not torch.equal(found[name], now[name]), (case, step, name)
            for name, p in module.named_parameters():
                assert torch.equal(p, raw[name]), "behind it the weights are what they were"
        for a, b in zip(plain.parameters(), module.parameters(), strict=True):
            assert torch.equal(a, b), "training is that of a run without average"
        assert updates == STEPS - engine.skipped_steps > 5
        skipped["-".join(map(str, case))] = int(engine.skipped_steps)
        without.destroy()
        engine.destroy()
    return skipped


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_average_is_the_formulas(world_size: int) -> None:
    for skipped in call(averages, world_size):
        assert all((count > 0) == (case == "AdamW-fp16-2") for case, count in skipped.items()), skipped
