"""The files of a behaviour log, in parts that an engine reads in one way each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mbsd.catalog.mining.dialect import Column
from mbsd.catalog.mining.log_rewrite import ROW_BITS, Rewritten, rewrite
from mbsd.catalog.record_files import open_parquet, parquet_batches, some
from mbsd.catalog.row_count import RowCount
from mbsd.catalog.source_files import find_files, partition_of
from mbsd.errors import UserError

FORMATS = {".parquet": "Parquet", ".csv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL"}
# What the engines call a row's place in a file: a column of such a name hides it.
RESERVED = {"file_index", "file_row_number", "_metadata"}


@dataclass(frozen=True)
class LogPart:
    """Parquet files that an engine reads in one way.

    Attributes:
        paths: local files, or URLs.
        columns: our name of a column -> name and kind of the column that holds it (see `dialect.Column`).
        first: number of the first file; the others follow.
        placed: whether the files have a column with each row's place, rather than being the log's own.
    """

    paths: tuple[str, ...]
    columns: Mapping[str, Column]
    first: int
    placed: bool = False


@dataclass(frozen=True)
class LogFiles:
    """A log.

    Attributes:
        name: the log as the user gave it, for messages.
        parts: its files; () for a URL, whose files only the engine can list.
        sources: the log's own files by number, and what a row of each is called.
        rows: number of rows in `parts`; None where only the engine can count them.
        count: rows that were left out before any engine has read them, and notes.
        columns: our name of a column -> the log's, of what is read.
        folder: for rewritten files.
    """

    name: str
    parts: tuple[LogPart, ...]
    sources: tuple[tuple[str, str], ...]
    rows: int | None
    count: RowCount
    columns: Mapping[str, str]
    folder: Path

    def where(self, place: int) -> str:
        """Return the file and the row of a place in words."""
        name, row = self.sources[place >> ROW_BITS]
        return f"{name}, {row} {place & ((1 << ROW_BITS) - 1)}"

    def as_bytes(self) -> LogFiles | None:
        """Rewrite the files in which the text of a column is not UTF-8; None where there is none.

        Raises:
            UserError: the log is at a URL.
        """
        if not self.parts or any("://" in path for part in self.parts for path in part.paths):
            raise UserError(
                f"log {self.name}: text that is not UTF-8; copy the log to a disk, where its rows are counted"
            )
        parts, changed = [], 0
        for part in self.parts:
            text = [name for name, kind in part.columns.values() if kind == "text"]
            good: list[tuple[int, str]] = []
            for number, path in enumerate(part.paths, start=part.first):
                if part.placed or not text or _is_utf8(path, text):
                    good.append((number, path))
                    continue
                changed += 1
                own = {ours: name for ours, (name, kind) in part.columns.items() if kind not in ("constant", "null")}
                out = str(self.folder / f"{number:06d}.bytes.parquet")
                done = rewrite(path, "Parquet", own, out, number)
                parts.append(LogPart((out,), {**part.columns, **done.columns}, number, placed=True))
            parts += [replace(part, paths=(path,), first=number) for number, path in good]
        return replace(self, parts=tuple(_joined(parts))) if changed else None


@dataclass
class _Found:
    """A file and what is known of it before any row has been read."""

    path: str
    kind: str
    columns: dict[str, Column] | None  # None: it has to be rewritten
    rows: int = 0
    fixed: dict[str, Column] = field(default_factory=dict)  # columns that are in the folders' names
    names: list[str] = field(default_factory=list)


def find_log(log: Path | str, columns: Mapping[str, str], folder: Path, max_record_lines: int = 10) -> LogFiles:
    """Find the files of a log; what the engines would read in different ways is rewritten in `folder`.

    Args:
        log: a file, a folder (with all below it), a pattern, or a URL that the engine reads.
        columns: our name of a column -> its name in the log.
        folder: an existing folder for the rewritten files.
        max_record_lines: of CSV, the most lines of one row.

    Raises:
        UserError: there is no such file, the files are of different formats, one of them cannot be read or lacks a
            column, or a column has neither text nor numbers.
    """
    name = str(log)
    if "://" in name:
        if FORMATS.get(Path(name.lower()).suffix, "Parquet") != "Parquet":
            raise UserError(f"log {name}: a URL is read as Parquet; copy CSV and JSONL files to a disk first")
        return LogFiles(name, (), (), None, RowCount(), columns, folder)
    try:
        source = find_files(name, FORMATS, otherwise="Parquet")
    except UserError as error:
        raise UserError(f"log {error}") from None
    found = [_look_at(file.path, file.format, columns) for file in source.files]
    count = RowCount(notes=[f"files not read: {some(source.ignored)}"] if source.ignored else [])
    parts, total = [], 0
    # A part's files have numbers that follow each other, so those that are read alike come together.
    alike: dict[Any, list[_Found]] = {}
    for number, file in enumerate(found):
        alike.setdefault(number if file.columns is None else tuple(file.columns.items()), []).append(file)
    ordered = [file for files in alike.values() for file in files]
    for number, file in enumerate(ordered):
        if file.columns is None:
            out = str(folder / f"{number:06d}.parquet")
            done = rewrite(file.path, file.kind, columns, out, number, max_record_lines)
            file.names, file.rows = done.names, done.rows
            # A column of the file's own has precedence over the folders' names.
            file.fixed = fixed_columns(file.path, columns, done.names)
            _account(file, done, count)
            parts.append(LogPart((out,), {**done.columns, **file.fixed}, number, placed=True))
            total += done.rows
        else:
            parts.append(LogPart((file.path,), file.columns, number))
            total += file.rows
    _check_rewritten(name, columns, ordered)
    if any(file.fixed for file in found):
        names = sorted({columns[ours] for file in found for ours in file.fixed})
        count.notes.append(f"read from the folders' names: {some(names)}")
    sources = tuple((file.path, "row" if file.kind == "Parquet" else "line") for file in ordered)
    return LogFiles(name, tuple(_joined(parts)), sources, total, count, columns, folder)


def check_columns(name: str, columns: Mapping[str, str], found: list[str]) -> None:
    """Raise a UserError that names the first of the wanted columns that is missing from those found, or there twice."""
    for ours, theirs in columns.items():
        if theirs not in found:
            raise UserError(
                f"log {name}: no column {theirs!r}; found {some(found) or 'none'}; needs "
                f"{', '.join(columns.values())} (another name is given as --column {ours}=NAME)"
            )
        if found.count(theirs) > 1:
            raise UserError(f"log {name}: the column {theirs!r} is there twice; keep one of them")


def fixed_columns(path: str, columns: Mapping[str, str], own: Iterable[str]) -> dict[str, Column]:
    """Return the columns that a file lacks and its folders' names hold, such as `kind=purchase/`."""
    values = partition_of(path)
    return {
        ours: (values[theirs] or "", "null" if values[theirs] is None else "constant")
        for ours, theirs in columns.items()
        if theirs in values and theirs not in own
    }


def _look_at(path: str, kind: str, columns: Mapping[str, str]) -> _Found:
    if kind != "Parquet":
        return _Found(path, kind, None)
    try:
        parquet = open_parquet(path)
    except UserError as error:
        raise UserError(f"log {error}") from None
    schema = parquet.schema_arrow
    fixed = fixed_columns(path, columns, schema.names)
    given = {ours: theirs for ours, theirs in columns.items() if ours not in fixed}
    check_columns(path, given, schema.names)
    folded = [name.casefold() for name in schema.names]  # the engines take names that differ in case for one
    direct = not RESERVED & set(folded) and not Path(path).name.startswith(("_", "."))
    found = dict(fixed)
    leaves = [parquet.schema.column(number) for number in range(len(parquet.schema))]
    int96 = {leaf.path for leaf in leaves if leaf.physical_type == "INT96"}
    for ours, theirs in given.items():
        arrow = schema.field(theirs).type
        readable = _kind(arrow, is_time=ours == "time", int96=theirs in int96)
        if readable is None:
            expected = "a time or a number" if ours == "time" else "text or numbers"
            raise UserError(f"log {path}: the column {theirs!r} is {arrow}; expected {expected}")
        direct = direct and readable != "other" and folded.count(theirs.casefold()) == 1
        found[ours] = (theirs, readable)
    return _Found(path, kind, found if direct else None, parquet.metadata.num_rows, fixed)


def _kind(arrow: Any, *, is_time: bool, int96: bool = False) -> str | None:
    """Return the `dialect.Column` kind of a Parquet column; "other" = it has to be rewritten, None = it has no text."""
    if pa.types.is_dictionary(arrow):
        return _kind(arrow.value_type, is_time=is_time)
    if isinstance(arrow, pa.BaseExtensionType):
        return None if _kind(arrow.storage_type, is_time=is_time) is None else "other"
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return "text"
    if pa.types.is_binary(arrow) or pa.types.is_large_binary(arrow) or pa.types.is_binary_view(arrow):
        return "bytes"
    if pa.types.is_null(arrow):
        return "null"
    if pa.types.is_integer(arrow):
        return "other" if arrow == pa.uint64() else "integer"
    if pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return "other"
    if is_time:
        if pa.types.is_timestamp(arrow):
            return "nanos" if arrow.unit == "ns" and not int96 else "time"
        return "time" if pa.types.is_date(arrow) else None
    return "other" if pa.types.is_boolean(arrow) else None


def _check_rewritten(name: str, columns: Mapping[str, str], files: list[_Found]) -> None:
    """Raise a UserError where a CSV file lacks a column, a JSONL file has none at all, or all JSONL files lack one."""
    read = [file for file in files if file.columns is None and (file.rows or file.kind != "JSONL")]
    for file in read:
        known = {*file.names, *(columns[ours] for ours in file.fixed)}
        if file.kind != "JSONL" or not known & set(columns.values()):
            check_columns(file.path, columns, sorted(known))
    if files[0].kind == "JSONL":
        # In JSONL a missing value is often no key at all, so a column may be missing from a file, but not from all.
        known = {name for file in read for name in (*file.names, *(columns[ours] for ours in file.fixed))}
        check_columns(name, columns, sorted(known))


def _joined(parts: Iterable[LogPart]) -> list[LogPart]:
    """Join neighbouring parts whose files are read alike."""
    joined: list[LogPart] = []
    for part in sorted(parts, key=lambda part: part.first):
        last = joined[-1] if joined else None
        if last and last.columns == part.columns and last.placed == part.placed:
            joined[-1] = replace(last, paths=(*last.paths, *part.paths))
        else:
            joined.append(part)
    return joined


def _account(file: _Found, done: Rewritten, count: RowCount) -> None:
    row = "row" if file.kind == "Parquet" else "line"
    for reason, (rows, first) in done.bad.items():
        count.leave_out(reason, f"{file.path}, {row} {first}", rows)
    rows, lines, first = done.spans
    if rows:
        # Two stray quotes could make one row of several: nothing but the user's eye can tell.
        where = f"{file.path}, line {first}"
        count.notes.append(f"rows of several lines: {rows}, of {lines} lines together (the first: {where})")


def _is_utf8(path: str, names: list[str]) -> bool:
    for batch in parquet_batches(path, names, 1 << 16):
        for column in batch.columns:
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                return False
    return True
