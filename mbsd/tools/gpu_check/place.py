"""Where `mbsd bench gpu` runs its commands: each with a log and a time limit, and killed as a whole at its end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbsd.tools.studies.commands import ROOT

MESSAGE = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*Error: .*|error: .*)$", re.MULTILINE)
LONGEST = 300  # characters of a reason
LEAST = 5.0  # seconds below which nothing is started


class NotMeasuredError(Exception):
    """A part could not be measured; the message is the reason that the report gives."""


def _reason(log: str) -> str:
    """The first error that a log names, else its last line."""
    found = MESSAGE.search(log)
    lines = [line for line in log.splitlines() if line.strip()]
    return (found[1] if found else lines[-1].strip() if lines else "no message")[:LONGEST]


@dataclass
class Place:
    """The folder and the time of a check.

    Attributes:
        out: folder of everything that is written.
        deadline: of `time.monotonic`, at which the last command is killed.
        commands: what was run: name -> command, seconds and exit code.
    """

    out: Path
    deadline: float
    commands: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.monotonic()

    def python(self, name: str, *words: object, limit: float) -> str:
        """Run `python WORDS…` in the checkout; its standard output.

        Args:
            name: of the log, `out/logs/NAME.log`, which holds both outputs.
            limit: seconds after which it is killed, sooner where less is left.

        Raises:
            NotMeasuredError: it failed, or the time was over.
        """
        return self.run(name, [sys.executable, *map(str, words)], limit=limit)

    def run(self, name: str, words: list[str], *, limit: float) -> str:
        """As `python`, of any command."""
        limit = min(limit, self.left)
        shown = shlex.join(["python" if word == sys.executable else word for word in words])
        if limit < LEAST:
            raise NotMeasuredError("no time was left for it")
        log, answer = self.out / "logs" / f"{name}.log", self.out / "logs" / f"{name}.out"
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with (
            log.open("wb") as errors,
            answer.open("wb") as output,
            subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=output, stderr=errors, start_new_session=True
            ) as process,
        ):
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGKILL)
        seconds = round(time.monotonic() - began, 1)
        self.commands[name] = {"command": shown, "seconds": seconds, "exit_code": code}
        if code is None:
            raise NotMeasuredError(f"killed after {seconds:.0f} s, its limit")
        if code:
            raise NotMeasuredError(
                f"exit code {code}: {_reason(log.read_text(encoding='utf-8', errors='replace'))} (logs/{log.name})"
            )
        return answer.read_text(encoding="utf-8", errors="replace")
