"""The middle of a build: numbered rows -> their pictures, normalised by worker processes -> committed shards."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from mbsd.catalog.build.decode_pool import DecodePool, Result
from mbsd.catalog.build.image_folder import Place
from mbsd.catalog.build.image_root import ImageRoot, locate
from mbsd.catalog.build.normalise import NormalisedImage
from mbsd.catalog.build.open_image import ImageRejected
from mbsd.catalog.build.options import BuildOptions
from mbsd.catalog.build.shard_writer import ShardWriter
from mbsd.catalog.build.source_rows import SourceRow, SourceRows
from mbsd.catalog.build.unfinished import Commit, UnfinishedBuild
from mbsd.catalog.layout import NOTHING, QUARANTINE_FILE, SAME_ID
from mbsd.errors import UserError
from mbsd.io.files import replacing

CHUNK = 32  # pictures a task: large enough to hide the cost of a task, small enough to keep workers level
REJECTS_MIN_ROWS = 1000  # with fewer rows that name a picture, a share of rejects could be chance


@dataclass(frozen=True)
class Located:
    """A row and where its picture lies.

    Attributes:
        row: the row.
        place: None where no picture is to be read.
        reason: why the picture is known to be nowhere; "" where none is looked up.
    """

    row: SourceRow
    place: Place | None = None
    reason: str = ""


def normalised(rows: Iterable[SourceRow], root: ImageRoot | None, pool: DecodePool) -> Iterator[tuple[Located, Result]]:
    """Yield every row with its picture's result, in order; a bounded number of pictures is in flight."""
    located = (_locate(row, root) for row in rows)
    in_flight: deque[tuple[list[Located], Future[list[Result]]]] = deque()
    while True:
        chunk = list(itertools.islice(located, CHUNK))
        if chunk:
            in_flight.append((chunk, pool.submit([one.place for one in chunk])))
        if in_flight and (not chunk or len(in_flight) >= 3 * pool.workers):
            oldest, future = in_flight.popleft()
            yield from zip(oldest, pool.results([one.place for one in oldest], future), strict=True)
        if not chunk and not in_flight:
            return


def write_shards(
    results: Iterable[tuple[Located, Result]],
    rows: SourceRows,
    unfinished: UnfinishedBuild,
    before: Commit,
    options: BuildOptions,
) -> Commit:
    """Write the rows' items and commit every full shard, and the last one; return the last commit.

    Args:
        results: of all rows to be written behind those of `before`.
        rows: what `results` are made of; read to its end when they are.
        unfinished: the build's folder.
        before: the last commit of an interrupted build, or an empty `Commit`.
        options: of the build.

    Raises:
        UserError: so many pictures are rejected that the rest cannot be better (see `REJECTS_MIN_ROWS`).
    """
    commit = dataclasses.replace(before, number=before.number + 1)
    writer = ShardWriter(unfinished, commit.number, commit.items)
    try:
        for located, result in results:
            _add(writer, commit, located, result)
            if commit.named >= REJECTS_MIN_ROWS and commit.rejected > options.max_rejects * commit.named:
                writer.flush()
                check_rejects(unfinished, commit, options.max_rejects)
            if writer.num_items == options.items_per_shard:
                commit.digest = located.row.digest.hex()
                unfinished.commit(commit, writer.close())
                commit = dataclasses.replace(commit, number=commit.number + 1)
                writer = ShardWriter(unfinished, commit.number, commit.items)
    finally:
        files = writer.close()
    commit.rows, commit.digest, commit.last = rows.number, rows.digest, True
    unfinished.commit(commit, files)
    return commit


def check_rejects(
    unfinished: UnfinishedBuild, commit: Commit, max_rejects: float, mend: str = "build again with --restart"
) -> None:
    """Raise a UserError with the most frequent reasons where more than this share of the pictures was rejected.

    All reasons so far are then listed in the build's folder.
    """
    if commit.rejected <= max_rejects * commit.named:
        return
    listed = unfinished.path / QUARANTINE_FILE
    with replacing(listed) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(unfinished.lines(QUARANTINE_FILE))
    reasons = [(reason, count) for reason, count in unfinished.reasons().most_common() if SAME_ID not in reason]
    most_frequent = ", ".join(f"{count} x {reason}" for reason, count in reasons[:3])
    raise UserError(
        f"{commit.rejected} of the {commit.named} rows that name a picture were rejected "
        f"({commit.rejected / commit.named:.1%}; --max-rejects is {max_rejects:g}): {most_frequent}; all are listed in "
        f"{listed}; mend the pictures and {mend}, or give a higher --max-rejects (1 = any number) "
        "to go on"
    )


def check_part_rejects(unfinished: UnfinishedBuild, commit: Commit, max_rejects: float) -> None:
    """As `check_rejects`, of a part of a catalogue, whose share could be chance where it has few rows."""
    if commit.named >= REJECTS_MIN_ROWS:
        check_rejects(unfinished, commit, max_rejects)


def _locate(row: SourceRow, root: ImageRoot | None) -> Located:
    if row.same_as is not None or root is None or not row.item.image:
        return Located(row)
    try:
        return Located(row, locate(root, row.item.image))
    except ImageRejected as rejected:
        return Located(row, reason=str(rejected))


def _add(writer: ShardWriter, commit: Commit, located: Located, result: Result) -> None:
    """Write one row's item, or why there is none, and count it in `commit`."""
    row = located.row
    commit.rows = row.number
    if row.same_as is not None:
        commit.repeated += 1
        commit.quarantined += 1
        writer.repeated(row)
        writer.quarantine(row, f"{SAME_ID} as row {row.same_as}", kept=False)
        return
    reason = result if isinstance(result, str) else located.reason
    commit.named += bool(located.place or reason)
    commit.rejected += bool(reason)
    picture = result if isinstance(result, NormalisedImage) else None
    title = row.item.title if row.item.title.strip() else ""
    kept = bool(title or picture)
    if not kept:
        no_image = "no image root was given" if row.item.image else "no image named"
        reason = f"{NOTHING} ({reason or no_image})"
    else:
        commit.items += 1
        commit.with_image += bool(picture)
        writer.add(row, title, picture)
    if reason:
        commit.quarantined += 1
        writer.quarantine(row, reason, kept=kept)
