"""Items + an image root -> a catalogue's folder (see `layout`): WebDataset shards, an index, and what was left out.

The same input gives the same bytes, whatever the number of workers and however often the build was interrupted: it is
written aside (see `building`), shard after shard, and renamed when it is complete.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
from PIL import features
from tqdm import tqdm

from mbsd.catalog.build.decode_pool import Limits, PicturePool, Result
from mbsd.catalog.build.image_folder import Place
from mbsd.catalog.build.image_root import ImageRoot, locate, open_image_root
from mbsd.catalog.build.index import write_index
from mbsd.catalog.build.normalise import ImageRejected, NormalisedImage
from mbsd.catalog.build.shard_writer import REPEATED_FILE, PartWriter
from mbsd.catalog.build.source_rows import Row, Rows
from mbsd.catalog.build.unfinished import GO_ON, Building, Part, remove_published
from mbsd.catalog.layout import CATALOG_FILE, QUARANTINE_FILE, VERSION, WHERE, split_of
from mbsd.catalog.reader import Catalog, CorruptRecord, Record, inspect
from mbsd.catalog.sources import Item
from mbsd.errors import UserError

__all__ = ["BuildSummary", "Catalog", "CorruptRecord", "Limits", "Record", "build_catalog", "inspect", "split_of"]

CHUNK = 32  # pictures a task: large enough to hide the cost of a task, small enough to keep workers level
REJECTS_MIN_ROWS = 1000  # rows that name a picture, before their share of rejects says anything about the rest
SAME_ID = "same item id"


@dataclass
class BuildSummary:
    """What a build did.

    Attributes:
        items: in the catalogue.
        with_image: of them.
        quarantined: lines of `quarantine.jsonl`.
        reasons: how often each reason stands there, numbers replaced by N.
        repeated: rows dropped because their item id came before.
        same_picture: items with the very picture of an earlier one.
        looked_up: whether there was an image root.
        continued_from: rows that an interrupted build had already taken in.
        seconds: of this process.
        images_per_s: pictures that this process brought in, by `seconds`.
    """

    items: int = 0
    with_image: int = 0
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    same_picture: int = 0
    looked_up: bool = True
    continued_from: int = 0
    seconds: float = 0.0
    images_per_s: float = 0.0


@dataclass(frozen=True)
class _Task:
    """A row and where its picture lies, or why that is known to be nowhere ("" = no picture is looked for)."""

    row: Row
    place: Place | None = None
    reason: str = ""


def build_catalog(
    items: Iterable[Item],
    images: Path | str | None,
    out: Path,
    *,
    items_per_shard: int = 4096,
    workers: int = 0,
    max_side: int = 320,
    attribute_where: dict[str, str] | None = None,
    max_rejects: float = 0.05,
    limits: Limits | None = None,
    restart: bool = False,
    progress: bool = True,
) -> BuildSummary:
    """Write the catalogue `out` from items and the pictures below `images`.

    An item whose picture is missing or rejected is kept as text; one with neither title nor picture, and one whose id
    came before, is dropped. Each has its line in `quarantine.jsonl`. Called again after an interruption, with the same
    arguments, it goes on behind the last complete shard.

    Args:
        items: in the order in which they are numbered.
        images: what `Item.image` is relative to: a folder, a tar, a folder or glob of tars, or an fsspec URL. None: no
            picture is looked for, every item is text.
        out: a folder that does not exist or is empty.
        items_per_shard: items of one tar.
        workers: processes that read and decode pictures; 0 = one per core. They start afresh, so a script that calls
            this needs the usual `if __name__ == "__main__":`.
        max_side: the long side of a stored picture, in pixels.
        attribute_where: attribute name -> image | title | both | unknown; where its value can be seen.
        max_rejects: the share of rows that name a picture whose pictures may be rejected; 1 = all.
        limits: what one picture may cost.
        restart: begin anew where an unfinished build lies.
        progress: show a bar on stderr.

    Raises:
        UserError: `out` is not empty, an option makes no sense, the source cannot be read or is not that of the
            unfinished build, too many pictures are rejected, or no item is left.
    """
    limits = limits or Limits()
    _check(items_per_shard, max_side, max_rejects, limits, attribute_where or {})
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        remove_published(out)
        raise UserError(f"{out}: already there and not an empty folder; choose another name or remove it")
    root = None if images is None else open_image_root(images)
    asked = {
        "version": VERSION,
        "items_per_shard": items_per_shard,
        "max_side": max_side,
        "images": None if root is None else root.description,
        "limits": dataclasses.asdict(limits),
        "decoders": [PIL.__version__, features.version("jpg")],
    }
    started = time.monotonic()
    with Building(out, asked, restart=restart) as building:
        before = building.parts[-1] if building.parts else Part()
        rows = Rows(items)
        rows.skip(before.rows, before.digest)
        done = before
        if not before.last:
            with PicturePool(workers or os.cpu_count() or 1, max_side, limits) as pool:
                results = tqdm(_normalised(rows, root, pool), unit=" rows", initial=before.rows, disable=not progress)
                done = _write_parts(results, building, before, items_per_shard, max_rejects)
        elif next(iter(rows), None) is not None:
            raise UserError(f"the source has more rows than that of the unfinished build {building.path}; {GO_ON}")
        _check_rejects(building, done, max_rejects)
        if done.items == 0:
            found = f"{done.rows} rows, none usable" if done.rows else "no rows"
            building.parts.clear()  # nothing in it to go on with
            raise UserError(f"an empty catalogue: {found}; an item needs a title or a picture below the image root")
        summary = BuildSummary(
            items=done.items, with_image=done.with_image, quarantined=done.quarantined, reasons=building.reasons(),
            repeated=done.repeated, looked_up=root is not None, continued_from=before.rows,
        )  # fmt: skip
        options = {"items_per_shard": items_per_shard, "max_side": max_side, "images": root is not None}
        _finish(building, summary, {"attribute_where": attribute_where or {}, "options": options})
    summary.seconds = time.monotonic() - started
    summary.images_per_s = (done.with_image - before.with_image) / summary.seconds
    return summary


def _check(
    items_per_shard: int, max_side: int, max_rejects: float, limits: Limits, attribute_where: dict[str, str]
) -> None:
    for name, value in {"items_per_shard": items_per_shard, "max_side": max_side}.items():
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    if not 0 <= max_rejects <= 1:
        raise UserError(f"max_rejects is {max_rejects:g}; expected a share from 0 (no reject) to 1 (any number)")
    for name, limit in dataclasses.asdict(limits).items():
        if limit <= 0:
            raise UserError(f"the limit of a picture's {name} is {limit:g}; expected more than 0")
    for name, where in attribute_where.items():
        if where not in WHERE:
            raise UserError(f"attribute_where: {name!r} is {where!r}; expected one of {', '.join(WHERE)}")


def _task(row: Row, root: ImageRoot | None) -> _Task:
    if row.same_as is not None or root is None or not row.item.image:
        return _Task(row)
    try:
        return _Task(row, locate(root, row.item.image))
    except ImageRejected as rejected:
        return _Task(row, reason=str(rejected))


def _normalised(rows: Rows, root: ImageRoot | None, pool: PicturePool) -> Iterator[tuple[_Task, Result]]:
    """The pictures of all rows, in order; the number of them in flight is bounded."""
    tasks = (_task(row, root) for row in rows)
    in_flight: deque[tuple[list[_Task], Future[list[Result]]]] = deque()
    while True:
        chunk = list(itertools.islice(tasks, CHUNK))
        if chunk:
            in_flight.append((chunk, pool.submit([task.place for task in chunk])))
        if in_flight and (not chunk or len(in_flight) >= 3 * pool.workers):
            waited, future = in_flight.popleft()
            yield from zip(waited, pool.results([task.place for task in waited], future), strict=True)
        if not chunk and not in_flight:
            return


def _write_parts(
    results: Iterable[tuple[_Task, Result]], building: Building, before: Part, items_per_shard: int, max_rejects: float
) -> Part:
    """Write what the rows became and commit each part that is full, and the last one; return its commit."""
    part = dataclasses.replace(before, number=before.number + 1)
    writer = PartWriter(building, part.number, part.items)
    digest = b""
    try:
        for task, picture in results:
            _add(writer, part, task, picture)
            digest = task.row.digest
            if part.named >= REJECTS_MIN_ROWS and part.rejected > max_rejects * part.named:
                writer.flush()
                _check_rejects(building, part, max_rejects)
            if writer.num_items == items_per_shard:
                part.digest = digest.hex()
                building.commit(part, writer.close())
                part = dataclasses.replace(part, number=part.number + 1)
                writer = PartWriter(building, part.number, part.items)
    finally:
        files = writer.close()
    part.digest, part.last = digest.hex() or before.digest, True
    building.commit(part, files)
    return part


def _add(writer: PartWriter, part: Part, task: _Task, picture: Result) -> None:
    """Write what one row became, and count it."""
    row = task.row
    part.rows = row.number
    if row.same_as is not None:
        part.repeated += 1
        part.quarantined += 1
        writer.repeated(row)
        writer.quarantine(row, f"{SAME_ID} as row {row.same_as}")
        return
    reason = picture if isinstance(picture, str) else task.reason
    part.named += bool(task.place or reason)
    part.rejected += bool(reason)
    found = picture if isinstance(picture, NormalisedImage) else None
    title = row.item.title if row.item.title.strip() else ""
    if not title and not found:
        no_image = "no image root was given" if row.item.image else "no image named"
        reason = f"neither title nor usable image ({reason or no_image})"
    else:
        part.items += 1
        part.with_image += bool(found)
        writer.add(row, title, found)
    if reason:
        part.quarantined += 1
        writer.quarantine(row, reason)


def _check_rejects(building: Building, part: Part, max_rejects: float) -> None:
    if part.rejected <= max_rejects * part.named:
        return
    listed = building.path / QUARANTINE_FILE
    with listed.open("w", encoding="utf-8") as file:
        file.writelines(building.lines(QUARANTINE_FILE))
    reasons = [(reason, count) for reason, count in building.reasons().most_common() if SAME_ID not in reason]
    often = ", ".join(f"{count} x {reason}" for reason, count in reasons[:3])
    raise UserError(
        f"{part.rejected} of the {part.named} rows that name a picture were rejected "
        f"({part.rejected / part.named:.1%}; --max-rejects is {max_rejects:g}): {often}; all are listed in {listed}; "
        "mend the pictures and build again with --restart, or give a higher --max-rejects (1 = any number) to go on"
    )


def _finish(building: Building, summary: BuildSummary, meta: dict[str, Any]) -> None:
    """Write what is made of all parts, and give the catalogue its name."""
    with (building.catalog / QUARANTINE_FILE).open("w", encoding="utf-8") as file:
        file.writelines(building.lines(QUARANTINE_FILE))
    files = [building.part_file(part.number, "arrow") for part in building.parts]
    batches = (pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0) for file in files if file.exists())
    index = write_index(building.catalog, summary.items, batches, building.lines(REPEATED_FILE))
    summary.same_picture = index.same_picture
    counts = {
        "version": VERSION,
        "items": summary.items,
        "with_image": summary.with_image,
        "without_image": summary.items - summary.with_image,
        "quarantined": summary.quarantined,
        "repeated_item_ids": summary.repeated,
        "same_pictures": summary.same_picture,
        "fingerprint": index.fingerprint,
    }
    (building.catalog / CATALOG_FILE).write_text(
        json.dumps({**counts, **meta}, ensure_ascii=False, indent=2) + "\n", "utf-8"
    )
    building.publish()
