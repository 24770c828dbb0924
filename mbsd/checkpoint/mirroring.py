"""Copying behind the training: the leader of each disk has a thread that sends its disk's files to the mirror.

Rank 0's thread chooses what is copied next and puts its step under `mirror/N`; the other leaders' threads send their
files of it and answer under `mirror/N/LEADER`; when all have, rank 0 writes the manifest of all files and prunes.
The newest checkpoint and the best one take turns. One that a newer one overtakes while it waits is left out, so that no
more than two ever wait. What fails is counted and said, and the next checkpoint tries again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from mbsd.checkpoint import owner, store
from mbsd.checkpoint.claim import Claim
from mbsd.checkpoint.mailbox import Mailbox, wait_for
from mbsd.checkpoint.mirror import Mirror, TakenOverError
from mbsd.checkpoint.store import FileFacts, Keep
from mbsd.io.remote import RemoteError

WARN_EVERY = 60.0  # seconds between two warnings
PAUSE = 0.1  # seconds between two looks of another disk's leader


class Mirroring:
    """The copying of a run's checkpoints; of rank 0, unless said otherwise. Made by the leader of each disk.

    Args:
        claim: with a mirror; this rank leads its disk.
        mailbox: of the writers.
        keep: which checkpoints stay.
        say: prints a line; called from the thread.

    Attributes:
        failures: checkpoints that could not be copied.
    """

    def __init__(self, claim: Claim, mailbox: Mailbox, keep: Keep, say: Callable[[str], None]) -> None:
        assert claim.mirror is not None
        self.mirror: Mirror = claim.mirror
        self.failures = 0
        self._claim, self._mailbox, self._keep, self._say = claim, mailbox, keep, say
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._copying: int | None = None
        self._turn_of_best = False
        self._protected: tuple[int, ...] = ()
        self._kept: set[int] = set()  # protected in the mirror: until the best one stands there, the one before too
        self._standing: set[int] = set()  # steps that the mirror has
        self._written: set[int] = set()  # steps that this start has saved
        self._owned = self._ended = False
        self._orders = 0
        self._warned: dict[str, float] = {}  # kind of warning -> when
        self._last_failure = ""
        work = self._lead if claim.world.is_first else self._follow
        threading.Thread(target=work, name="mirror", daemon=True).start()

    @property
    def busy(self) -> list[int]:
        """The steps that are being copied or wait for it: they must not be removed from the disk. Any leader's."""
        with self._changed:
            return [*([self._copying] if self._copying is not None else []), *self._waiting]

    def offer(self, step: int, protected: tuple[int, ...], *, new: bool = True) -> None:
        """Take a checkpoint that stands on every disk; on other ranks than 0 nothing happens.

        Args:
            protected: steps that are kept, say the best one: those that the mirror lacks are copied too.
            new: it was just written; else it is copied only where the mirror does not have it.
        """
        if not self._claim.world.is_first:
            return
        root = self._claim.storage.root
        with self._changed:
            if self._ended:
                return
            if new:
                self._written.add(step)
                self._standing.discard(step)
            self._protected = protected
            lacking = set(protected) - self._standing - {step}
            self._waiting = [step, *(other for other in lacking if (root / store.name_of(other)).is_dir())]
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Return when nothing is left to copy, or after so many seconds; whether nothing is left."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and self._copying is None, seconds)

    def end(self, bound: float) -> None:
        """Copy nothing more, and say what is missing; what is still being copied after `bound` seconds has failed."""
        with self._changed:
            pending = set(self.busy) - self._standing
            self._ended, self._waiting = True, []
        if pending:
            self.failures += len(pending)
            cause = f"not done {bound:g} s after the end of the training (run.mirror_wait)"
            self._last_failure = f"{store.name_of(max(pending))} ({cause})"
        if self.failures:
            newest = store.name_of(max(self._standing)) if self._standing else "none"
            self._say(
                f"WARNING: {self.mirror}: {self.failures} copies of checkpoints failed, the last of "
                f"{self._last_failure}; the newest that is known to be there: {newest}"
            )

    def _lead(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                step = self._copying = self._waiting.pop(-1 if self._turn_of_best else 0)
                self._turn_of_best = bool(self._waiting) and not self._turn_of_best
            try:
                self._copy(step)
            except owner.FencedError:
                self._ended = True  # the run ends at its next save
            except TakenOverError as error:
                self._ended = True
                self._failed(step, f"{error}; this start copies nothing more")
            except Exception as error:  # no failure of a mirror may end a run
                self._failed(step, _words(error))
                with self._changed:  # the best one too is tried again at the next checkpoint
                    self._waiting = [other for other in self._waiting if other > step]
            with self._changed:
                self._copying = None
                if self._ended:
                    self._waiting = []
                self._changed.notify_all()

    def _copy(self, step: int) -> None:
        mirror, claim, name = self.mirror, self._claim, store.name_of(step)
        if not self._owned:
            mirror.claim(claim.token)
            self._standing |= {found for found, complete in mirror.steps().items() if complete} - self._written
            self._owned = True
        if step in self._standing:
            return
        began = time.monotonic()
        mirror.withdraw(step)
        self._orders += 1
        order = f"mirror/{self._orders}"
        self._mailbox.set(order, str(step))
        answers = [self._send(step)]
        others = [f"{order}/{leader}" for leader in claim.storage.leaders[1:]]
        answers += [wait_for(self._mailbox, key, PAUSE) for key in others]
        for key in (order, *others):
            self._mailbox.delete_key(key)
        if errors := [str(answer["error"]) for answer in answers if answer["error"]]:
            raise RemoteError(errors[0])
        files = {path: FileFacts(*facts) for answer in answers for path, facts in answer["files"].items()}
        owner.check(claim.storage.root, claim.token)
        mirror.check(claim.token)
        mirror.publish(store.Manifest(step, answers[0]["world_size"], 0, 1, files))
        self._standing.add(step)
        size = sum(facts.size for facts in files.values())
        self._say(f"copied {name} to {mirror} ({size / 1e6:,.1f} MB in {time.monotonic() - began:.1f} s)")
        protected = set(self._protected)
        self._kept = protected if protected <= self._standing else self._kept | protected
        try:
            mirror.prune(step, self._keep, self._kept)
        except RemoteError as error:
            self._warn("prune", f"{mirror}: older checkpoints could not be removed ({error})")

    def _send(self, step: int) -> dict[str, Any]:
        """Send what lies on this rank's disk; what was sent, or the error."""
        folder = self._claim.storage.root / store.name_of(step)
        try:
            manifest = store.read_manifest(folder)
            self.mirror.send(folder, step, manifest.files)
            return {"error": None, "files": manifest.files, "world_size": manifest.world_size}
        except Exception as error:  # of any kind: rank 0 has to know
            return {"error": f"rank {self._claim.world.rank}: {_words(error)}", "files": {}}

    def _follow(self) -> None:
        try:
            while True:
                self._orders += 1
                order = f"mirror/{self._orders}"
                step = wait_for(self._mailbox, order, PAUSE)
                self._mailbox.set(f"{order}/{self._claim.world.rank}", json.dumps(self._send(step)))
        except RuntimeError:
            return  # rank 0 has left, and its key-value store with it

    def _failed(self, step: int, cause: str) -> None:
        self.failures += 1
        self._last_failure = f"{store.name_of(step)} ({cause})"
        self._warn(
            "copy",
            f"checkpoint {store.name_of(step)} could not be copied to {self.mirror} ({cause}); {self.failures} such "
            "failures so far; training continues, the next checkpoint tries again",
        )

    def _warn(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if kind not in self._warned or now - self._warned[kind] >= WARN_EVERY:
            self._warned[kind] = now
            self._say(f"WARNING: {text}")


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, RemoteError | store.BrokenError) else f"{type(error).__name__}: {error}"
