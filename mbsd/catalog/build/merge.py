"""Parts that were built on several machines -> the catalogue that one build would have written, byte for byte.

No picture is decoded: items are copied in the order of their rows, and numbered and put into shards anew. Killed, it
resumes behind its last complete shard, as a build does.
"""

from __future__ import annotations

import dataclasses
import heapq
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from mbsd.catalog.build.finish import BuildSummary, finish_catalog
from mbsd.catalog.build.finished_part import FinishedPart
from mbsd.catalog.build.options import BuildOptions
from mbsd.catalog.build.part_fit import open_parts
from mbsd.catalog.build.shard_writer import REPEATED_FILE, ShardWriter, StoredItem
from mbsd.catalog.build.unfinished import Commit, UnfinishedBuild, require_free
from mbsd.catalog.build.write_shards import check_rejects
from mbsd.catalog.layout import QUARANTINE_FILE

COUNTS = ("items", "with_image", "named", "rejected", "quarantined", "repeated")


def merge_catalog(
    folders: Sequence[Path], out: Path, *, max_rejects: float = 0.05, restart: bool = False, progress: bool = True
) -> BuildSummary:
    """Write the catalogue `out` from the folders of all its parts, in any order; they are left as they are.

    Args:
        folders: written by `build_catalog` with `BuildOptions.part`.
        out: a folder that does not exist or is empty.
        max_rejects: highest share of the rows naming a picture whose pictures may be rejected; 1 = any number.
        restart: discard an unfinished merge instead of resuming it.
        progress: show a progress bar on stderr.

    Raises:
        UserError: parts are missing, unfinished, damaged or do not belong together, too many pictures are rejected, or
            no item is left.
    """
    require_free(out)
    _allow_open_files()
    started = time.monotonic()
    parts = open_parts(folders)
    shared = parts[0].options
    options = BuildOptions(
        items_per_shard=shared["items_per_shard"], max_side=shared["max_side"], max_rejects=max_rejects,
        attribute_where=shared["attribute_where"], progress=progress,
    )  # fmt: skip
    identity = {"merge of": [part.checksum for part in parts]}
    with UnfinishedBuild(out, identity, restart=restart) as unfinished:
        before = unfinished.commits[-1] if unfinished.commits else Commit()
        done = before if before.last else _copy(parts, unfinished, before, options)
        summary = finish_catalog(unfinished, done, options, has_image_root=shared["images"] is not None)
    summary.resumed_from = before.rows
    summary.seconds = time.monotonic() - started
    summary.images_per_s = (done.with_image - before.with_image) / summary.seconds
    return summary


def _copy(parts: list[FinishedPart], unfinished: UnfinishedBuild, before: Commit, options: BuildOptions) -> Commit:
    """Commit the shards behind `before`; return the last commit. The first one also has the lists of all rows."""
    total = _total(parts)
    commit = dataclasses.replace(before, number=before.number + 1)
    writer = ShardWriter(unfinished, commit.number, commit.items)
    try:
        if commit.number == 0:
            for name in (QUARANTINE_FILE, REPEATED_FILE):
                writer.list_all(name, _lines(parts, name))
            writer.flush()
        check_rejects(unfinished, total, options.max_rejects, "build the parts again")
        items = _items(parts, before.rows)
        for item in tqdm(items, unit=" items", initial=commit.items, total=total.items, disable=not options.progress):
            writer.store(item)
            commit.items += 1
            commit.with_image += bool(item.jpeg)
            commit.rows = item.facts["row"]
            if writer.num_items == options.items_per_shard:
                unfinished.commit(commit, writer.close())
                commit = dataclasses.replace(commit, number=commit.number + 1)
                writer = ShardWriter(unfinished, commit.number, commit.items)
    finally:
        files = writer.close()
    assert (commit.items, commit.with_image) == (total.items, total.with_image), "the parts' items are not as counted"
    done = dataclasses.replace(total, number=commit.number, last=True)
    unfinished.commit(done, files)
    return done


def _allow_open_files() -> None:
    """Let this process have as many files open as it may: those of all parts are at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _total(parts: list[FinishedPart]) -> Commit:
    """The counts of the whole catalogue."""
    counts = {name: sum(getattr(part.commits[-1], name) for part in parts) for name in COUNTS}
    return Commit(rows=parts[0].rows, digest=parts[0].digest, **counts)


def _items(parts: list[FinishedPart], after: int) -> Iterator[StoredItem]:
    """The items of all parts behind a row of the source, in the order of their rows."""
    return heapq.merge(*(part.items(after) for part in parts), key=lambda item: int(item.facts["row"]))


def _lines(parts: list[FinishedPart], name: str) -> Iterator[str]:
    """The lines of a list of rows of all parts, in the order of the rows."""
    return (line for _, line in heapq.merge(*(part.lines(name) for part in parts)))
