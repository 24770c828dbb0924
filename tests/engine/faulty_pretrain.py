"""launchers/pretrain.py with a fault, for tests: `slow_save MARKER`, or `sleep RANK`; then the launcher's arguments."""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from mbsd.checkpoint.manager import CheckpointManager
from mbsd.data.builder import BatchBuilder


def slow_save(marker: str) -> None:
    """The last save says that it is waited for, and then takes its time."""
    wait = CheckpointManager.wait

    def slow(manager: CheckpointManager) -> None:
        Path(marker).touch()
        time.sleep(3)
        wait(manager)

    CheckpointManager.wait = slow  # type: ignore[method-assign]


def sleep(rank: str) -> None:
    """That rank's data never comes, from its fourth micro-batch on."""
    finish, calls = BatchBuilder.finish, 0

    def never(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            time.sleep(1e6)
        return finish(*arguments)

    if os.environ["RANK"] == rank:
        BatchBuilder.finish = never  # type: ignore[method-assign]


if __name__ == "__main__":
    {"slow_save": slow_save, "sleep": sleep}[sys.argv.pop(1)](sys.argv.pop(1))
    runpy.run_path("launchers/pretrain.py", run_name="__main__")
