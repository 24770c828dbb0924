"""What the screen shows: facts at the start, then a progress bar, or a line a minute where stderr is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm.auto import tqdm

from mbsd.io.console import say

LINE_EVERY = 60.0  # seconds


class Progress:
    """How far a run is, on stderr.

    On a terminal a bar with loss, steps a second, time left and the share of time spent waiting for data; elsewhere a
    line with the same facts as soon as there is a loss, every `line_every` seconds, and at the end.
    """

    def __init__(self, start_step: int, total_steps: int, line_every: float = LINE_EVERY) -> None:
        self.step, self.start_step, self.total_steps = start_step, start_step, total_steps
        self.line_every = line_every
        self._facts: dict[str, str] = {}
        self._began = time.monotonic()
        self._said: tuple[float, int] | None = None  # when, and at which step
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, mininterval=0.5, delay=1.0
            )

    def advance(self) -> None:
        """One step is done."""
        self.step += 1
        if self._bar is not None:
            self._bar.update()
        elif self._said is not None and time.monotonic() - self._said[0] >= self.line_every:
            self._say()

    def show(self, facts: Mapping[str, str]) -> None:
        """Facts that stand beside the bar from now on, loss first; what is not named stays as it was."""
        self._facts |= facts
        if self._bar is not None:
            self._bar.set_postfix(self._facts, refresh=False)
        elif self._said is None:
            self._say()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.delay = 0  # or a bar that `say` has drawn before its time is left without an end of line
            self._bar.close()
        elif self._said is not None and self._said[1] != self.step:
            self._say()

    def _say(self) -> None:
        now = time.monotonic()
        self._said = (now, self.step)
        done = self.step - self.start_step
        seconds_a_step = (now - self._began) / done if done else 0.0
        left = tqdm.format_interval(seconds_a_step * (self.total_steps - self.step))
        facts = ", ".join(f"{name} {value}" for name, value in self._facts.items())
        rate = f"{1 / seconds_a_step:.2f} steps/s" if seconds_a_step else "? steps/s"
        say(f"step {self.step}/{self.total_steps} ({self.step / self.total_steps:.0%}): {facts}, {rate}, {left} left")
