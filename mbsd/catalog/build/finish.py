"""The end of a build: the files of a catalogue that need all of its shards are written, and it moves to its place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from mbsd.catalog.build.index import write_index
from mbsd.catalog.build.options import BuildOptions
from mbsd.catalog.build.shard_writer import REPEATED_FILE
from mbsd.catalog.build.unfinished import Commit, UnfinishedBuild
from mbsd.catalog.checksums import CHECKSUMS, sealed
from mbsd.catalog.layout import CATALOG_FILE, QUARANTINE_FILE, VERSION, dropped, reason_of
from mbsd.catalog.row_count import RowCount
from mbsd.errors import UserError


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


def summary_of(done: Commit, quarantine: Iterable[str]) -> BuildSummary:
    """Return what was built, by the last commit and the lines of the quarantine."""
    summary = BuildSummary(
        items=done.items, with_image=done.with_image, quarantined=done.quarantined, repeated=done.repeated
    )
    summary.count.used = done.items
    for line in quarantine:
        summary.reasons[reason_of(line)] += 1
        row = dropped(line)
        if row is not None:
            summary.count.leave_out(*row)
    return summary


def finish_catalog(
    unfinished: UnfinishedBuild, done: Commit, options: BuildOptions, *, has_image_root: bool
) -> BuildSummary:
    """Write the files that need all shards, and move the catalogue to its place.

    Args:
        unfinished: the build's folder.
        done: its last commit.
        options: of the build.
        has_image_root: whether pictures were looked up.

    Raises:
        UserError: no item is left, or the rows do not add up.
    """
    summary = summary_of(done, unfinished.lines(QUARANTINE_FILE))
    if done.items == 0:
        left_out = summary.count.describe_left_out()
        found = f"{done.rows} rows, none usable: {left_out}" if done.rows else "no rows"
        unfinished.commits.clear()  # there is nothing in it to resume
        raise UserError(f"an empty catalogue: {found}; an item needs a title or a picture below the image root")
    summary.has_image_root = has_image_root
    summary.count.reconcile(done.rows, "the source of the items")
    with (unfinished.catalog / QUARANTINE_FILE).open("w", encoding="utf-8") as file:
        file.writelines(unfinished.lines(QUARANTINE_FILE))
    files = [unfinished.commit_file(commit.number, "arrow") for commit in unfinished.commits]
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
            "images": has_image_root,
        },
        CHECKSUMS: index.checksums,
    }
    text = json.dumps(sealed(meta), ensure_ascii=False, indent=2)
    (unfinished.catalog / CATALOG_FILE).write_text(f"{text}\n", "utf-8")
    unfinished.publish()
    return summary
