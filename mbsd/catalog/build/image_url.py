"""Pictures below a URL that fsspec opens: s3://bucket/pictures, gs://…, https://shop.example/pictures, …"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import fsspec

from mbsd.catalog.build.image_folder import NOT_FOUND, Place
from mbsd.catalog.build.open_image import ImageRejected
from mbsd.errors import UserError


def local_path(url: str) -> str | None:
    """Return the path of a `file://` URL, None for any other URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("file", "local"):
        return None
    return unquote(parts.netloc + parts.path)


@dataclass(frozen=True)
class AtUrl:
    """The first of `names` that exists below the folder `url`."""

    url: str
    names: tuple[str, ...]

    def read(self, max_bytes: int) -> bytes:
        """As in `Place`."""
        files, base = _files(self.url)
        for name in self.names:
            try:
                # One byte more than allowed shows that there are more, without a request for the size.
                return _checked(files.cat_file(_below(base, self.url, name), start=0, end=max_bytes + 1), max_bytes)
            except FileNotFoundError:
                continue
            except ImageRejected:
                raise
            except Exception as error:  # each kind of store has errors of its own
                raise ImageRejected(_reason(error)) from None
        raise ImageRejected(NOT_FOUND)


@dataclass(frozen=True)
class InMemory:
    """A picture already read, where only the calling process can read it, as with fsspec's memory://."""

    data: bytes

    def read(self, max_bytes: int) -> bytes:
        """As in `Place`."""
        return _checked(self.data, max_bytes)


class UrlRoot:
    """A folder behind a URL. A store has no `..` and no links; what would mean more than a name in a URL is quoted."""

    def __init__(self, url: str):
        self._url = self.description = url
        try:
            files, _ = _files(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"image root {url}: cannot be opened ({error})") from None
        if urlsplit(url).path.lower().endswith(".tar"):
            raise UserError(f"image root {url}: a tar behind a URL is not read; copy it here, or unpack it there")
        self._in_this_process = "memory" in files.protocol

    def place(self, names: tuple[str, ...]) -> Place:
        """As in `ImageRoot`; whether the picture exists is found when it is read."""
        place = AtUrl(self._url, names)
        return InMemory(place.read(2**31)) if self._in_this_process else place


def prefetch(places: list[AtUrl], max_bytes: int) -> list[bytes | None]:
    """Return the bytes at each place's first name, requested together; None where the place must be read by itself.

    A store takes tens of milliseconds to answer any request: one by one, a worker would wait most of its time.
    """
    if not places:
        return []
    files, base = _files(places[0].url)
    paths = [_below(base, place.url, place.names[0]) for place in places]
    size = max_bytes + 1
    found = files.cat_ranges(paths, [0] * len(paths), [size] * len(paths), on_error="return")
    return [data if isinstance(data, bytes) and len(data) <= max_bytes else None for data in found]


def _files(url: str) -> tuple[Any, str]:
    files, base = fsspec.core.url_to_fs(url)
    return files, str(base)


def _below(base: str, url: str, name: str) -> str:
    # In an http URL '?', '#' and '%2e%2e' would mean something else than a name.
    return f"{base.rstrip('/')}/{quote(name) if url.startswith('http') else name}"


def _checked(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise ImageRejected(f"too large: more than {max_bytes} bytes")
    return data


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"cannot be read ({type(error).__name__}: {text})"
