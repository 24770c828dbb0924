"""The place of a picture, which every kind of image root returns, and the root that is a folder of files."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Protocol

from mbsd.catalog.build.open_image import ImageRejected

NOT_FOUND = "not found below the image root"


class Place(Protocol):
    """Where one picture's bytes lie. It is small, so that it can be sent to a worker, and reads when it is asked to."""

    def read(self, max_bytes: int) -> bytes:
        """Return the bytes.

        Raises:
            ImageRejected: there is no such picture, it lies outside the root, cannot be read, or has more than
                `max_bytes`.
        """
        ...


@dataclass(frozen=True)
class InFile:
    """`size` bytes at `offset` of a file: a whole picture, or a member of a tar."""

    path: str
    offset: int
    size: int

    def read(self, max_bytes: int) -> bytes:
        """As in `Place`."""
        if self.size > max_bytes:
            raise ImageRejected(f"too large: {self.size} bytes, the limit is {max_bytes}")
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageRejected(f"cannot be opened ({error.strerror})") from None
        try:
            data = os.pread(fd, self.size, self.offset)
        except OSError as error:
            raise ImageRejected(f"cannot be read ({error.strerror})") from None
        finally:
            os.close(fd)
        if len(data) != self.size:
            raise ImageRejected(f"ends early: {len(data)} of {self.size} bytes")
        return data


@dataclass(frozen=True)
class InFolder:
    """The first of `names` that exists below `folder`; the path of `folder` itself holds no links."""

    folder: str
    names: tuple[str, ...]

    def read(self, max_bytes: int) -> bytes:
        """As in `Place`."""
        for name in self.names:
            path = os.path.realpath(os.path.join(self.folder, name))
            if os.path.commonpath([self.folder, path]) != self.folder:
                raise ImageRejected("leads out of the image root by a link")
            try:
                status = os.stat(path)
            except OSError:
                continue
            if not stat.S_ISREG(status.st_mode):
                raise ImageRejected("not a regular file")
            return InFile(path, 0, status.st_size).read(max_bytes)
        raise ImageRejected(NOT_FOUND)


class FolderRoot:
    """A folder of pictures."""

    def __init__(self, folder: str):
        self._folder = os.path.realpath(folder)
        self.description = self._folder

    def place(self, names: tuple[str, ...]) -> Place:
        """As in `ImageRoot`; whether the picture exists is found when it is read."""
        return InFolder(self._folder, names)
