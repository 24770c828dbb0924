"""Catalogue → batches: the loader's worker processes: how one starts, and what it means that one is gone."""

from __future__ import annotations

import multiprocessing.queues
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mbsd.data.room import no_room
from mbsd.errors import RunFailed, UserError

T = TypeVar("T")

NO_ROOM = 75  # a worker's exit code where it could not hand a batch over; EX_TEMPFAIL of sysexits.h


def start_worker(worker: int) -> None:
    """Leave signals to the training process, and end where a batch cannot be handed over.

    A scheduler that preempts a job signals all its processes: a worker that died of it would take down the step after
    which the run would have been saved. Only its own parent may end it (torch does, at the end of the loop).
    """
    torch.set_num_threads(1)
    signal.set_wakeup_fd(-1)  # it is the training process's
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A handler cannot know who sent the signal; a waiting thread can.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_await_parent_sigterm, args=(os.getppid(),), daemon=True).start()
    # The thread that sends batches would print a traceback, drop the batch and go on: nobody would ever get it.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _await_parent_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _end(error: Exception, batch: object) -> None:
    if not isinstance(error, OSError) and "shared memory" not in str(error):
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)
    os._exit(NO_ROOM)


def start_workers(loader: DataLoader[T]) -> Iterator[T]:
    """What the loader yields, its workers running.

    Raises:
        UserError: no room is left for what they share with this process.
    """
    # An iterator that could not be made has nothing to shut down, and torch's would end in a traceback over that.
    _MultiProcessingDataLoaderIter._shutdown = True
    try:
        return iter(loader)
    except OSError as error:
        raise UserError(no_room(os.strerror(error.errno or 0))) from None


def watch_workers() -> None:
    """Let a worker that dies end this process at once, with one line: UserError or RunFailed in the main thread.

    torch's DataLoader raises a RuntimeError in its own handler of SIGCHLD, which this one is put around. Called in
    another thread it does nothing: signals are the main thread's.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _Watch):
        signal.signal(signal.SIGCHLD, _Watch(handler))


def from_workers(batches: Iterator[T]) -> Iterator[T]:
    """What a DataLoader yields; where it has lost a worker, the error of `watch_workers`."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError) as error:
            # While it waits for a batch, torch wraps what a handler raises.
            raise error.__cause__ if isinstance(error.__cause__, (UserError, RunFailed)) else _meaning(error) from None
        yield batch


class _Watch:
    """A handler of SIGCHLD around another one."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            raise _meaning(error) from None


def _meaning(error: Exception) -> Exception:
    """What torch's error about a worker means; any other error as it is."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) or "ancdata" in text:  # no file could be opened for a batch that arrived
        return UserError(no_room(os.strerror(error.errno or 0) if isinstance(error, OSError) else text))
    if not text.startswith("DataLoader worker"):
        return error
    if f"exit code {NO_ROOM}" in text or "Bus error" in text:
        return UserError(no_room("the worker is gone"))
    killed = re.search(r"pid\(?s?\)? ?(\d+)\)? is killed by signal: (\w+)", text)
    if killed is None:
        return RunFailed(f"a loader worker is gone: {text}")
    free = psutil.virtual_memory().available / 1e9
    return RunFailed(
        f"a loader worker (pid {killed[1]}) was ended by a signal from outside: {killed[2]}; this host has {free:.1f} "
        "GB of memory available now: if the kernel ended it for want of memory, lower data.num_workers, data.prefetch "
        "or the micro-batch; started again, a run resumes from its newest checkpoint"
    )
