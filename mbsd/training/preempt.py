"""Leaving early and well: a signal sets a flag, and all ranks stop after the same step.

| signal | sent by | first | again |
|---|---|---|---|
| SIGTERM | schedulers, DeepSpeed's launcher, torchrun | save and stop | this rank ends at once; see AGAIN |
| SIGUSR1 | `sbatch --signal=USR1@120`, `scancel --signal=USR1` | save and stop | nothing, with a line |
| SIGINT | Ctrl-C | save and stop | this rank ends at once |

A signal to one rank is enough. DeepSpeed's launcher (0.19.8) forwards SIGTERM and SIGINT to its first rank as
SIGTERM, kills it after 30 seconds, and then goes to the next: the step and the save have to fit in there. It then exits
with 1, whatever the ranks did. SIGUSR1 kills it: send that to the ranks. The outer `deepspeed` command forwards no
signals: use Ctrl-C, which the terminal sends to all processes, or signal its child process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ENDING = (signal.SIGTERM, signal.SIGINT)  # sent again, they end the rank
# Seconds in which a second SIGTERM is the first one, which came twice: a scheduler that signals all processes of a job
# reaches a rank directly and through its launcher.
AGAIN = 2.0
STUCK = 1.0  # seconds that the main thread has to take a signal before another thread ends the process for it


@dataclass(frozen=True)
class Stop:
    """A run left before its end: after `step`, because of `signal`."""

    step: int
    signal: signal.Signals


class StopRequests:
    """The signals that this rank got, and what all ranks agreed on.

    Args:
        timeout: seconds a rank waits for the others' answer.

    Attributes:
        received: how often each signal came to this rank.
    """

    def __init__(self, timeout: float) -> None:
        self.received: Counter[signal.Signals] = Counter()
        self._first = 0
        self._first_at: dict[signal.Signals, float] = {}
        # A group of its own on the host's network: nothing in it waits for a device.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def poll(self) -> signal.Signals | None:
        """The signal that any rank had got when the step before this one ended, the same on every rank.

        Collective, once a step. The maximum over ranks is asked for after one step and read after the next: it
        travels while the step is computed, so that no step waits for it unless a rank is a whole step behind.
        """
        answer = self._answer()
        flag = torch.tensor(self._first, dtype=torch.int32)
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._asked = work, flag
        return signal.Signals(answer) if answer else None

    def close(self) -> None:
        """Read the last answer, so that no rank leaves while another still asks (collective)."""
        self._answer()

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        work, flag = self._asked
        work.wait()
        self._asked = None
        return int(flag)

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """The handler: it sets the flag and prints a line, and nothing else, for it may run between any two lines."""
        received = signal.Signals(number)
        self.received[received] += 1
        waited = time.monotonic() - self._first_at.setdefault(received, time.monotonic())
        name, rank = received.name, os.environ.get("RANK", "0")
        if not self._first:
            self._first = number
            return
        if self.received[received] > 1 and (
            received is signal.SIGINT or (received is signal.SIGTERM and waited >= AGAIN)
        ):
            _write(f"rank {rank}: {name} again: ending at once, without a save\n")
            _end_workers()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        hint = f"; {name} after {AGAIN:g} s ends it at once" if received is signal.SIGTERM else ""
        _write(f"rank {rank}: {name}: stopping already, this one changes nothing{hint}\n")


@contextmanager
def stop_requests(timeout: float) -> Iterator[StopRequests]:
    """Take SIGTERM, SIGUSR1 and SIGINT as requests to save and stop, for the time of a run."""
    requests = StopRequests(timeout)
    before = {number: signal.signal(number, requests.take) for number in SIGNALS}
    with _ending_when_stuck():
        try:
            yield requests
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _ending_when_stuck() -> Iterator[None]:
    """End this process at a second SIGTERM or SIGINT where the main thread is stuck and never gets to its handlers.

    Python's handlers run between two lines of the main thread: in a call that waits for a dead rank, never. The
    interpreter also writes each signal's number into a pipe at once, which a thread reads.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(reader, True)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_read_signals, args=(reader,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _read_signals(reader: int) -> None:
    first: dict[int, float] = {}
    while byte := os.read(reader, 1):
        number, now = byte[0], time.monotonic()
        if number in ENDING and now - first.setdefault(number, now) >= AGAIN:
            time.sleep(STUCK)
            _write(f"rank {os.environ.get('RANK', '0')}: {signal.Signals(number).name} again: ending at once\n")
            _end_workers()
            os._exit(128 + number)
    os.close(reader)


def _end_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def _write(line: str) -> None:
    """Past Python's buffers, which a handler may have interrupted."""
    os.write(2, line.encode())
