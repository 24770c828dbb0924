"""Leaving early and well: a signal sets a flag, and all ranks stop after the same step.

| signal | sent by | first | again |
|---|---|---|---|
| SIGTERM | schedulers, DeepSpeed's launcher, torchrun | save and stop | nothing, with a line |
| SIGUSR1 | `sbatch --signal=USR1@120`, `scancel --signal=USR1` | save and stop | nothing, with a line |
| SIGINT | Ctrl-C | save and stop | this rank ends at once |

A signal to one rank is enough. DeepSpeed's launcher (0.19.8) forwards SIGTERM and SIGINT to its first rank as
SIGTERM, kills it after 30 seconds, and then goes to the next: the step and the save have to fit in there. It then exits
with 1, whatever the ranks did. SIGUSR1 kills it: send that to the ranks. The outer `deepspeed` command forwards no
signals: use Ctrl-C, which the terminal sends to all processes, or signal its child process.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


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
        name, rank = received.name, os.environ.get("RANK", "0")
        if not self._first:
            self._first = number
            return
        if received is signal.SIGINT and self.received[received] > 1:
            _write(f"rank {rank}: {name} again: ending at once, without a save\n")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _write(f"rank {rank}: {name}: stopping already, this one changes nothing\n")


@contextmanager
def stop_requests(timeout: float) -> Iterator[StopRequests]:
    """Take SIGTERM, SIGUSR1 and SIGINT as requests to save and stop, for the time of a run."""
    requests = StopRequests(timeout)
    before = {number: signal.signal(number, requests.take) for number in SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(line: str) -> None:
    """Past Python's buffers, which a handler may have interrupted."""
    os.write(2, line.encode())
