"""Files of records as shops send them: lines of text, JSONL and Parquet, with errors that name file and row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mbsd.errors import UserError

SUFFIXES = {".tsv": "tsv", ".txt": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(source: Path) -> str:
    """Return tsv, jsonl or parquet, by the file's ending.

    Raises:
        UserError: another ending, or no such file.
    """
    if source.suffix.lower() not in SUFFIXES:
        raise UserError(f"{source}: unknown kind of file {source.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the TSV, JSONL or Parquet file that lists the rows")
    return SUFFIXES[source.suffix.lower()]


def text_lines(source: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line without its end) of every line that is not empty; the number counts from 1.

    Raises:
        UserError: at the first line that is not UTF-8.
    """
    with source.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{source}, line {number}: byte {error.start} is not UTF-8; convert the file to UTF-8"
                ) from None
            line = line.removesuffix("\n").removesuffix("\r")
            if line:
                yield number, line


def read_records(
    source: Path, columns: tuple[str, ...], one_of: tuple[str, ...] = ()
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (row, record) of a JSONL or Parquet file, of Parquet only these columns; the row counts from 1.

    Args:
        source: the file.
        columns: what is read of Parquet.
        one_of: names of which a record of JSONL, or the whole of Parquet, has at least one.

    Raises:
        UserError: at the first line that is not an object or has none of `one_of`, or the file is not Parquet.
    """
    if format_of(source) == "jsonl":
        for number, line in text_lines(source):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{source}, line {number}: not JSON ({error}); expected one object a line") from None
            if not isinstance(record, dict):
                raise UserError(f"{source}, line {number}: {type(record).__name__}; expected one JSON object a line")
            _check_names(f"{source}, line {number}", record, one_of)
            yield number, record
        return
    try:
        file = pq.ParquetFile(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: not a Parquet file ({str(error).splitlines()[0]})") from None
    names = file.schema_arrow.names
    _check_names(str(source), names, one_of)
    number = 0
    for batch in file.iter_batches(batch_size=4096, columns=[name for name in columns if name in names]):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def text_of(source: Path, row: int, record: Mapping[str, Any], name: str) -> str:
    """Return a record's field as text: a number as Python prints it, "" where it is missing.

    Raises:
        UserError: a list or object, or text that cannot be encoded.
    """
    return as_text(source, row, name, record.get(name))


def as_text(source: Path, row: int, name: str, value: Any) -> str:
    """Return the value of the field `name` as text, as `text_of` does."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{source}, row {row}: {name!r} is a {type(value).__name__}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{source}, row {row}: {name!r} holds half a surrogate pair, which is no text") from None
    return value


def _check_names(where: str, names: Iterable[str], one_of: tuple[str, ...]) -> None:
    if one_of and not set(one_of) & set(names):
        missing = " nor ".join(map(repr, one_of))
        found = ", ".join(map(str, names)) or "nothing"
        raise UserError(f"{where}: neither {missing}; found {found}; an item has at least one of them")
