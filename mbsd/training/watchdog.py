"""A rank that hangs reports where and exits, so that the launcher ends the others: no job waits for ever."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

# What a rank that hangs gets to write its stacks: the disk they go to may be what hangs.
LAST_WORDS = 20.0


class Watchdog:
    """Ends this process with exit code 1 when nothing was done for `timeout` seconds.

    A daemon thread looks at the time of the last `beat`, writes all stacks of the process to stderr and to
    `stacks-rank-0001.txt`, and one line that names the rank and what it was doing. Where not even this thread can run
    (foreign code that never lets go of the interpreter), faulthandler's own thread, wound up at every look, writes the
    stacks to stderr and ends the process.

    Args:
        folder: where the stacks go.
        rank: of this process.
        timeout: seconds; 0: off.
    """

    def __init__(self, folder: Path, rank: int, timeout: float) -> None:
        self.folder, self.rank, self.timeout = folder, rank, timeout
        self._beat = (time.monotonic(), "starting")
        self._stopped = threading.Event()

    def beat(self, doing: str | None = None) -> None:
        """Something was done; from here on the rank is `doing` this, say "step 12: training" (None: as before)."""
        self._beat = (time.monotonic(), doing or self._beat[1])

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with a beat at each."""
        for batch in batches:
            self.beat()
            yield batch

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        if self.timeout:
            self.beat("starting")
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the process in peace."""
        self._stopped.set()
        if self.timeout:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        look_every = min(30.0, self.timeout / 20)
        while True:
            # Longer by a look than what is allowed, so that it never comes before this thread.
            faulthandler.dump_traceback_later(self.timeout + 2 * look_every, exit=True, file=2)
            left = self._beat[0] + self.timeout - time.monotonic()
            if left <= 0:
                self._end()
            if self._stopped.wait(min(left, look_every)):
                faulthandler.cancel_dump_traceback_later()
                return

    def _end(self) -> None:
        faulthandler.dump_traceback_later(LAST_WORDS, exit=True, file=2)
        since, doing = self._beat
        name = f"stacks-rank-{self.rank:04d}.txt"
        line = (
            f"rank {self.rank} on {platform.node()}: nothing done for {time.monotonic() - since:.0f} s in {doing}; "
            f"run.timeout={self.timeout:g}, so it ends; its stacks are above and in {self.folder / name}\n"
        )
        faulthandler.dump_traceback(file=2)
        os.write(2, line.encode())
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("w", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            faulthandler.dump_traceback(file=file)
        for worker in multiprocessing.active_children():  # one of them may be what hangs
            worker.kill()
        os._exit(1)
