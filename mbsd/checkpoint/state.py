"""What must come back besides weights and moments: counters, rates, loss scale, random states; all of it JSON."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch

from mbsd.optim.groups import learning_rates

# Of DeepSpeed's loss scalers, what training moves.
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
COUNTERS = ("global_steps", "global_samples", "skipped_steps")


def engine_state(engine: Any) -> dict[str, Any]:
    """Counters, learning rates and loss scale: the same on every rank. A schedule follows from the counters."""
    scaler = _scaler(engine.optimizer)
    return {
        "counters": {name: int(getattr(engine, name)) for name in COUNTERS},
        "lr": list(learning_rates(engine.optimizer.param_groups).values()),  # the run's own first
        "loss_scale": {name: getattr(scaler, name) for name in SCALE if hasattr(scaler, name)},
    }


def load_engine_state(engine: Any, state: dict[str, Any]) -> None:
    """Put `engine_state` back.

    The learning rate is that of DeepSpeed's JSON now: without a schedule its own, with one what the schedule gives for
    the steps that were done, also where the checkpoint was saved without a schedule or with another.
    """
    for name, value in state["counters"].items():
        setattr(engine, name, value)
    scheduler, counters = engine.lr_scheduler, state["counters"]
    applied = counters["global_steps"] - counters["skipped_steps"]
    if scheduler is not None and applied:
        # DeepSpeed counts a schedule's steps from 0. This sets the rate of the next step, and OneCycle's betas.
        scheduler.step(applied - 1)
    scaler = _scaler(engine.optimizer)
    for name, value in state["loss_scale"].items():
        if hasattr(scaler, name):  # a run may resume in another precision
            setattr(scaler, name, value)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators of this process, and of its device's."""
    name, words, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(words).tolist(), *rest],
        "torch": _text(torch.get_rng_state()),
        "device": _text(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
    }


def load_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Put `random_states` back."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_tensor(states["torch"]))
    if device.type == "cuda" and states["device"] is not None:
        torch.cuda.set_rng_state(_tensor(states["device"]), device)


def draw_anew(step: int, rank: int) -> None:
    """Random states for a number of ranks that none were saved for: of this run, this step and this rank alone."""
    seed = int(np.random.SeedSequence([torch.initial_seed() % 2**63, step, rank]).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def _scaler(optimizer: Any) -> Any:
    """ZeRO has a loss scaler, fp16 without ZeRO a loss-scale config, float32 without ZeRO nothing."""
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
