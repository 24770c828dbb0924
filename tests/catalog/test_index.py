"""A large catalogue opens at once, and its processes share what they read of its index."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mbsd.catalog.build.index import write_index
from mbsd.catalog.build.shard_writer import PART_SCHEMA
from mbsd.catalog.layout import CATALOG_FILE, ID_HASH_FILE, VERSION, split_of
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError
from tests.catalog.helpers import items_of, small_catalog
from tests.ranks import ROOT

NUM_ITEMS = 500_000
SHARD = 4096


def _parts() -> Iterator[Any]:
    for start in range(0, NUM_ITEMS, SHARD):
        numbers = np.arange(start, min(start + SHARD, NUM_ITEMS))
        ids = [f"item-{number}" for number in numbers.tolist()]
        same = {"category": "c", "attributes": "{}", "offset": 512, "size": 9, "crc32": 1, "width": 3, "height": 3}
        columns = {name: [value] * len(ids) for name, value in same.items()}
        columns |= {"item_id": ids, "title": [f"the title of {name}, which is a long one" for name in ids]}
        columns |= {"split": [split_of(name) for name in ids], "shard": [start // SHARD] * len(ids)}
        # Of items 2k and 2k + 1 the pictures are equal.
        pictures = np.stack([numbers // 2, numbers * 0], axis=1).astype(np.int64).tobytes()
        columns["picture"] = [pictures[at : at + 16] for at in range(0, len(pictures), 16)]
        yield pa.record_batch({name: columns[name] for name in PART_SCHEMA.names}, schema=PART_SCHEMA)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a catalogue without its shards."""
    folder = tmp_path_factory.mktemp("large")
    summary = write_index(folder, NUM_ITEMS, _parts(), [])
    assert summary.same_picture == NUM_ITEMS // 2
    meta = {
        "version": VERSION, "items": NUM_ITEMS, "fingerprint": summary.fingerprint, "attribute_where": {},
        "options": {"items_per_shard": SHARD},
    }  # fmt: skip
    (folder / CATALOG_FILE).write_text(json.dumps(meta))
    return folder


MEASURE = """
import gc, json, os, sys, time
import numpy as np, psutil
from mbsd.catalog.reader import Catalog

def private():  # bytes that are no pages of a file, which all processes share and the kernel may drop
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared

warm = Catalog(sys.argv[2])
warm.item_number(warm.record(0).item_id), warm.indices("train")
before, started = private(), time.process_time()
catalog = Catalog(sys.argv[1])
train = catalog.indices("train")
item = int(train[len(train) // 2])
assert catalog.item_number(catalog.record(item).item_id) == item
found = {"seconds": time.process_time() - started, "open": private() - before}
gc.freeze()
read, write = os.pipe()
for worker in range(2):
    if os.fork() == 0:
        before = private()
        for item in np.random.default_rng(worker).integers(0, len(catalog), 20_000).tolist():
            assert catalog.item_number("item-%d" % item) == item and catalog.title(item)
        os.write(write, b"%d\\n" % (private() - before))
        os._exit(0)
    assert os.wait()[1] == 0
found["workers"] = [int(line) for line in os.read(read, 1000).split()]
print(json.dumps(found))
"""


def test_opening_reads_next_to_nothing_and_workers_share(tmp_path: Path, large: Path) -> None:
    """As Python strings or a dict the half million ids alone would take more than 50 MB in each process."""
    small_catalog(tmp_path / "small", items_of(3))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large), str(tmp_path / "small")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seconds"] < 0.5 and found["open"] < 8e6, found
    assert len(found["workers"]) == 2 and max(found["workers"]) < 15e6, found


def test_item_numbers_of_a_split_are_a_view_of_a_file(large: Path) -> None:
    catalog = Catalog(large)
    train = catalog.indices("train")
    with pytest.raises(ValueError, match="read-only"):
        train[0] = 1
    owner: Any = train
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    splits = np.array(catalog.table()["split"].to_pylist())
    for split in ("train", "validation", "test"):
        assert np.array_equal(catalog.indices(split), np.flatnonzero(splits == split))
        assert catalog.indices(split).dtype == np.int64


def test_a_released_index_takes_no_memory_until_it_is_read_again(large: Path) -> None:
    def held() -> int:  # bytes of the catalogue's files that count as this process's memory
        maps = psutil.Process().memory_maps()
        return sum(one.rss for one in maps if one.path.startswith(str(large)))

    catalog = Catalog(large)
    characters = pc.sum(pc.utf8_length(catalog.table()["title"])).as_py()
    before = held()
    assert before > characters > 20e6
    catalog.release()
    assert held() < before / 10
    number = catalog.item_number("item-77777")
    assert number == 77777 and catalog.title(number) == "the title of item-77777, which is a long one"


def test_ids_that_share_a_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("build.index", "reader"):
        monkeypatch.setattr(f"mbsd.catalog.{module}.id_hash", lambda item_id: len(item_id))
    catalog = small_catalog(tmp_path / "c", items_of(120))
    for number, item in enumerate(items_of(120)):
        assert catalog.item_number(item.item_id) == number
    assert catalog.item_number("id-999") is None and catalog.item_number("an id of another length") is None


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", items_of(20))
    (tmp_path / "c" / ID_HASH_FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"id_hash\.npy: damaged, .*; bring the file back or build the catalogue again"):
        Catalog(tmp_path / "c").item_number("id-1")
    (tmp_path / "c" / "numbers" / "test.npy").unlink()
    with pytest.raises(UserError, match=r"test\.npy: cannot be read"):
        Catalog(tmp_path / "c").indices("test")
