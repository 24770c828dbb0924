"""After a restart with other settings of optimizer or schedule, the first step uses the rate of these, which is logged.

An update of LAMB or AdamW is its learning rate times what does not depend on it. From one checkpoint with one gradient,
the norms of two updates are therefore to each other as their rates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.optim.textbook import Awkward, given_gradients
from tests.ranks import call, launch
from tests.settings import DS_CONFIG, stage_1_words

BEFORE, RATE, OTHER_RATE = 4, 0.01, 0.0007  # steps before the restart; rates before and after it
TOTAL = 20
WARMUP: dict[str, Any] = {"type": "WarmupLR", "params": {"warmup_num_steps": 2, "warmup_type": "linear"}}
DECAY: dict[str, Any] = {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 2, "warmup_type": "linear"}}
CYCLE: dict[str, Any] = {
    "type": "OneCycle", "params": {"cycle_min_lr": 0.001, "cycle_max_lr": 0.02, "cycle_first_step_size": 8},
}  # fmt: skip
# What the run was begun with, and what it is resumed with: (rate, schedule).
RESTARTS: dict[str, tuple[tuple[float, Any], tuple[float, Any]]] = {
    "the same": ((RATE, DECAY), (RATE, DECAY)),
    "another rate, a schedule": ((RATE, WARMUP), (OTHER_RATE, WARMUP)),
    "another rate, no schedule": ((RATE, None), (OTHER_RATE, None)),
    "another schedule": ((RATE, WARMUP), (OTHER_RATE, DECAY)),
    "a schedule where there was none": ((RATE, None), (OTHER_RATE, DECAY)),
    "none where there was one": ((RATE, DECAY), (OTHER_RATE, None)),
    "a cycle": ((RATE, CYCLE), (OTHER_RATE, CYCLE)),
}


def resolved_json(optimizer: str, precision: str, zero: int, settings: tuple[float, Any]) -> dict[str, Any]:
    from mbsd.config.deepspeed import DeepSpeedConfig

    rate, schedule = settings
    params: dict[str, Any] = {"lr": rate, "weight_decay": 0.01, "betas": [0.9, 0.98]}
    tree = {key: value for key, value in DS_CONFIG.items() if key != "scheduler"} | {
        "train_batch_size": 1,
        "zero_optimization": {"stage": zero},
        "optimizer": {"type": optimizer, "params": params | ({} if optimizer == "Lamb" else {"torch_adam": True})},
    }
    if precision == "bf16":
        tree["bf16"] = {"enabled": True}
    if schedule is not None:
        tree["scheduler"] = schedule
    return DeepSpeedConfig(tree).resolved(1, TOTAL)


def restarts(rank: int, world_size: int, folder: Path, optimizer: str, precision: str, zero: int) -> dict[str, Any]:
    """Each restart's rates and norms of the step after it: as it was begun, and as it is resumed."""
    import torch

    from mbsd.checkpoint.flat_layout import read_layout, write_back
    from mbsd.checkpoint.host_buffer import HostBuffer
    from mbsd.checkpoint.shards import Shards, file_name, scalars_of, tensors_of
    from mbsd.checkpoint.state import engine_state, load_engine_state
    from mbsd.training.engine import build_engine

    def step(engine: Any, at: int) -> tuple[float, float, float]:
        """The rate before it, and the norm of its update of the float32 weights; with the first beta."""
        masters = [flat.master for flat in read_layout(engine).flats]
        before = [master.detach().double().clone() for master in masters]
        rate, beta = float(engine.get_lr()[0]), float(engine.optimizer.param_groups[0]["betas"][0])
        engine.backward(engine(given_gradients(engine.module, at, 0, 0)))
        engine.step()
        moved = [master.detach().double() - old for master, old in zip(masters, before, strict=True)]
        return rate, float(torch.cat([part.flatten() for part in moved]).norm()), beta

    found = {}
    for n, (name, (begun, resumed)) in enumerate(RESTARTS.items()):
        saved = folder / f"{n}"
        saved.mkdir()
        engine = build_engine(Awkward(), resolved_json(optimizer, precision, zero, begun))
        for at in range(BEFORE):
            step(engine, at)
        layout = read_layout(engine)
        tensors = tensors_of(engine, layout, rank)
        image = HostBuffer(tensors, {}, pinned=False)
        image.fill(tensors)
        (saved / f"{file_name(rank)}.safetensors").write_bytes(image.view())
        (saved / f"{file_name(rank)}.json").write_text(json.dumps({"flats": scalars_of(engine, layout)}))
        state = json.loads(json.dumps(engine_state(engine)))
        undisturbed = step(engine, BEFORE)
        engine.destroy()

        engine = build_engine(Awkward(1), resolved_json(optimizer, precision, zero, resumed))
        layout = read_layout(engine)
        Shards(saved, [rank]).load(engine, layout)
        write_back(engine, layout)
        load_engine_state(engine, state)
        found[name] = undisturbed, step(engine, BEFORE)
        engine.destroy()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("optimizer", "precision", "zero"),
    [("Lamb", "fp32", 2), ("Lamb", "bf16", 2), ("AdamW", "fp32", 2), ("AdamW", "bf16", 1), ("Lamb", "fp32", 0)],
)
def test_the_first_step_after_a_restart_uses_the_rate_of_its_settings(
    optimizer: str, precision: str, zero: int, tmp_path: Path
) -> None:
    from mbsd.config.schedules import learning_rate

    (found,) = call(restarts, 1, tmp_path, optimizer, precision, zero)
    assert set(found) == set(RESTARTS)
    for name, ((rate, norm, beta), (rate_now, norm_now, beta_now)) in found.items():
        begun, resumed = RESTARTS[name]
        assert rate == pytest.approx(learning_rate(resolved_json(optimizer, precision, zero, begun), BEFORE)), name
        expected = learning_rate(resolved_json(optimizer, precision, zero, resumed), BEFORE)
        assert expected > 0 and rate_now == pytest.approx(expected), name
        assert norm_now / norm == pytest.approx(rate_now / rate, rel=2e-3), name
        assert beta == beta_now, f"{name}: a cycle moves betas too"
        if begun == resumed:
            assert (rate_now, norm_now) == (rate, norm), "a restart with the same settings is exact"


@pytest.mark.distributed
def test_a_run_that_is_resumed_with_another_rate_logs_the_rate_that_it_uses(shop: Any, tmp_path: Path) -> None:
    """Through the launcher: train 4 steps, then go on to 6 with a rate of 1e-7. Steps 5 and 6 do next to nothing."""
    from safetensors.torch import load_file

    run = tmp_path / "run"
    schedule = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 2, "warmup_max_lr": "auto"}}}
    more = ["--run.save_every=1", "--run.keep_last=9", "--run.log_every=1", "--run.validate_every=0"]
    optimizer = dict(DS_CONFIG["optimizer"])  # type: ignore[call-overload]
    launch(1, stage_1_words(run, shop.catalog, 4, *more, **schedule), tmp_path / "log")
    (run / "DONE").unlink()
    optimizer["params"] = {**optimizer["params"], "lr": 1e-7}
    launch(1, stage_1_words(run, shop.catalog, 6, *more, **schedule, optimizer=optimizer), tmp_path / "log")

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    steps = [load_file(run / "checkpoints" / f"step-{at:08d}" / "model" / "model.safetensors") for at in range(3, 7)]
    norms = {
        at: sum(float((new[name].double() - old[name].double()).square().sum()) for name in new) ** 0.5
        for at, (old, new) in enumerate(zip(steps, steps[1:], strict=False), 4)
    }
    assert rates == {1: 0.0, 2: 0.0, 3: pytest.approx(0.004), 4: pytest.approx(0.004), 5: 1e-7, 6: 1e-7}
    assert norms[4] > 0.01
    for at in (5, 6):
        assert 0 < norms[at] / 1e-7 < 2 * norms[4] / 0.004, f"step {at} moved by {norms[at]:.3g} at a rate of 1e-7"
