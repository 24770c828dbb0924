"""Faults that a rank is given before it runs a launcher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import time
from pathlib import Path
from typing import Any

from mbsd.checkpoint.manager import CheckpointManager
from mbsd.data.batch_builder import BatchBuilder
from mbsd.training.feed import Feed


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


def small_shared_memory(rank: int, megabytes: float) -> None:
    """This rank sees a /dev/shm of its own of this size, as a container does; for root alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    recursive, private = 0x4000, 0x40000  # MS_REC, MS_PRIVATE of linux/mount.h
    size = f"size={int(megabytes * 2**20)}".encode()
    if (
        libc.unshare(0x20000)  # CLONE_NEWNS of linux/sched.h
        or libc.mount(b"none", b"/", None, recursive | private, None)
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, size)
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def shared_memory_full_at_validation(rank: int, megabytes: float) -> None:
    """This rank's /dev/shm has this size, and is full when a validation starts."""
    small_shared_memory(rank, megabytes)
    batches = Feed.validation_batches

    def full(feed: Feed) -> Any:
        with contextlib.suppress(OSError), Path("/dev/shm/filled").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return batches(feed)

    Feed.validation_batches = full  # type: ignore[method-assign]


def few_files(rank: int, number: int) -> None:
    """This rank may open so many files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
