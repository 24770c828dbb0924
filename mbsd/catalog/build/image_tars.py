"""Pictures inside tar files: where each member's bytes lie, by name."""

from __future__ import annotations

import os
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from mbsd.catalog.build.image_folder import NOT_FOUND, InFile, Place
from mbsd.catalog.build.open_image import ImageRejected
from mbsd.errors import UserError

COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class TarRoot:
    """Uncompressed tars as one folder; of two members with one name the later one counts, as when they are unpacked."""

    def __init__(self, paths: list[str]):
        self._paths = paths
        self.description = [
            [os.path.realpath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in paths
        ]
        # A private database that moves to a temporary file when it outgrows its cache: ten million names would
        # take gigabytes as Python objects.
        self._members = sqlite3.connect("")
        self._members.execute(
            "CREATE TABLE members (name TEXT PRIMARY KEY, tar INTEGER, start INTEGER, size INTEGER, reason TEXT)"
            " WITHOUT ROWID"
        )
        for number, path in enumerate(paths):
            rows = _members(number, path)
            self._members.executemany("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?)", rows)

    def place(self, names: tuple[str, ...]) -> Place:
        """As in `ImageRoot`."""
        query = "SELECT tar, start, size, reason FROM members WHERE name = ?"
        for name in names:
            found = self._members.execute(query, (name,)).fetchone()
            if found is not None:
                tar, start, size, reason = found
                if reason:
                    raise ImageRejected(reason)
                return InFile(self._paths[tar], start, size)
        raise ImageRejected(NOT_FOUND)


def _members(number: int, path: str) -> Iterator[tuple[str, int, int, int, str]]:
    """Yield (name, number of the tar, offset, size, reason) of each member; the reason is why it is unusable, or ""."""
    try:
        with open(path, "rb") as file:
            start = file.read(6)
        if path.lower().endswith(COMPRESSED) or start.startswith(COMPRESSED_STARTS):
            raise UserError(f"image root {path}: compressed; unpack it to a plain .tar, which is read at any place")
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # the header objects would fill the memory
                name = str(PurePosixPath(member.name))
                if not _is_text(name):
                    continue
                if member.issym() or member.islnk():
                    yield name, number, 0, 0, "a link inside the tar"
                elif member.isreg() and not member.issparse():
                    yield name, number, member.offset_data, member.size, ""
                else:
                    yield name, number, 0, 0, "not a regular file"
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"image root {path}: not an uncompressed tar file, or cut short ({error})") from None


def _is_text(name: str) -> bool:
    """Whether an item can name it: `tarfile` gives bytes that are not UTF-8 as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
