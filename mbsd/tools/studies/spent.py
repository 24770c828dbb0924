"""What a pipeline's commands took: `OUT/settings/spent.json`, over all starts of it."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mbsd.io.files import read_own_json, replace_text


class Spent:
    """Seconds of each command, and wall and CPU seconds of all starts of the pipeline.

    Args:
        file: where they are.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._since: float | None = None

    def add(self, command: str, seconds: float) -> None:
        """A command ran for so long; the parts of one that was stopped and resumed are added up."""
        everything = self._read()
        everything["commands"][command] = everything["commands"].get(command, 0.0) + seconds
        self._write(everything)

    def of(self, command: str) -> float:
        """Seconds that a command took (wall clock).

        Raises:
            KeyError: it has not ended yet.
        """
        return float(self._read()["commands"][command])

    @property
    def wall_and_cpu(self) -> tuple[float, float]:
        """Seconds of all starts that have ended, of the clock and of all their processes' cores."""
        everything = self._read()
        return everything["wall"], everything["cpu"]

    @property
    def so_far(self) -> float:
        """Seconds by the clock of all starts, the one that is being counted too."""
        now = time.monotonic() - self._since if self._since is not None else 0.0
        return self.wall_and_cpu[0] + now

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count this start's seconds, those of the processes that end in it too."""
        self._since, cpu = time.monotonic(), _cpu_seconds()
        try:
            yield
        finally:
            everything = self._read()
            everything["wall"] += time.monotonic() - self._since
            self._since = None
            everything["cpu"] += _cpu_seconds() - cpu
            self._write(everything)

    def _read(self) -> dict[str, Any]:
        if not self._file.exists():
            return {"commands": {}, "wall": 0.0, "cpu": 0.0}
        found: dict[str, Any] = read_own_json(self._file, "remove it: times are then counted anew")
        return found

    def _write(self, everything: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self._file, json.dumps(everything, indent=1) + "\n")


def _cpu_seconds() -> float:
    """User and system seconds of this process and of those below it that have ended."""
    found = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)
