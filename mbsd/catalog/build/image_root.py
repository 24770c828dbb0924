"""Where the raw pictures lie: a folder, tar files or a URL; no name leads outside of it.

`locate` only returns where to look: worker processes read, under the limits of a picture.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from mbsd.catalog.build.image_folder import FolderRoot, Place
from mbsd.catalog.build.image_tars import COMPRESSED, TarRoot
from mbsd.catalog.build.image_url import UrlRoot, local_path
from mbsd.catalog.build.open_image import ImageRejected
from mbsd.errors import UserError

COMPANIONS = {".idx", ".json", ".txt", ".md5", ".sha256"}  # what lies beside the tars of a WebDataset


class ImageRoot(Protocol):
    """What `Item.image` is relative to.

    Attributes:
        description: JSON that an unfinished build compares, so that it is resumed with the same pictures alone.
    """

    description: Any

    def place(self, names: tuple[str, ...]) -> Place:
        """Return where to look for the first of these names that exists; each is relative and free of `..`.

        Raises:
            ImageRejected: none of them exists, where the root knows without looking.
        """
        ...


def open_image_root(images: Path | str) -> ImageRoot:
    """Return the root that `images` names: a folder of pictures, one tar, a folder or glob of tars, or an fsspec URL.

    Raises:
        UserError: there is no such thing, or a tar is compressed.
    """
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
        ImageRejected: the name leads out of the root, or the root knows that there is no such picture.
    """
    return root.place(_names(image))


def _tars_in(folder: str) -> list[str]:
    """Return the tars of a folder that holds nothing but tars and their companions; [] for any other folder."""
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
    """Return the names to look for, in order; each is relative, without empty parts and free of `..`."""
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
