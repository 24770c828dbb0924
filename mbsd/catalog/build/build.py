"""Items + an image root -> a catalogue's folder (see `layout`): WebDataset shards, an index, and what was left out.

The same input gives the same bytes, whatever the number of workers and however often the build was interrupted: it is
written beside its place (see `unfinished`), shard after shard, and renamed when it is complete.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL
import pillow_heif
from PIL import features
from tqdm import tqdm

from mbsd.catalog.build.decode_pool import DecodePool
from mbsd.catalog.build.finish import BuildSummary, finish_catalog
from mbsd.catalog.build.finished_part import finished_before, publish_part
from mbsd.catalog.build.image_root import ImageRoot, open_image_root
from mbsd.catalog.build.options import BuildOptions, ImageLimits, PartOf
from mbsd.catalog.build.source_rows import SourceRows
from mbsd.catalog.build.unfinished import HOW_TO_RESUME, Commit, UnfinishedBuild, require_free
from mbsd.catalog.build.write_shards import check_part_rejects, check_rejects, normalised, write_shards
from mbsd.catalog.layout import VERSION
from mbsd.catalog.sources import Item
from mbsd.errors import UserError

__all__ = ["BuildOptions", "BuildSummary", "ImageLimits", "PartOf", "build_catalog"]


def build_catalog(items: Iterable[Item], images: Path | str | None, out: Path, options: BuildOptions) -> BuildSummary:
    """Write the catalogue `out` from items and the pictures below `images`.

    An item whose picture is missing or rejected is kept as text. An item with neither title nor picture is dropped, and
    so is one whose id an earlier row has. Each has its line in `quarantine.jsonl`. Called again with the same arguments
    after an interruption, it resumes behind the last complete shard.

    With `options.part` all rows are read, but only those of the part are built, and `out` becomes the part's folder,
    for `merge`; where it is that already, nothing is done.

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
    root = None if images is None else open_image_root(images)
    identity = _identity(root, options)
    if options.part is not None and (summary := finished_before(out, identity, options)):
        return summary
    require_free(out)
    started = time.monotonic()
    with UnfinishedBuild(out, identity, restart=options.restart) as unfinished:
        before = unfinished.commits[-1] if unfinished.commits else Commit()
        rows = SourceRows(items)
        rows.skip(before.rows, before.digest)
        done = before
        if not before.last:
            with DecodePool(options.workers or os.cpu_count() or 1, options.max_side, options.limits) as pool:
                mine = (row for row in rows if options.part is None or options.part.has(row.number))
                results = normalised(mine, root, pool)
                bar = tqdm(results, unit=" rows", initial=before.rows, disable=not options.progress)
                done = write_shards(bar, rows, unfinished, before, options)
        elif next(iter(rows), None) is not None:
            raise UserError(
                f"the source has more rows than that of the unfinished build {unfinished.path}; {HOW_TO_RESUME}"
            )
        if options.part is not None:
            check_part_rejects(unfinished, done, options.max_rejects)
            summary = publish_part(unfinished, done, identity, options)
        else:
            check_rejects(unfinished, done, options.max_rejects)
            summary = finish_catalog(unfinished, done, options, has_image_root=root is not None)
    summary.resumed_from = before.rows
    summary.seconds = time.monotonic() - started
    summary.images_per_s = (done.with_image - before.with_image) / summary.seconds
    return summary


def _identity(root: ImageRoot | None, options: BuildOptions) -> dict[str, Any]:
    """What must be equal for a build to be resumed: all that the shards' bytes depend on, besides the source."""
    part = {} if options.part is None else {"part": dataclasses.asdict(options.part)}
    return {
        **part,
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
