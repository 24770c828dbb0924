"""CRC-32 of a catalogue's index, recorded when it is built and compared when a part of it is first read.

A catalogue of ten million items has 2 GB of index and hundreds of GB of pictures: reading them all at every start would
take minutes. So each picture has a checksum of its own in the index, each batch of the index (the rows of one shard)
one in `catalog.json`, and whoever reads a part compares that part, once. `catalog.json` has one of itself.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbsd.errors import UserError

BLOCK = 2**20
CHECKSUMS, CHECKSUM = "checksums", "checksum"  # keys of catalog.json
AGAIN = "bring the file back or build the catalogue again"


def crc32_of_batch(batch: Any) -> int:
    """Of a record batch: of all its buffers, in order."""
    crc32 = 0
    for column in batch.columns:
        for buffer in column.buffers():
            if buffer is not None:
                crc32 = zlib.crc32(buffer, crc32)
    return crc32


def crc32_of_file(path: Path) -> int:
    """Of a file."""
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What `catalog.json` holds, with the checksum of it."""
    return {**meta, CHECKSUM: _crc32_of_meta(meta)}


def require_whole_meta(meta: Mapping[str, Any], path: Path, remedy: str = AGAIN) -> None:
    """Raise UserError where `catalog.json`, or another file that is sealed like it, is not what was written.

    One of an older version has no checksum.
    """
    if CHECKSUM in meta and _crc32_of_meta(meta) != meta[CHECKSUM]:
        raise UserError(f"{path}: damaged, its content is not what was written; {remedy}")


def require_whole_batch(meta: Mapping[str, Any], number: int, batch: Any, path: Path) -> None:
    """Raise UserError where a batch of the index is not what was written."""
    recorded = meta.get(CHECKSUMS, {}).get("batches")
    if recorded is not None and crc32_of_batch(batch) != recorded[number]:
        raise UserError(f"{path}: damaged, the rows of shard {number} are not what was written; {AGAIN}")


def require_whole_file(meta: Mapping[str, Any], name: str, path: Path) -> None:
    """Raise UserError where another file of the index is not what was written."""
    recorded = meta.get(CHECKSUMS, {}).get("files", {}).get(name)
    if recorded is not None and path.exists() and crc32_of_file(path) != recorded:
        raise UserError(f"{path}: damaged, its bytes are not those that were written; {AGAIN}")


def _crc32_of_meta(meta: Mapping[str, Any]) -> int:
    rest = {name: value for name, value in meta.items() if name != CHECKSUM}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())
