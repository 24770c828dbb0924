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
        # The clock and CPU seconds up to which this start is in the file.
        self._counted: tuple[float, float] | None = None
        self._until = (0.0, 0.0)  # and in what was read last

    def add(self, command: str, seconds: float, cpu: float) -> None:
        """Add what a command took, in seconds by the clock and of its processes' cores, to what it took before."""
        everything = self._read()
        before = everything["commands"].get(command, [0.0, 0.0])
        everything["commands"][command] = [before[0] + seconds, before[1] + cpu]
        self._write(everything)

    def commands(self) -> dict[str, tuple[float, float]]:
        """Seconds that each command that has ended took by the clock, and of its processes' cores."""
        return {name: (seconds, cpu) for name, (seconds, cpu) in self._read()["commands"].items()}

    def forget(self, command: str) -> None:
        """Count a command anew: what it made is gone."""
        everything = self._read()
        everything["commands"].pop(command, None)
        self._write(everything)

    def wall_and_cpu(self) -> tuple[float, float]:
        """Seconds of all starts by the clock and of all their processes' cores; of this one as far as it is counted."""
        everything = self._read()
        self._write(everything)
        return everything["wall"], everything["cpu"]

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count this start's seconds and its processes'; of one that is killed up to the last process that ended."""
        self._counted = time.monotonic(), _cpu_seconds()
        try:
            yield
        finally:
            self._write(self._read())
            self._counted = None

    def _read(self) -> dict[str, Any]:
        """What is there, with this start's seconds until now."""
        found: dict[str, Any] = {"commands": {}, "wall": 0.0, "cpu": 0.0}
        if self._file.exists():
            found = read_own_json(self._file, "remove it: times are then counted anew")
        if self._counted is not None:
            now = time.monotonic(), _cpu_seconds()
            found["wall"] += now[0] - self._counted[0]
            found["cpu"] += now[1] - self._counted[1]
            self._until = now
        return found

    def _write(self, everything: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self._file, json.dumps(everything, indent=1) + "\n")
        if self._counted is not None:
            self._counted = self._until


def _cpu_seconds() -> float:
    """User and system seconds of this process and of those below it that have ended."""
    found = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)
