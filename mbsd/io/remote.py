"""A folder behind a URL, of any store that fsspec opens: s3://bucket/folder, gs://…, file:///…"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from mbsd.errors import UserError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # scheme -> the extra of this package that opens it
BLOCK = 16 << 20  # bytes asked for at once where a file is read through


class RemoteError(Exception):
    """A store did not do what it was asked for; the message names the object and the cause.

    Attributes:
        missing: there is no such object, folder or bucket.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class RemoteFolder:
    """Objects below a URL, each named relative to it. Every method but the constructor raises RemoteError alone.

    What fails is tried again by the store's own library (botocore: AWS_RETRY_MODE, AWS_MAX_ATTEMPTS), not here.

    Args:
        url: of the folder; it need not exist.
        setting: where the URL was given, for errors.

    Attributes:
        local: the folder of a file:// URL.

    Raises:
        UserError: no library that opens such a URL is installed.
    """

    def __init__(self, url: str, setting: str) -> None:
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        more = {"auto_mkdir": True} if scheme in ("file", "local") else {}
        try:
            # Listings are never remembered: another process writes there too.
            self._files, base = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **more)
        except (ImportError, ValueError) as error:
            extra = f"; pip install 'mbsd[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
            raise UserError(f"{setting}={url}: cannot be opened ({error}){extra}") from None
        self._base = str(base).rstrip("/")
        self.local = Path(self._base) if more else None

    def __str__(self) -> str:
        """The URL."""
        return self.url

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of everything below; empty where nothing is."""
        with self._in_words(""):
            found = self._files.find(self._base, detail=True)
            return {name.removeprefix(f"{self._base}/"): int(facts["size"]) for name, facts in found.items()}

    def size(self, name: str) -> int:
        """Bytes of an object."""
        with self._in_words(name):
            return int(self._files.info(self._at(name))["size"])

    def put(self, local: Path, name: str) -> None:
        """Write a local file there."""
        with self._in_words(name):
            self._files.put_file(str(local), self._at(name))

    def put_bytes(self, data: bytes, name: str) -> None:
        """Write an object."""
        with self._in_words(name):
            self._files.pipe_file(self._at(name), data)

    def get(self, name: str, local: Path) -> None:
        """Copy an object to a local file."""
        with self._in_words(name):
            self._files.get_file(self._at(name), str(local))

    def get_bytes(self, name: str) -> bytes:
        """Read an object."""
        with self._in_words(name):
            return bytes(self._files.cat_file(self._at(name)))

    def digest(self, name: str) -> str:
        """SHA-256 of an object as it is read from there, 64 hex digits."""
        with self._in_words(name), self._files.open(self._at(name), "rb", block_size=BLOCK) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remove(self, name: str) -> None:
        """Remove an object, or all below a folder; nothing happens where there is none."""
        with self._in_words(name), suppress(FileNotFoundError):
            self._files.rm(self._at(name), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._base}/{name}"

    @contextmanager
    def _in_words(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each store's library has errors of its own
            where = f"{self.url}/{name}" if name else self.url
            cause = error.__cause__
            # fsspec says so too of a web server that does not answer, which aiohttp has told it.
            web = cause is not None and type(cause).__module__.startswith(("aiohttp", "asyncio"))
            unknown = web and getattr(cause, "status", None) != 404
            missing = isinstance(error, FileNotFoundError) and not unknown
            what = cause if unknown else error
            text = " ".join(str(what).split())[:300]
            raise RemoteError(f"{where}: {type(what).__name__}: {text}", missing=missing) from error
