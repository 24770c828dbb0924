"""Reads a built catalogue: any item's text and picture by its number, from any process."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mbsd.catalog.checksums import AGAIN, require_whole_batch, require_whole_file, require_whole_meta
from mbsd.catalog.layout import (
    CATALOG_FILE,
    ID_HASH_FILE,
    ID_ITEM_FILE,
    INDEX_FILE,
    INDEX_SCHEMA,
    SPLITS,
    VERSION,
    id_hash,
    shard_file,
    split_file,
)
from mbsd.catalog.shard_cache import ShardCache
from mbsd.errors import UserError

MAX_OPEN_SHARDS = 128


class DamagedRecord(RuntimeError):  # noqa: N818
    """A picture's bytes on disk are not those that were written; the message names shard and item."""


@dataclass(frozen=True)
class Record:
    """All of an item but its picture; an empty string is a missing title or an unknown category."""

    item_id: str
    title: str
    category: str
    attributes: dict[str, str]
    split: str


class _OpenShard:
    """A file descriptor, closed with its last reference: eviction never closes one that a thread still reads from."""

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Catalog:
    """Items 0 … len - 1 of a catalogue's folder, whose shards may lie behind a URL (`mbsd.catalog.remote`).

    `catalog[i]` is item i's record and its JPEG (None without a picture). The index and the item numbers are
    memory-mapped: all processes of a machine share their pages, and opening reads next to none of them. Pictures are
    read with `pread`, which moves no file position, so a catalogue survives fork; pickled, it is its path and
    fingerprint alone.

    A part of the index is compared with its checksum when it is first read (see `checksums`); where it is not what was
    written, whatever reads it raises UserError.

    Attributes:
        path: of the folder; of a catalogue behind a URL, where its index was fetched to.
        cache: of its shards, where they lie behind a URL.

    Raises:
        UserError: `path` is no catalogue of this version, or its index cannot be read.
    """

    def __init__(self, path: Path | str, cache: ShardCache | None = None):
        self.path, self.cache = Path(path), cache
        self.meta = _read_meta(self.path)
        self.fingerprint: str = self.meta["fingerprint"]
        self.attribute_where: dict[str, str] = self.meta["attribute_where"]
        self.items_per_shard: int = self.meta["options"]["items_per_shard"]
        self._batches: dict[int, Any] = {}  # whole ones
        self._numbers: dict[str, NDArray[Any]] = {}
        self._map_index()
        self.num_shards: int = self._reader.num_record_batches
        self._shards: dict[int, _OpenShard] = {}
        self._fetched_again: set[int] = set()  # items
        self._values: dict[str, list[str]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "fingerprint": self.fingerprint, "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["cache"])  # type: ignore[misc]
        if self.fingerprint != state["fingerprint"]:
            raise UserError(f"catalogue {self.path} was replaced while it was in use; start again")

    def release(self) -> None:
        """Map the index anew: what was read of it no longer counts as this process's memory, and is read again."""
        self._batches.clear()
        self._numbers.clear()
        self._map_index()

    def _map_index(self) -> None:
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(self.path / INDEX_FILE)))
            schema_is_known = self._reader.schema.equals(INDEX_SCHEMA)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{self.path / INDEX_FILE}: cannot be read ({error}); build the catalogue again") from None
        if not schema_is_known:
            found = ", ".join(self._reader.schema.names)
            raise UserError(f"{self.path / INDEX_FILE}: unexpected columns ({found}); build the catalogue again")

    def __len__(self) -> int:
        return int(self.meta["items"])

    def __getitem__(self, item: int) -> tuple[Record, bytes | None]:
        return self.record(item), self.image(item)

    def table(self) -> Any:
        """Return the whole index as a pyarrow Table, without a copy; columns as in `layout.INDEX_SCHEMA`."""
        for number in range(self.num_shards):
            self._batch(number)
        return self._reader.read_all()

    def require_whole_index(self) -> None:
        """Read all of the index and raise UserError where a part is not what was written; pictures are not read."""
        self.table()
        for name in (*map(split_file, SPLITS), ID_HASH_FILE, ID_ITEM_FILE):
            self._mapped(name)

    def record(self, item: int) -> Record:
        """Return an item's id, title, category, attributes and split."""
        batch, row = self._row(item)
        values = {name: batch.column(name)[row].as_py() for name in ("item_id", "title", "category", "split")}
        return Record(**values, attributes=json.loads(batch.column("attributes")[row].as_py()))

    def title(self, item: int) -> str:
        """Return an item's title; empty = missing."""
        return str(self._value(item, "title"))

    def has_image(self, item: int) -> bool:
        """Return whether an item has a picture."""
        return int(self._value(item, "offset")) >= 0

    def image_size(self, item: int) -> tuple[int, int]:
        """Return (width, height) of an item's picture in pixels; (0, 0) without one."""
        return int(self._value(item, "width")), int(self._value(item, "height"))

    def image(self, item: int) -> bytes | None:
        """Return the item's JPEG bytes, or None where it has no picture.

        Raises:
            DamagedRecord: the shard is missing or cut short, or the bytes' checksum is not the index's.
            UserError: this process may open no more files.
            RunFailed: the shard lies behind a URL that does not give it.
        """
        batch, row = self._row(item)
        offset, size, crc32, shard = (batch.column(name)[row].as_py() for name in ("offset", "size", "crc32", "shard"))
        if offset < 0:
            return None
        path = self.path / shard_file(shard)
        try:
            data = self._read(shard, size, offset)
            if self.cache is not None and zlib.crc32(data) != crc32 and item not in self._fetched_again:
                self._fetched_again.add(item)  # this machine's disk may be what is damaged
                self.cache.drop(shard_file(shard))
                data = self._read(shard, size, offset)
        except OSError as error:
            raise DamagedRecord(f"shard {path}, item {item}: cannot be read ({error.strerror})") from error
        if len(data) != size or zlib.crc32(data) != crc32:
            raise DamagedRecord(
                f"shard {path}, item {item}: {len(data)} bytes at {offset} are not the {size} bytes that were written; "
                "restore the shard or build the catalogue again"
            )
        return data

    def whole_image(self, item: int, say: Callable[[str], None]) -> bytes | None:
        """Return the item's JPEG bytes; None where it has no picture, or a damaged one, which `say` then names."""
        try:
            return self.image(item)
        except DamagedRecord as error:
            say(f"WARNING: {error}; left out")
            return None

    def indices(self, split: str | None = None) -> NDArray[np.int64]:
        """Return the item numbers of a split in rising order, int64 [items], a read-only view of a file; None = all."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in SPLITS:
            raise UserError(f"split {split!r}; expected one of {', '.join(SPLITS)}")
        return self._mapped(split_file(split))

    def shown(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether each item has a title and whether it has a picture, bool [items] each."""
        table = self.table()
        has_title, has_image = pc.not_equal(table["title"], ""), pc.greater_equal(table["offset"], 0)
        return np.asarray(has_title.to_numpy()), np.asarray(has_image.to_numpy())

    def is_complete(self) -> NDArray[np.bool_]:
        """Return whether each item has both a title and a picture, bool [items]."""
        has_title, has_image = self.shown()
        return has_title & has_image

    def item_number(self, item_id: str) -> int | None:
        """Return the number of the item with this id, or None."""
        hashes, items = self._mapped(ID_HASH_FILE), self._mapped(ID_ITEM_FILE)
        wanted = np.uint64(id_hash(item_id))
        for position in range(int(np.searchsorted(hashes, wanted)), len(hashes)):
            if hashes[position] != wanted:
                break
            item = int(items[position])
            if self._value(item, "item_id") == item_id:
                return item
        return None

    def attribute_values(self) -> dict[str, list[str]]:
        """Return attribute name -> the values that occur; both sorted."""
        if self._values is None:
            values: dict[str, set[str]] = {}
            for text in pc.unique(self.table()["attributes"]).to_pylist():
                for name, value in json.loads(text).items():
                    values.setdefault(name, set()).add(value)
            self._values = {name: sorted(values[name]) for name in sorted(values)}
        return self._values

    def _mapped(self, name: str) -> NDArray[Any]:
        array = self._numbers.get(name)
        if array is None:
            require_whole_file(self.meta, name, self.path / name)
            try:
                array = np.asarray(np.load(self.path / name, mmap_mode="r"))
            except (OSError, ValueError) as error:
                raise UserError(f"{self.path / name}: cannot be read ({error}); build the catalogue again") from None
            self._numbers[name] = array
        return array

    def _row(self, item: int) -> tuple[Any, int]:
        if not 0 <= item < len(self):
            raise IndexError(f"item {item} of a catalogue of {len(self)}")
        number, row = divmod(int(item), self.items_per_shard)
        return self._batch(number), row

    def _batch(self, number: int) -> Any:
        """A shard's rows; their checksum is compared when they are first read."""
        batch = self._batches.get(number)
        if batch is None:
            path = self.path / INDEX_FILE
            try:
                batch = self._reader.get_batch(number)
            except (OSError, pa.ArrowInvalid) as error:
                raise UserError(f"{path}: the rows of shard {number} cannot be read ({error}); {AGAIN}") from None
            require_whole_batch(self.meta, number, batch, path)
            self._batches[number] = batch
        return batch

    def _value(self, item: int, column: str) -> Any:
        batch, row = self._row(item)
        return batch.column(column)[row].as_py()

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        if self.cache is None:
            return os.pread(self._shard(shard, self.path / shard_file(shard)).fd, size, offset)
        # Not kept open: a removed file gives its room back when the last one closes it.
        with self.cache.opened(shard_file(shard), lambda fd: self._is_whole(shard, fd)) as descriptor:
            return os.pread(descriptor, size, offset)

    def _is_whole(self, shard: int, descriptor: int) -> bool:
        """Whether every picture of a shard is what was written."""
        columns = (self._batch(shard).column(name).to_pylist() for name in ("offset", "size", "crc32"))
        return all(
            zlib.crc32(os.pread(descriptor, size, offset)) == crc32
            for offset, size, crc32 in zip(*columns, strict=True)
            if offset >= 0
        )

    def _shard(self, shard: int, path: Path) -> _OpenShard:
        opened = self._shards.get(shard)
        if opened is None:
            if len(self._shards) >= MAX_OPEN_SHARDS:
                self._shards.pop(next(iter(self._shards)), None)
            opened = self._shards[shard] = self._open(path)
        return opened

    def _open(self, path: Path) -> _OpenShard:
        """A shard; where no more files can be opened, the others are closed first: that is no damage of a picture."""
        try:
            return _OpenShard(str(path))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._shards.clear()
        try:
            return _OpenShard(str(path))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise UserError(f"{path}: cannot be opened ({error.strerror}); raise the limit, ulimit -n") from None


def _read_meta(path: Path) -> dict[str, Any]:
    file = path / CATALOG_FILE
    if not path.is_dir():
        raise UserError(f"catalogue {path}: no such folder; make it with `mbsd catalog build`")
    if not file.is_file():
        raise UserError(f"{path}: not a catalogue, it has no {CATALOG_FILE}; make one with `mbsd catalog build`")
    try:
        meta = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); build the catalogue again") from None
    version = meta.get("version") if isinstance(meta, dict) else None
    if version != VERSION:
        raise UserError(f"{file}: version {version!r}, this program reads version {VERSION}; build the catalogue again")
    require_whole_meta(meta, file)
    return dict(meta)
