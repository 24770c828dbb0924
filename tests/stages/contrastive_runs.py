"""Contrastive runs of the launcher, and a place where their ranks are killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from mbsd.stages.contrastive import ContrastiveObjective
from tests.settings import TINY, run_words

STEPS, HALF = 14, 7  # 12 steps make an epoch of the shop


def arguments(run: Path, catalog: Path, *more: object, **ds: Any) -> list[object]:
    """A run in two passes with dropout, crops and flips, saved in the middle of its first epoch and at its end."""
    words = [
        "--stage=contrastive", "--contrastive.dim=16", "--contrastive.check_passes=true", *TINY, "--model.dropout=0.1",
        f"--run.save_every={HALF}", "--run.log_every=1", "--run.validate_every=0", "--run.validate_samples=8",
    ]  # fmt: skip
    return run_words(run, catalog, STEPS, *words, *more, **{"gradient_accumulation_steps": 2, **ds})


def die_between_passes(rank: int, step: int) -> None:
    """kill -9 of this rank in that step, when its first pass is done."""
    contexts, calls = ContrastiveObjective.contexts, 0

    def killed(objective: ContrastiveObjective, batches: Any) -> Any:
        nonlocal calls
        calls += 1
        found = contexts(objective, batches)
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    ContrastiveObjective.contexts = killed  # type: ignore[method-assign]
