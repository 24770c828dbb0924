"""Last step of a build: the shards' rows -> one index, item numbers by split and by id, a list of equal pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mbsd.catalog.checksums import crc32_of_batch, crc32_of_file
from mbsd.catalog.layout import (
    DUPLICATES_FILE,
    ID_HASH_FILE,
    ID_ITEM_FILE,
    INDEX_FILE,
    INDEX_SCHEMA,
    SPLITS,
    Fingerprint,
    id_hash,
    split_file,
)


@dataclass(frozen=True)
class IndexSummary:
    """The catalogue's fingerprint, the number of items whose picture is that of an earlier item, and `checksums`."""

    fingerprint: str
    same_picture: int
    checksums: dict[str, Any]


def write_index(folder: Path, num_items: int, shards: Iterable[Any], repeated: Iterable[str]) -> IndexSummary:
    """Write `index.arrow`, `numbers/` and `duplicates.jsonl` into a catalogue's folder.

    About 60 bytes an item are held in memory.

    Args:
        folder: the catalogue's folder.
        num_items: number of items of all shards together.
        shards: record batches with `shard_writer.PART_SCHEMA`, one a shard, in order.
        repeated: the first lines of `duplicates.jsonl`, about rows whose item id an earlier row has.
    """
    fingerprint = Fingerprint()
    hashes, split = np.empty(num_items, np.uint64), np.empty(num_items, np.int8)
    pictures, has_picture = np.empty((num_items, 2), np.uint64), np.empty(num_items, bool)
    start = 0
    with pa.ipc.new_file(str(folder / INDEX_FILE), INDEX_SCHEMA) as writer:
        for batch in shards:
            ids, titles, crc32s = (batch.column(name).to_pylist() for name in ("item_id", "title", "crc32"))
            for item_id, title, crc32 in zip(ids, titles, crc32s, strict=True):
                fingerprint.add(item_id, title, crc32)
            part = slice(start, start + batch.num_rows)
            hashes[part] = [id_hash(item_id) for item_id in ids]
            split[part] = [SPLITS.index(name) for name in batch.column("split").to_pylist()]
            has_picture[part] = batch.column("offset").to_numpy() >= 0
            digests = b"".join(batch.column("picture").to_pylist())
            pictures[part] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
            writer.write_batch(batch.select(INDEX_SCHEMA.names))
            start += batch.num_rows
    assert start == num_items, "the shards hold another number of items than their commits"
    (folder / "numbers").mkdir(exist_ok=True)
    for number, name in enumerate(SPLITS):
        np.save(folder / split_file(name), np.flatnonzero(split == number).astype(np.int64))
    order = np.argsort(hashes, kind="stable")
    np.save(folder / ID_HASH_FILE, hashes[order])
    np.save(folder / ID_ITEM_FILE, order.astype(np.int64))
    with (folder / DUPLICATES_FILE).open("w", encoding="utf-8") as file:
        file.writelines(repeated)
        found = _same_pictures(pictures, np.flatnonzero(has_picture))
        reader = pa.ipc.open_file(pa.memory_map(str(folder / INDEX_FILE)))
        ids = reader.read_all()["item_id"]
        for item, first in found.tolist():
            line = {"same": "picture", "item": item, "item_id": ids[item].as_py()}
            line |= {"as_item": first, "as_item_id": ids[first].as_py()}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    checksums = {
        "batches": [crc32_of_batch(reader.get_batch(number)) for number in range(reader.num_record_batches)],
        "files": {
            name: crc32_of_file(folder / name) for name in (*map(split_file, SPLITS), ID_HASH_FILE, ID_ITEM_FILE)
        },
    }
    return IndexSummary(fingerprint.hexdigest(), len(found), checksums)


def _same_pictures(pictures: NDArray[np.uint64], items: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [pairs, 2]: an item and the first item with its digest, where that is an earlier one, by rising item."""
    order = items[np.lexsort((pictures[items, 1], pictures[items, 0]))]  # stable: equal digests stay in item order
    is_new = np.ones(len(order), bool)
    is_new[1:] = (pictures[order[1:]] != pictures[order[:-1]]).any(axis=1)
    first = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))] if len(order) else order
    pairs = np.stack([order, first], axis=1)[~is_new]
    return pairs[np.argsort(pairs[:, 0])]
