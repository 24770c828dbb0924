"""The shards of a catalogue behind a URL, on this machine's disk: fetched when first read, within a bound.

All processes of a machine share the folder, through file locks that a killed process gives back: one lock a shard, so
that no two fetch the same one, and one for the room. Who fetches first reserves the shard's size in a file `.room`
and removes the shards that were read the longest ago, so that what is there and what is on its way never exceed the
bound. A shard appears by a rename, once every picture in it has the checksum that the index has of it. It may be
removed while another process reads it: an open file stays.

fsspec's caches of whole files have no bound; webdataset's has one that several processes exceed together, and neither
knows the checksums of what it holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mbsd.errors import RunFailed, UserError
from mbsd.io.remote import RemoteError, RemoteFolder

PAUSE = 0.05  # seconds between two looks for room where others are fetching
ROOM_LOCK = ".room.lock"


@dataclass(frozen=True)
class ShardCache:
    """The shards of one catalogue in a cache that several may share.

    Attributes:
        url: of the catalogue.
        root: of the cache.
        folder: of this catalogue in it.
        bound: bytes of all shards below `root`.
    """

    url: str
    root: Path
    folder: Path
    bound: int

    @contextmanager
    def opened(self, name: str, is_whole: Callable[[int], bool]) -> Iterator[int]:
        """A file descriptor of the shard `name`, fetched where it is not here.

        Args:
            is_whole: whether the shard behind a descriptor is what was written. One that is not is fetched once more,
                and then taken: its other pictures may be whole.

        Raises:
            FileNotFoundError: the store does not have it.
            RunFailed: the store does not give it.
            UserError: it is larger than the bound, or the cache cannot be written.
        """
        descriptor = _open(self.folder / name)
        if descriptor is None:
            descriptor = self._fetch(name, is_whole)
        try:
            os.utime(descriptor)  # what was read last is removed last
            yield descriptor
        finally:
            os.close(descriptor)

    def drop(self, name: str) -> None:
        """Remove a shard: its next reader fetches it."""
        (self.folder / name).unlink(missing_ok=True)

    def _fetch(self, name: str, is_whole: Callable[[int], bool]) -> int:
        path = self.folder / name
        part, room = path.with_suffix(".part"), path.with_suffix(".room")
        try:
            with locked(path.with_suffix(".lock")):
                if (descriptor := _open(path)) is not None:
                    return descriptor  # another process was quicker
                remote = RemoteFolder(self.url, "data.catalog")  # of this process: a forked one shares no connection
                self._reserve(room, remote.size(name))
                remote.get(name, part)
                descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
                if not is_whole(descriptor):
                    os.close(descriptor)
                    remote.get(name, part)
                    descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
                with locked(self.root / ROOM_LOCK):
                    part.rename(path)
                    room.unlink()
                return descriptor
        except RemoteError as error:
            if error.missing:
                raise FileNotFoundError(errno.ENOENT, "not there", f"{self.url}/{name}") from error
            raise RunFailed(f"data.catalog: {error}; mend that and start again: a run resumes") from error
        except OSError as error:
            raise UserError(f"data.cache={self.root}: {error.filename}: {error.strerror}; mend that") from error

    def _reserve(self, room: Path, size: int) -> None:
        if size > self.bound:
            raise UserError(
                f"data.cache_gb={self.bound / 1e9:g}: {self.url}/shards/{room.stem}.tar alone has {size / 1e9:.3g} GB; "
                "set it higher, to a few shards for each loader process at least"
            )
        while True:
            with locked(self.root / ROOM_LOCK):
                rooms = [other for other in self.root.glob("*/shards/*.room") if other == room or not _swept(other)]
                used = sum(other.stat().st_size for other in rooms if other != room)
                shards = [(path.stat(), path) for path in self.root.glob("*/shards/*.tar")]
                used += sum(stat.st_size for stat, _ in shards)
                for stat, path in sorted(shards, key=lambda shard: shard[0].st_mtime_ns):
                    if used + size <= self.bound:
                        break
                    path.unlink(missing_ok=True)
                    used -= stat.st_size
                if used + size <= self.bound:
                    with room.open("wb") as file:
                        file.truncate(size)  # a size without bytes
                    return
            time.sleep(PAUSE)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file, which is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _swept(room: Path) -> bool:
    """Remove a reservation, and what was fetched, of a process that was killed; whether it was."""
    with room.with_suffix(".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        for left in (room, room.with_suffix(".part")):
            left.unlink(missing_ok=True)
        return True


def _open(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return None
