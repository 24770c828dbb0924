"""Items + an image root -> a catalogue's folder (see `layout`): WebDataset shards, an index, and what was left out.

The same input gives the same bytes, whatever the number of workers. The folder is written aside and renamed when it is
complete, so a half-built catalogue never looks like one.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import shutil
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from mbsd.catalog.image_root import Extent, ImageRoot, normalise_extents
from mbsd.catalog.layout import (
    CATALOG_FILE,
    INDEX_FILE,
    INDEX_SCHEMA,
    QUARANTINE_FILE,
    VERSION,
    WHERE,
    Fingerprint,
    shard_file,
    split_of,
)
from mbsd.catalog.normalise import ImageRejected, NormalisedImage
from mbsd.catalog.reader import Catalog, CorruptRecord, Record, inspect
from mbsd.catalog.sources import Item
from mbsd.errors import UserError

__all__ = ["BuildSummary", "Catalog", "CorruptRecord", "Record", "build_catalog", "inspect", "split_of"]

CHUNK = 32  # pictures a task: large enough to hide the cost of a task, small enough to keep workers level
TAR_BLOCK = 512


@dataclass
class BuildSummary:
    """What a build did. `reasons` counts the quarantine's lines by reason, numbers replaced by N."""

    items: int = 0
    with_image: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    images_per_s: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Numbered:
    """An item with its row in the source (from 1) and where its picture lies, or why it has none ("" = none named)."""

    row: int
    item: Item
    extent: Extent | None
    reason: str


def build_catalog(
    items: Iterable[Item],
    images: Path | None,
    out: Path,
    *,
    items_per_shard: int = 4096,
    workers: int = 0,
    max_side: int = 320,
    attribute_where: dict[str, str] | None = None,
    progress: bool = True,
) -> BuildSummary:
    """Write the catalogue `out` from items and the pictures below `images` (a folder, a `.tar`, or None).

    An item whose picture is missing or rejected is kept as text; one with neither title nor picture, and one whose id
    came before, is dropped. Each has its line in `quarantine.jsonl`.

    Args:
        items: in the order in which they are numbered.
        images: what `Item.image` is relative to.
        out: a folder that does not exist or is empty.
        items_per_shard: items of one tar.
        workers: processes that decode pictures; 0 = one per core; 1 = this process. They start afresh, so a script that
            calls this needs the usual `if __name__ == "__main__":`.
        max_side: the long side of a stored picture, in pixels.
        attribute_where: attribute name -> image | title | both | unknown; where its value can be seen.
        progress: show a bar on stderr.

    Raises:
        UserError: `out` is not empty, an option makes no sense, the source cannot be read, or no item is left.
    """
    for name, value in {"items_per_shard": items_per_shard, "max_side": max_side}.items():
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    for name, where in (attribute_where or {}).items():
        if where not in WHERE:
            raise UserError(f"attribute_where: {name!r} is {where!r}; expected one of {', '.join(WHERE)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there and not an empty folder; choose another name or remove it")
    root = ImageRoot(images)
    building = out.with_name(out.name + ".building")
    shutil.rmtree(building, ignore_errors=True)  # what an interrupted build left
    (building / "shards").mkdir(parents=True)
    started = time.monotonic()
    try:
        with _Writer(building, items_per_shard) as writer:
            numbered = _numbered(items, root, writer)
            for numbered_item, picture in tqdm(
                _normalised(numbered, workers or os.cpu_count() or 1, max_side), unit=" items", disable=not progress
            ):
                writer.add(numbered_item, picture)
        summary = writer.summary
        if summary.items == 0:
            found = f"{summary.quarantined} rows, none usable" if summary.quarantined else "no rows"
            raise UserError(f"an empty catalogue: {found}; an item needs a title or a picture below the image root")
        summary.seconds = time.monotonic() - started
        summary.images_per_s = summary.with_image / summary.seconds
        meta = {
            "version": VERSION,
            "items": summary.items,
            "with_image": summary.with_image,
            "without_image": summary.items - summary.with_image,
            "quarantined": summary.quarantined,
            "fingerprint": writer.fingerprint.hexdigest(),
            "attribute_where": attribute_where or {},
            "options": {"items_per_shard": items_per_shard, "max_side": max_side},
        }
        (building / CATALOG_FILE).write_text(json.dumps(meta, ensure_ascii=False, indent=2) + "\n", "utf-8")
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return summary


def _numbered(items: Iterable[Item], root: ImageRoot, writer: _Writer) -> Iterator[_Numbered]:
    """Drop repeated ids and look every picture up, without reading it."""
    first_row: dict[str, int] = {}
    for row, item in enumerate(items, start=1):
        if item.item_id in first_row:
            writer.quarantine(row, item, f"same item id as row {first_row[item.item_id]}")
            continue
        first_row[item.item_id] = row
        extent, reason = None, ""
        if item.image:
            try:
                extent = root.locate(item.image)
            except ImageRejected as rejected:
                reason = str(rejected)
        yield _Numbered(row, item, extent, reason)


def _normalised(
    numbered: Iterator[_Numbered], workers: int, max_side: int
) -> Iterator[tuple[_Numbered, NormalisedImage | str | None]]:
    """Decode in `workers` processes; order is kept and the number of pictures in flight is bounded."""
    chunks = iter(lambda: list(itertools.islice(numbered, CHUNK)), [])
    if workers == 1:
        for chunk in chunks:
            yield from zip(chunk, normalise_extents([n.extent for n in chunk], max_side), strict=True)
        return
    in_flight: deque[tuple[list[_Numbered], Future[list[NormalisedImage | str | None]]]] = deque()
    # Not fork: the caller may hold threads (Arrow, DuckDB, a progress bar) whose locks a forked child would inherit.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
        for chunk in chunks:
            in_flight.append((chunk, pool.submit(normalise_extents, [n.extent for n in chunk], max_side)))
            if len(in_flight) >= 3 * workers:
                done, future = in_flight.popleft()
                yield from zip(done, future.result(), strict=True)
        while in_flight:
            done, future = in_flight.popleft()
            yield from zip(done, future.result(), strict=True)


class _Writer:
    """The shards, the index and the quarantine of one build, item by item."""

    def __init__(self, folder: Path, items_per_shard: int):
        # Here and not above: webdataset imports torch, a second that no other command should wait for.
        from webdataset.writer import TarWriter

        self._tar_writer = TarWriter
        self.summary = BuildSummary()
        self.fingerprint = Fingerprint()
        self._folder, self._items_per_shard = folder, items_per_shard
        self._rows: list[dict[str, Any]] = []
        self._dali: list[str] = []
        self._tar: Any = None
        self._index = pa.ipc.new_file(str(folder / INDEX_FILE), INDEX_SCHEMA)
        self._quarantine = (folder / QUARANTINE_FILE).open("w", encoding="utf-8")

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_shard()
        self._index.close()
        self._quarantine.close()

    def quarantine(self, row: int, item: Item, reason: str) -> None:
        """Write why this row was dropped or has no picture."""
        line = {"row": row, "item_id": item.item_id, "image": item.image, "reason": reason}
        self._quarantine.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.summary.quarantined += 1
        self.summary.reasons[re.sub(r"\d+", "N", reason)] += 1

    def add(self, numbered: _Numbered, picture: NormalisedImage | str | None) -> None:
        """Write one item; `picture` is a reason in words where the picture was rejected."""
        item = numbered.item
        reason = picture if isinstance(picture, str) else numbered.reason
        jpeg = picture.jpeg if isinstance(picture, NormalisedImage) else b""
        title = item.title if item.title.strip() else ""
        if not title and not jpeg:
            self.quarantine(numbered.row, item, f"neither title nor usable image ({reason or 'no image named'})")
            return
        if reason:
            self.quarantine(numbered.row, item, reason)
        number = self.summary.items
        if self._tar is None:
            self._tar = self._tar_writer(
                str(self._folder / shard_file(number // self._items_per_shard)), encoder=False, mtime=0
            )
        record = {"title": title, "category": item.category, "attributes": item.attributes, "item_id": item.item_id}
        offset = self._write_members(f"{number:09d}", json.dumps(record, ensure_ascii=False).encode(), jpeg)
        crc32 = zlib.crc32(jpeg)
        self._rows.append(
            {
                "item_id": item.item_id,
                "title": title,
                "category": item.category,
                "attributes": json.dumps(item.attributes, ensure_ascii=False, sort_keys=True),
                "split": split_of(item.item_id),
                "shard": number // self._items_per_shard,
                "offset": offset,
                "size": len(jpeg),
                "crc32": crc32,
                "width": picture.width if isinstance(picture, NormalisedImage) else 0,
                "height": picture.height if isinstance(picture, NormalisedImage) else 0,
            }
        )
        self.fingerprint.add(item.item_id, title, crc32)
        self.summary.items += 1
        self.summary.with_image += bool(jpeg)
        if self.summary.items % self._items_per_shard == 0:
            self._end_shard()

    def _write_members(self, key: str, record: bytes, jpeg: bytes) -> int:
        """Write the sample's members, in the writer's order; return the JPEG's offset in the tar, -1 without one."""
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

    def _end_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        shard = self._rows[0]["shard"]
        lines = [f"v1.2 {len(self._dali)}", *self._dali]
        (self._folder / shard_file(shard, "idx")).write_text("\n".join(lines) + "\n", "utf-8")
        columns = {name: [row[name] for row in self._rows] for name in INDEX_SCHEMA.names}
        self._index.write_batch(pa.record_batch(columns, schema=INDEX_SCHEMA))
        self._tar, self._rows, self._dali = None, [], []
