"""Writing behind the training loop: each rank's thread writes its files, leaders publish, rank 0 knows how it went.

The threads agree through a key-value store (torch's TCPStore: a connection of its own, so that no collective of the
training loop is ever mixed up with theirs, and a full disk cannot keep a rank from reporting it):

1. every rank writes and syncs its files and puts their sizes and checksums, or its error, under `files/RANK`;
2. the leader of each file system waits for ALL ranks; if all have written, it publishes its part (`store.commit`), else
   it removes it, and reports under `part/LEADER`;
3. when all parts stand, each leader prunes; rank 0 has seen every answer and keeps the outcome, and hands the
   checkpoint to the mirror. What the mirror is at or has yet to copy, rank 0's report names, and no leader prunes it.

Killed between two parts' renames, a checkpoint lacks a part and is not complete; the one before still stands.
"""

from __future__ import annotations

import json
import platform
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.checkpoint import owner, store
from mbsd.checkpoint.mailbox import Mailbox, wait_for
from mbsd.checkpoint.mirroring import Mirroring
from mbsd.checkpoint.store import FileFacts
from mbsd.errors import UserError


@dataclass(frozen=True)
class Job:
    """One rank's part in one save."""

    root: Path
    step: int
    attempt: str
    """Of this start and this save; the same on every rank, and of no other save."""
    rank: int
    world_size: int
    leader: int
    members: tuple[int, ...]
    leaders: tuple[int, ...]
    token: str
    """Of the owner that may publish."""
    keep_last: int
    keep_every: int
    protected: tuple[int, ...]
    """Steps whose checkpoints stay: the best one."""
    files: tuple[tuple[str, memoryview], ...]
    """Name below the checkpoint's folder, and the bytes."""
    mirroring: Mirroring | None = None
    """Of a leader: copies what was published."""


@dataclass(frozen=True)
class Outcome:
    """How a save ended, as rank 0 knows it."""

    folder: Path
    errors: tuple[str, ...]
    fenced: str | None
    warnings: tuple[str, ...]
    bytes: int
    seconds: float
    """From its start until it was durable everywhere."""


class Writing(threading.Thread):
    """The thread of a save; `outcome` is there when it has ended, complete on rank 0, and `report` has been called."""

    def __init__(self, job: Job, mailbox: Mailbox, report: Callable[[Outcome], None]) -> None:
        super().__init__(name=f"checkpoint-{job.step}", daemon=True)
        self._job, self._mailbox, self._report = job, mailbox, report
        self.outcome: Outcome | None = None
        self.start()

    def run(self) -> None:
        """See the module's text."""
        outcome = write(self._job, self._mailbox)
        self._report(outcome)
        self.outcome = outcome


def write(job: Job, mailbox: Mailbox) -> Outcome:
    """One rank's share of a save; every rank calls it. On rank 0 the outcome is everybody's, on others their own."""
    began = time.perf_counter()
    writing = store.writing_folder(job.root, job.step, job.attempt)
    mine: dict[str, Any] = {"error": None, "files": {}}
    try:
        mine["files"] = {name: store.write_file(writing / name, data) for name, data in job.files}
    except Exception as error:  # of any kind: the other ranks have to know
        mine["error"] = f"rank {job.rank} on {platform.node()}: {_words(error)}"
    mailbox.set(f"{job.attempt}/files/{job.rank}", json.dumps(mine))
    folder, size = job.root / store.name_of(job.step), 0
    errors: list[str] = []
    warnings: list[str] = []
    fenced: str | None = None
    if job.rank == job.leader:
        written = [wait_for(mailbox, f"{job.attempt}/files/{rank}") for rank in range(job.world_size)]
        errors = [str(answer["error"]) for answer in written if answer["error"]]
        size = sum(int(facts[0]) for answer in written for facts in answer["files"].values())
        part: dict[str, Any] = {"error": None, "fenced": None, "warnings": [], "copied": []}
        try:
            if errors:
                shutil.rmtree(writing, ignore_errors=True)
            else:
                store.commit(writing, _manifest(job, written), lambda: owner.check(job.root, job.token))
                part["warnings"] = store.mark_latest(folder)
        except owner.FencedError as error:
            shutil.rmtree(writing, ignore_errors=True)
            part["fenced"] = str(error)
        except Exception as error:
            shutil.rmtree(writing, ignore_errors=True)
            part["error"] = f"rank {job.rank} on {platform.node()}: {_words(error)}"
        if job.mirroring is not None:
            part["copied"] = job.mirroring.busy
        mailbox.set(f"{job.attempt}/part/{job.leader}", json.dumps(part))
        parts = [wait_for(mailbox, f"{job.attempt}/part/{leader}") for leader in job.leaders]
        errors += [str(answer["error"]) for answer in parts if answer["error"]]
        warnings = [str(warning) for answer in parts for warning in answer["warnings"]]
        fenced = next((str(answer["fenced"]) for answer in parts if answer["fenced"]), None)
        if not errors and fenced is None:
            if job.mirroring is not None:
                job.mirroring.offer(job.step, job.protected)
            copied = (step for answer in parts for step in answer["copied"])
            try:
                owner.check(job.root, job.token)  # a start that took over meanwhile may be reading an older one
                warnings += store.prune(job.root, job.step, job.keep_last, job.keep_every, {*job.protected, *copied})
            except owner.FencedError as error:
                fenced = str(error)
            except (OSError, UserError) as error:  # too many checkpoints are no reason to lose one
                warnings += [_words(error)]
    return Outcome(folder, tuple(errors), fenced, tuple(warnings), size, time.perf_counter() - began)


def forget(mailbox: Mailbox, attempt: str, world_size: int) -> None:
    """Clear what an ended save left in the key-value store; rank 0 calls it when all ranks have ended that save."""
    for rank in range(world_size):
        mailbox.delete_key(f"{attempt}/files/{rank}")
        mailbox.delete_key(f"{attempt}/part/{rank}")


def _manifest(job: Job, written: list[dict[str, Any]]) -> store.Manifest:
    files = {name: FileFacts(*facts) for rank in job.members for name, facts in written[rank]["files"].items()}
    return store.Manifest(job.step, job.world_size, job.leaders.index(job.leader), len(job.leaders), files)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {error}"
