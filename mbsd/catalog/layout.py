"""The layout of a catalogue's folder: file names, the index's columns, the split of an item and the fingerprint.

catalog.json         version, counts, fingerprint, build options, where each attribute can be seen
index.arrow          one row an item, in order; one record batch a shard; uncompressed, so that it is memory-mapped
numbers/train.npy    item numbers of a split, rising, int64; validation.npy and test.npy too; memory-mapped
numbers/id_hash.npy  hashes of all item ids, rising, uint64; numbers/id_item.npy: the items in this order; memory-mapped
shards/000000.tar    WebDataset: 000000012.json, 000000012.jpg (the nine digits are the item's number)
shards/000000.idx    the same shard's index for DALI's readers.webdataset
quarantine.jsonl     row, place, item_id, image, kept, reason: rows that were dropped, or kept as text only
duplicates.jsonl     rows that repeat an item id (dropped), and items with the same picture as an earlier one (kept)
keys/                identity keys, where `mbsd catalog keys` has written them (see `identity.files`)
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pyarrow as pa

VERSION = 2
CATALOG_FILE = "catalog.json"
INDEX_FILE = "index.arrow"
ID_HASH_FILE = "numbers/id_hash.npy"
ID_ITEM_FILE = "numbers/id_item.npy"
QUARANTINE_FILE = "quarantine.jsonl"
DUPLICATES_FILE = "duplicates.jsonl"
SPLITS = ("train", "validation", "test")
SAME_ID = "same item id"
NOTHING = "neither title nor usable image"
WHERE = ("image", "title", "both", "unknown")

INDEX_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("category", pa.string()),
        ("attributes", pa.string()),  # JSON with sorted keys: equal attributes are equal strings
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),  # bytes into the shard's tar; -1 = no image
        ("size", pa.int32()),
        ("crc32", pa.uint32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


def shard_file(shard: int, suffix: str = "tar") -> str:
    """Return a shard's path below the catalogue's folder; the suffix is tar or idx."""
    return f"shards/{shard:06d}.{suffix}"


def split_file(split: str) -> str:
    """Return the path, below the catalogue's folder, of the file with a split's item numbers."""
    return f"numbers/{split}.npy"


def split_of(item_id: str) -> str:
    """Return 'train' (80 %), 'validation' (10 %) or 'test' (10 %), by the id alone: the same in every catalogue."""
    tenth = int(hashlib.sha1(f"split\t{item_id}".encode()).hexdigest()[:15], 16) % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


def id_in_split_of(original: str, item_id: str) -> str:
    """Return `item_id`, with a number behind it where it takes one to be in the split of `original`.

    A catalogue divides items by their ids. With one product's items in several splits, hardly any held-out item would
    have another of its product among the held-out ones, and to find them could not be measured.
    """
    split, candidate, number = split_of(original), item_id, 0
    while split_of(candidate) != split:
        number += 1
        candidate = f"{item_id}-{number}"
    return candidate


def draw(*of: object) -> int:
    """Return a portable hash of what is drawn for, a seed among it, 60 bits: the same in every process."""
    return int(hashlib.md5("\t".join(map(str, of)).encode()).hexdigest()[:15], 16)


def id_hash(item_id: str) -> int:
    """Return 64 bits of an item id's BLAKE2b; a reader compares the ids themselves where two have the same hash."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little")


def reason_of(line: str) -> str:
    """Return the reason in a line of the quarantine, its numbers replaced by N, so that equal reasons are counted."""
    return re.sub(r"\d+", "N", json.loads(line)["reason"])


def dropped(line: str) -> tuple[str, str] | None:
    """Return (reason, place) of a line of the quarantine whose row is in no catalogue; None for one that is."""
    row = json.loads(line)
    for reason in (SAME_ID, NOTHING):
        if row["reason"].startswith(reason):
            return reason, row.get("place", f"row {row['row']}")
    return None


class Fingerprint:
    """A sha256 over (item_id, title, crc32) of the items in order: equal content gives an equal fingerprint."""

    def __init__(self) -> None:
        self._sha: Any = hashlib.sha256()

    def add(self, item_id: str, title: str, crc32: int) -> None:
        """Add the next item; `crc32` is 0 where it has no picture."""
        # Lengths first: without them "ab" + "c" and "a" + "bc" would be the same item.
        for text in (item_id.encode(), title.encode()):
            self._sha.update(len(text).to_bytes(8, "little") + text)
        self._sha.update(crc32.to_bytes(4, "little"))

    def hexdigest(self) -> str:
        """Return the fingerprint of the items so far, 64 hex digits."""
        return str(self._sha.hexdigest())
