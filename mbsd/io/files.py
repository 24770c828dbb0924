"""Files and folders that are whole or absent: written beside their place, synced, renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mbsd.errors import UserError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name `path`, as that of an open file does not: a write to a full disk, a sync."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the block a hidden path beside `path` for a file or folder, which then takes the place of `path` at once.

    The file and the folder it lies in are synced before this returns. If the block raises, `path` stays as it was and
    what was written is removed. A folder takes the place of an empty folder or of nothing. A device or pipe, such as
    /dev/stdout, is written to as it is; where `path` is a link, what it leads to is replaced. An OSError of a write
    names `path`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with naming(path):
            yield path
        return
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            yield beside
        fsync(beside)
        os.replace(beside, path)
    except BaseException:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) as `replacing` does."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_of(path: Path) -> dict[str, Any]:
    """{"bytes": its size, "sha256": its digest}: what is recorded of a file that a later start takes over."""
    return {"bytes": path.stat().st_size, "sha256": digest_of(path)}


def difference(path: Path, recorded: Mapping[str, Any]) -> str:
    """How a file differs from its recorded facts (`facts_of`), in words; "" where it does not.

    The size is compared first: a file that was cut short is not read.
    """
    try:
        size = path.stat().st_size
        if "bytes" in recorded and size != recorded["bytes"]:
            return f"{size} bytes, expected {recorded['bytes']}"
        digest = digest_of(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    expected = str(recorded["sha256"])
    return "" if digest == expected else f"its checksum is {digest[:12]}…, expected {expected[:12]}…"


def read_own_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file that this program wrote.

    Args:
        remedy: what to do where it is damaged.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged, no JSON is in it ({' '.join(str(error).split())}); {remedy}") from None


def fsync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
