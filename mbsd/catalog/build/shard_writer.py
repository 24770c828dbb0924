"""One shard of a build: tar and DALI's index, its rows of the index, and which rows were left out of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from mbsd.catalog.build.normalise import NormalisedImage
from mbsd.catalog.build.source_rows import SourceRow
from mbsd.catalog.build.unfinished import UnfinishedBuild
from mbsd.catalog.layout import INDEX_SCHEMA, QUARANTINE_FILE, shard_file, split_of

TAR_BLOCK = 512
REPEATED_FILE = "repeated.jsonl"
PART_SCHEMA = INDEX_SCHEMA.append(pa.field("picture", pa.binary(16)))  # by it `index` finds equal pictures
ROW_SCHEMA = PART_SCHEMA.append(pa.field("row", pa.int64()))  # of the source: by it `merge` orders the items of parts


@dataclass(frozen=True)
class StoredItem:
    """An item as a shard holds it.

    Attributes:
        record: its JSON.
        jpeg: its picture; b"" without one.
        facts: its columns of `ROW_SCHEMA`, but those that say where in which shard it lies.
    """

    record: bytes
    jpeg: bytes
    facts: dict[str, Any]


class ShardWriter:
    """Writes shard `number` of a build, whose first item is `first_item`; a file is made with its first content."""

    def __init__(self, unfinished: UnfinishedBuild, number: int, first_item: int):
        self._unfinished, self._number, self._first_item = unfinished, number, first_item
        self._rows: list[dict[str, Any]] = []
        self._dali: list[str] = []
        self._tar: Any = None
        self._lists: dict[str, IO[str]] = {}

    @property
    def num_items(self) -> int:
        """Number of items in the shard so far."""
        return len(self._rows)

    def quarantine(self, row: SourceRow, reason: str, *, kept: bool) -> None:
        """List a row as dropped, or as kept without its picture, with the reason."""
        line = {"row": row.number, "place": row.place, "item_id": row.item.item_id, "image": row.item.image}
        line |= {"kept": kept, "reason": reason}
        self._list(QUARANTINE_FILE, line)

    def repeated(self, row: SourceRow) -> None:
        """List a row whose item id an earlier row has."""
        line = {"same": "item_id", "row": row.number, "item_id": row.item.item_id, "as_row": row.same_as}
        self._list(REPEATED_FILE, line)

    def add(self, row: SourceRow, title: str, picture: NormalisedImage | None) -> None:
        """Write the row's item as the next of the shard; `picture` is None for an item of text alone."""
        item = row.item
        record = {"title": title, "category": item.category, "attributes": item.attributes, "item_id": item.item_id}
        jpeg = picture.jpeg if picture else b""
        facts = {
            "item_id": item.item_id,
            "title": title,
            "category": item.category,
            "attributes": json.dumps(item.attributes, ensure_ascii=False, sort_keys=True),
            "split": split_of(item.item_id),
            "size": len(jpeg),
            "crc32": zlib.crc32(jpeg),
            "width": picture.width if picture else 0,
            "height": picture.height if picture else 0,
            "picture": picture.digest if picture else bytes(16),
            "row": row.number,
        }
        self.store(StoredItem(json.dumps(record, ensure_ascii=False).encode(), jpeg, facts))

    def store(self, item: StoredItem) -> None:
        """Write an item as the next of the shard."""
        key = f"{self._first_item + self.num_items:09d}"
        offset = self._write_members(key, item.record, item.jpeg)
        self._rows.append({**item.facts, "shard": self._number, "offset": offset})

    def list_all(self, name: str, lines: Iterable[str]) -> None:
        """Write lines of a list of rows, `QUARANTINE_FILE` or `REPEATED_FILE`, as they are."""
        for line in lines:
            self._file(name).write(line)

    def flush(self) -> None:
        """Make the lists of rows readable from their files."""
        for file in self._lists.values():
            file.flush()

    def close(self) -> list[Path]:
        """Finish the shard's files and return their paths."""
        files = [Path(file.name) for file in self._lists.values()]
        for file in self._lists.values():
            file.close()
        if self._tar is not None:
            self._tar.close()
            tar, idx = (self._unfinished.catalog / shard_file(self._number, suffix) for suffix in ("tar", "idx"))
            idx.write_text("\n".join([f"v1.2 {len(self._dali)}", *self._dali]) + "\n", "utf-8")
            index = self._unfinished.commit_file(self._number, "arrow")
            columns = {name: [row[name] for row in self._rows] for name in ROW_SCHEMA.names}
            with pa.ipc.new_file(str(index), ROW_SCHEMA) as writer:
                writer.write_batch(pa.record_batch(columns, schema=ROW_SCHEMA))
            files += [tar, idx, index]
        self._tar, self._lists = None, {}
        return files

    def _list(self, name: str, line: dict[str, Any]) -> None:
        self._file(name).write(json.dumps(line, ensure_ascii=False) + "\n")

    def _file(self, name: str) -> IO[str]:
        if name not in self._lists:
            self._lists[name] = self._unfinished.commit_file(self._number, name).open("w", encoding="utf-8")
        return self._lists[name]

    def _write_members(self, key: str, record: bytes, jpeg: bytes) -> int:
        """Write the sample's members in the tar; return the JPEG's offset in it, -1 without one."""
        if self._tar is None:
            # Imported late: webdataset imports torch, a second that no other command should wait for.
            from webdataset.writer import TarWriter

            self._tar = TarWriter(str(self._unfinished.catalog / shard_file(self._number)), encoder=False, mtime=0)
        members = {"json": record, "jpg": jpeg} if jpeg else {"json": record}
        offset = int(self._tar.tarstream.offset)
        # mtime=0 and short names: every member is one header block and its bytes, padded to whole blocks.
        self._tar.write({"__key__": key, **members})
        entries, offsets = [], {}
        for suffix in sorted(members):
            offsets[suffix] = offset + TAR_BLOCK
            entries.append(f"{suffix} {offsets[suffix]} {len(members[suffix])} {key}.{suffix}")
            offset = offsets[suffix] + -(-len(members[suffix]) // TAR_BLOCK) * TAR_BLOCK
        assert offset == self._tar.tarstream.offset, "the tar writer laid members out in another way"
        self._dali.append(" ".join(entries))
        return offsets.get("jpg", -1)
