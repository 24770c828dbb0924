"""Faults that a rank is given before it runs a launcher."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mbsd.checkpoint.manager import CheckpointManager
from mbsd.data.batch_builder import BatchBuilder


def slow_save(rank: int, marker: Path) -> None:
    """The last save says that it is waited for, and then takes its time."""
    wait = CheckpointManager.wait

    def slow(manager: CheckpointManager) -> None:
        marker.touch()
        time.sleep(3)
        wait(manager)

    CheckpointManager.wait = slow  # type: ignore[method-assign]


def sleep(rank: int, victim: int) -> None:
    """That rank's data never comes, from its fourth micro-batch on."""
    finish, calls = BatchBuilder.finish, 0

    def never(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            time.sleep(1e6)
        return finish(*arguments)

    if rank == victim:
        BatchBuilder.finish = never  # type: ignore[method-assign]
