"""Items + an image root -> a catalogue's folder (see `layout`): WebDataset shards, an index, and what was left out.

The same input gives the same bytes, whatever the number of workers and however often the build was interrupted: it is
written beside its place (see `unfinished`), shard after shard, and renamed when it is complete.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL
import pillow_heif
import pyarrow as pa
from PIL import features
from tqdm import tqdm

from mbsd.catalog.build.decode_pool import DecodePool
from mbsd.catalog.build.image_root import ImageRoot, open_image_root
from mbsd.catalog.build.index import write_index
from mbsd.catalog.build.options import BuildOptions, ImageLimits
from mbsd.catalog.build.shard_writer import REPEATED_FILE
from mbsd.catalog.build.source_rows import SourceRows
from mbsd.catalog.build.unfinished import HOW_TO_RESUME, Part, UnfinishedBuild, remove_published
from mbsd.catalog.build.write_shards import check_rejects, normalised, write_shards
from mbsd.catalog.checksums import CHECKSUMS, sealed
from mbsd.catalog.layout import CATALOG_FILE, QUARANTINE_FILE, VERSION
from mbsd.catalog.row_count import RowCount
from mbsd.catalog.sources import Item
from mbsd.errors import UserError

__all__ = ["BuildOptions", "BuildSummary", "ImageLimits", "build_catalog"]


@dataclass
class BuildSummary:
    """What a build did.

    Attributes:
        items: number of items in the catalogue.
        with_image: how many of them have a picture.
        quarantined: number of lines in `quarantine.jsonl`.
        reasons: how often each reason occurs there, numbers replaced by N.
        count: the account of the source's rows: items, and rows that were dropped.
        repeated: rows dropped because an earlier row has their item id.
        same_picture: items whose picture is byte for byte that of an earlier item.
        has_image_root: whether pictures were looked up at all.
        resumed_from: rows of the source that an interrupted build had already processed; 0 = a fresh build.
        seconds: wall time of this process.
        images_per_s: pictures that this process stored, per second.
    """

    items: int = 0
    with_image: int = 0
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    count: RowCount = field(default_factory=RowCount)
    repeated: int = 0
    same_picture: int = 0
    has_image_root: bool = True
    resumed_from: int = 0
    seconds: float = 0.0
    images_per_s: float = 0.0


def build_catalog(items: Iterable[Item], images: Path | str | None, out: Path, options: BuildOptions) -> BuildSummary:
    """Write the catalogue `out` from items and the pictures below `images`.

    An item whose picture is missing or rejected is kept as text. An item with neither title nor picture is dropped, and
    so is one whose id an earlier row has. Each has its line in `quarantine.jsonl`. Called again with the same arguments
    after an interruption, it resumes behind the last complete shard.

    Args:
        items: in the order in which they are numbered.
        images: what `Item.image` is relative to: a folder, a tar, a folder or glob of tars, or an fsspec URL. None: no
            picture is looked up, every item is text.
        out: a folder that does not exist or is empty.
        options: see `BuildOptions`.

    Raises:
        UserError: `out` is not empty, the source cannot be read or is not that of the unfinished build, too many
            pictures are rejected, or no item is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        remove_published(out)
        raise UserError(f"{out}: already there and not an empty folder; choose another name or remove it")
    root = None if images is None else open_image_root(images)
    started = time.monotonic()
    with UnfinishedBuild(out, _identity(root, options), restart=options.restart) as unfinished:
        before = unfinished.parts[-1] if unfinished.parts else Part()
        rows = SourceRows(items)
        rows.skip(before.rows, before.digest)
        done = before
        if not before.last:
            with DecodePool(options.workers or os.cpu_count() or 1, options.max_side, options.limits) as pool:
                results = normalised(rows, root, pool)
                bar = tqdm(results, unit=" rows", initial=before.rows, disable=not options.progress)
                done = write_shards(bar, unfinished, before, options)
        elif next(iter(rows), None) is not None:
            raise UserError(
                f"the source has more rows than that of the unfinished build {unfinished.path}; {HOW_TO_RESUME}"
            )
        check_rejects(unfinished, done, options.max_rejects)
        if done.items == 0:
            count = RowCount()
            unfinished.left_out(count)
            found = f"{done.rows} rows, none usable: {count.describe_left_out()}" if done.rows else "no rows"
            unfinished.parts.clear()  # there is nothing in it to resume
            raise UserError(f"an empty catalogue: {found}; an item needs a title or a picture below the image root")
        summary = BuildSummary(
            items=done.items, with_image=done.with_image, quarantined=done.quarantined, reasons=unfinished.reasons(),
            repeated=done.repeated, has_image_root=root is not None, resumed_from=before.rows,
        )  # fmt: skip
        summary.count.used = done.items
        unfinished.left_out(summary.count)
        summary.count.reconcile(done.rows, "the source of the items")
        _finish(unfinished, summary, options)
    summary.seconds = time.monotonic() - started
    summary.images_per_s = (done.with_image - before.with_image) / summary.seconds
    return summary


def _identity(root: ImageRoot | None, options: BuildOptions) -> dict[str, Any]:
    """What must be equal for a build to be resumed: all that the shards' bytes depend on, besides the source."""
    return {
        "version": VERSION,
        "items_per_shard": options.items_per_shard,
        "max_side": options.max_side,
        "images": None if root is None else root.description,
        "limits": dataclasses.asdict(options.limits),
        "decoders": [
            PIL.__version__,
            pillow_heif.__version__,
            *(features.version(name) for name in ("jpg", "webp", "avif", "jpg_2000", "libtiff")),
        ],
    }


def _finish(unfinished: UnfinishedBuild, summary: BuildSummary, options: BuildOptions) -> None:
    """Write the files that need all parts, and move the catalogue to its place."""
    with (unfinished.catalog / QUARANTINE_FILE).open("w", encoding="utf-8") as file:
        file.writelines(unfinished.lines(QUARANTINE_FILE))
    files = [unfinished.part_file(part.number, "arrow") for part in unfinished.parts]
    batches = (pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0) for file in files if file.exists())
    index = write_index(unfinished.catalog, summary.items, batches, unfinished.lines(REPEATED_FILE))
    summary.same_picture = index.same_picture
    meta = {
        "version": VERSION,
        "items": summary.items,
        "with_image": summary.with_image,
        "without_image": summary.items - summary.with_image,
        "quarantined": summary.quarantined,
        "repeated_item_ids": summary.repeated,
        "same_pictures": summary.same_picture,
        "fingerprint": index.fingerprint,
        "attribute_where": dict(options.attribute_where),
        "options": {
            "items_per_shard": options.items_per_shard,
            "max_side": options.max_side,
            "images": summary.has_image_root,
        },
        CHECKSUMS: index.checksums,
    }
    text = json.dumps(sealed(meta), ensure_ascii=False, indent=2)
    (unfinished.catalog / CATALOG_FILE).write_text(f"{text}\n", "utf-8")
    unfinished.publish()
