"""Files of records as shops send them: lines of text, JSONL and Parquet, with errors that name file and row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mbsd.catalog.source_files import SourceFile, find_files
from mbsd.catalog.values import NotTextError, as_text, text_array
from mbsd.errors import UserError

SUFFIXES = {".tsv": "tsv", ".txt": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
NAMED = 12  # columns that a message names


@dataclass(frozen=True)
class Place:
    """A row of a file, counted from 1 (of text: its line), and the file's name below its source, for lists."""

    file: str
    row: int
    name: str = ""

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"

    @property
    def short(self) -> str:
        """The same by the file's name, which does not depend on where the source lies."""
        return f"{self.name or Path(self.file).name}, row {self.row}"


@dataclass(frozen=True)
class Row:
    """One record and its place."""

    place: Place
    record: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a field as text (see `values.as_text`), "" where it is missing.

        Raises:
            UserError: it has no text.
        """
        return text_at(self.place, name, self.record.get(name))

    def missing(self, name: str) -> bool:
        """Return whether a field is absent, null, NaN or empty."""
        value = self.record.get(name)
        return value is None or value == "" or value != value


def text_at(place: Place, name: str, value: Any) -> str:
    """Return the value of the field `name` at a place as text, as `Row.text` does."""
    try:
        return as_text(value) or ""
    except NotTextError as error:
        raise UserError(f"{place}: {name!r} is {error}") from None


def format_of(source: Path) -> str:
    """Return tsv, jsonl or parquet, by the ending of the file, or of the files of a folder or pattern.

    Raises:
        UserError: another ending, or no such file.
    """
    return find_files(str(source), SUFFIXES).files[0].format


def open_text(path: str) -> Any:
    """Open a file of lines as bytes, decompressed where its name ends in .gz, .bz2 or .zst.

    Raises:
        UserError: it cannot be opened, or is UTF-16.
    """
    try:
        stream = pa.input_stream(path)
        start = stream.read(2)
        if start in WIDE_BOMS:
            raise UserError(f"{path}: UTF-16; convert the file to UTF-8 (`iconv -f UTF-16 -t UTF-8`)")
        stream.close()
        return pa.input_stream(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def text_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line without its end) of every line that is not empty; the number counts from 1.

    A line ends as any system ends it: with a line feed, a carriage return, or both.

    Raises:
        UserError: at the first line that is not UTF-8, or the file cannot be read to its end.
    """
    for number, raw in raw_lines(path):
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: byte {error.start} is not UTF-8; convert the file") from None
        if line:
            yield number, line


def raw_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number, bytes of the line without its end) of every line; a byte order mark is left out."""
    number, rest = 0, b"\xef\xbb\xbf"
    with open_text(path) as stream:
        try:
            start = stream.read(3)
            rest = start.removeprefix(rest)
            while block := stream.read(1 << 20):
                lines = (rest + block).splitlines(keepends=True)
                # The last line may go on in the next block, and a carriage return there may be followed by a line feed.
                rest = lines.pop()
                for line in lines:
                    number += 1
                    yield number, line.rstrip(b"\r\n")
            for line in rest.splitlines():
                number += 1
                yield number, line
        except OSError as error:
            raise UserError(f"{path}: cannot be read behind line {number} ({error})") from None


class Records:
    """The rows of JSONL or Parquet files: all columns of a record of JSONL, of Parquet only those that are asked for.

    Iterating again begins again.

    Attributes:
        unread: columns of the files that nobody asked for, in their order; complete when all rows were read.
        rows: number of rows read so far.
    """

    def __init__(self, source: Path, columns: Iterable[str], one_of: tuple[str, ...] = ()) -> None:
        """Find the files.

        Args:
            source: a file, folder or pattern.
            columns: the columns that are read.
            one_of: names of which a record of JSONL, or each file of Parquet, has at least one.

        Raises:
            UserError: there are no such files.
        """
        found = find_files(str(source), SUFFIXES)
        self.source, self.files, self.ignored = source, found.files, found.ignored
        self._columns, self._one_of = tuple(columns), one_of
        self.unread: dict[str, None] = {}
        self.rows = 0

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            UserError: at the first line that is not an object or has none of `one_of`, or a file cannot be read.
        """
        self.rows = 0
        for file in self.files:
            wanted = {name: value for name, value in file.partition.items() if name in self._columns}
            for number, record in _jsonl(file) if file.format == "jsonl" else self._parquet(file):
                self.rows += 1
                place = Place(file.path, number, file.name)
                if file.format == "jsonl":
                    self._check(f"{file.path}, line {number}", {**wanted, **record})
                    self.unread.update(dict.fromkeys(name for name in record if name not in self._columns))
                yield Row(place, {**wanted, **record} if wanted else record)

    def notes(self) -> list[str]:
        """Return in words what was not read: columns, and files of a folder."""
        notes = [f"columns not read: {some(self.unread)}"] if self.unread else []
        return notes + ([f"files not read: {some(self.ignored)}"] if self.ignored else [])

    def _parquet(self, file: SourceFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
        names = open_parquet(file.path).schema_arrow.names
        self._check(file.path, [*names, *file.partition])
        self.unread.update(dict.fromkeys(name for name in names if name not in self._columns))
        twice = [name for name in self._columns if names.count(name) > 1]
        if twice:
            raise UserError(f"{file.path}: the column {twice[0]!r} is there twice; keep one of them")
        number = 0
        for batch in parquet_batches(file.path, [name for name in self._columns if name in names], 4096):
            short = [pa.types.is_float16(field.type) or pa.types.is_float32(field.type) for field in batch.schema]
            columns = {
                name: _texts(column, file.path, name, number) if narrow else column.to_pylist()
                for name, column, narrow in zip(batch.schema.names, batch.columns, short, strict=True)
            }
            for values in zip(*columns.values(), strict=True) if columns else [()] * batch.num_rows:
                number += 1
                yield number, dict(zip(columns, values, strict=True))

    def _check(self, where: str, names: Iterable[str]) -> None:
        if self._one_of and not set(self._one_of) & set(names):
            missing = " nor ".join(map(repr, self._one_of))
            raise UserError(f"{where}: neither {missing}; found {some(names) or 'nothing'}; an item has one of them")


def open_parquet(path: str) -> Any:
    """Return the `ParquetFile`.

    Raises:
        UserError: it is empty, or not a Parquet file.
    """
    try:
        if Path(path).stat().st_size == 0:
            raise UserError(f"{path}: not a Parquet file but an empty one; remove it, or write it again")
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def parquet_batches(path: str, columns: list[str], rows: int) -> Iterator[Any]:
    """Yield record batches of some columns of a Parquet file, of `rows` rows each.

    Raises:
        UserError: the file is damaged.
    """
    before = 0
    try:
        for batch in open_parquet(path).iter_batches(batch_size=rows, columns=columns):
            yield batch
            before += batch.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read behind row {before} ({str(error).splitlines()[0]})") from None


def some(names: Iterable[str]) -> str:
    """Return the first names, separated by commas."""
    listed = list(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(map(str, listed[:NAMED])) + more


def _texts(column: Any, path: str, name: str, before: int) -> list[Any]:
    """Return a column of short floats as text: as Python floats they would have digits that nobody wrote."""
    try:
        return list(text_array(column).cast(pa.string()).to_pylist())
    except NotTextError as error:
        raise UserError(f"{Place(path, before + error.index + 1)}: {name!r} is {error}") from None


def _jsonl(file: SourceFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in text_lines(file.path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file.path}, line {number}: not JSON ({error}); expected one object a line") from None
        if not isinstance(record, dict):
            raise UserError(f"{file.path}, line {number}: {type(record).__name__}; expected one JSON object a line")
        yield number, record
