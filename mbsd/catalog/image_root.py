"""Where the raw pictures lie: a folder or one uncompressed tar, read by name and never outside of itself."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mbsd.catalog.normalise import ImageRejected, NormalisedImage, normalise_image
from mbsd.errors import UserError

MAX_FILE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Extent:
    """`size` bytes at `offset` of a file: a whole picture, or a member of a tar. Cheap to send to a worker process."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            ImageRejected: the file cannot be opened or ends early.
        """
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


class ImageRoot:
    """The folder or `.tar` below which `Item.image` names pictures; None has none of them."""

    def __init__(self, images: Path | None):
        self._folder: str | None = None
        self._members: Mapping[str, Extent | str] = {}
        if images is None:
            return
        if images.is_dir():
            self._folder = os.path.realpath(images)
        elif images.is_file():
            self._members = _tar_members(images)
        else:
            raise UserError(f"image root {images}: no such folder or tar file")

    def locate(self, image: str) -> Extent:
        """Return where the bytes of `image` lie; a URL is looked up as `host/path` and as `path` below the root.

        Raises:
            ImageRejected: it is not there, or its name or a link leads out of the root.
        """
        for name in _names(image):
            found = self._in_folder(name) if self._folder is not None else self._members.get(name)
            if isinstance(found, str):
                raise ImageRejected(found)
            if found is not None:
                if found.size > MAX_FILE_BYTES:
                    raise ImageRejected(f"too large: {found.size} bytes, the limit is {MAX_FILE_BYTES}")
                return found
        raise ImageRejected("not found below the image root")

    def _in_folder(self, name: str) -> Extent | None:
        assert self._folder is not None
        path = os.path.realpath(os.path.join(self._folder, name))
        if os.path.commonpath([self._folder, path]) != self._folder:
            raise ImageRejected("leads out of the image root by a link")
        try:
            status = os.stat(path)
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise ImageRejected("not a regular file")
        return Extent(path, 0, status.st_size)


def _names(image: str) -> list[str]:
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
    for name in candidates:
        if "\0" in name:
            raise ImageRejected("its name holds a zero byte")
        if name.startswith("/"):
            raise ImageRejected("an absolute path; images are named below the image root")
        if ".." in PurePosixPath(name).parts:
            raise ImageRejected("leads out of the image root by '..'")
    return [str(PurePosixPath(name)) for name in candidates if name]


def _tar_members(path: Path) -> dict[str, Extent | str]:
    """One pass over the tar's headers: name -> where its bytes lie, or why it cannot be used."""
    members: dict[str, Extent | str] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                if member.issym() or member.islnk():
                    members[name] = "a link inside the tar"
                elif member.isreg() and not member.issparse():
                    members[name] = Extent(str(path), member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # the header objects would fill the memory
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"image root {path}: not an uncompressed tar file ({error})") from None
    return members


def normalise_extents(extents: list[Extent | None], max_side: int) -> list[NormalisedImage | str | None]:
    """A worker's share of a build: the picture of each extent, or why it was rejected, or None for None."""
    results: list[NormalisedImage | str | None] = []
    for extent in extents:
        try:
            results.append(None if extent is None else normalise_image(extent.read(), max_side))
        except ImageRejected as rejected:
            results.append(str(rejected))
    return results
