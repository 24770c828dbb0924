"""Where the raw pictures lie (a folder, tar files or a URL), read by name and never outside of itself.

`locate` only says where to look: worker processes look and read, under the limits of a picture.
"""

from __future__ import annotations

import glob
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from mbsd.catalog.normalise import ImageRejected
from mbsd.errors import UserError

NOT_FOUND = "not found below the image root"
COMPANIONS = {".idx", ".json", ".txt", ".md5", ".sha256"}  # what lies beside the tars of a WebDataset
COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Place(Protocol):
    """Where one picture's bytes lie; small, so that it can be sent to a worker."""

    def read(self, max_bytes: int) -> bytes:
        """Return the bytes.

        Raises:
            ImageRejected: they are not there, leave the root, cannot be read, or are more than `max_bytes`.
        """
        ...


class ImageRoot(Protocol):
    """What `Item.image` is relative to.

    Attributes:
        description: what an unfinished build compares to see that it goes on with the same pictures.
    """

    description: Any

    def place(self, names: tuple[str, ...]) -> Place:
        """Return where to look for the first of these names that exists; each is relative and free of `..`.

        Raises:
            ImageRejected: it is known not to be there.
        """
        ...


def open_image_root(images: Path | str) -> ImageRoot:
    """Return the root that `images` names: a folder of pictures, one tar, a folder or glob of tars, or an fsspec URL.

    Raises:
        UserError: there is no such thing, or a tar is compressed.
    """
    from mbsd.catalog.image_tars import TarRoot  # here: it imports this file
    from mbsd.catalog.image_url import UrlRoot, local_path

    text = str(images)
    if isinstance(images, str) and ("://" in text or "::" in text):
        local = local_path(text)
        if local is None:
            return UrlRoot(text)
        text = local
    if os.path.isdir(text):
        tars = _tars_in(text)
        return TarRoot(tars) if tars else FolderRoot(text)
    if os.path.isfile(text):
        return TarRoot([text])
    tars = sorted(path for path in glob.glob(text, recursive=True) if Path(path).suffix not in COMPANIONS)
    if not tars:
        raise UserError(f"image root {text}: no such folder or tar file, and nothing that it matches as a pattern")
    return TarRoot(tars)


def locate(root: ImageRoot, image: str) -> Place:
    """Return where the bytes of `Item.image` lie; a URL is looked up as `host/path` and as `path` below the root.

    Raises:
        ImageRejected: it is known not to be there, or its name leads out of the root.
    """
    return root.place(_names(image))


@dataclass(frozen=True)
class InFile:
    """`size` bytes at `offset` of a file: a whole picture, or a member of a tar."""

    path: str
    offset: int
    size: int

    def read(self, max_bytes: int) -> bytes:
        """Return the bytes (see `Place`)."""
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
    """The first of `names` below `folder`, whose path is free of links."""

    folder: str
    names: tuple[str, ...]

    def read(self, max_bytes: int) -> bytes:
        """Return the bytes (see `Place`)."""
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
        """Return the place of a picture, which may not exist."""
        return InFolder(self._folder, names)


def _tars_in(folder: str) -> list[str]:
    """The tars of a folder that holds nothing but tars; [] at the first entry that makes it a folder of pictures."""
    tars = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.lower()
            if name.endswith((".tar", *COMPRESSED)):
                tars.append(entry.path)
            elif not name.startswith(".") and os.path.splitext(name)[1] not in COMPANIONS:
                return []
    return sorted(tars)


def _names(image: str) -> tuple[str, ...]:
    """The names to look for, in order; each is relative, normal and free of `..`."""
    if image.startswith(("http://", "https://", "//")):
        try:
            url = urlsplit(image)
        except ValueError as error:
            raise ImageRejected(f"not a URL ({error})") from None
        path = unquote(url.path).lstrip("/")
        candidates = [f"{url.netloc}/{path}", path]
    else:
        candidates = [image]
    return tuple(_normal(name) for name in candidates if name)


def _normal(name: str) -> str:
    if "\0" in name:
        raise ImageRejected("its name holds a zero byte")
    if name.startswith("/"):
        raise ImageRejected("an absolute path; images are named below the image root")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageRejected("leads out of the image root by '..'")
    return "/".join(parts) or "."
