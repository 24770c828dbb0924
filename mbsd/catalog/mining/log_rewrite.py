"""Files of a log that no engine reads as we do -> Parquet of text as bytes, with the place of each row.

CSV and JSONL are rewritten, and Parquet with a column whose text or time the engines would write in different ways: a
float, a decimal, text that is not UTF-8. The conversion is `values`', as for items and labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbsd.catalog.mining.dialect import Column
from mbsd.catalog.mining.log_csv import UNREADABLE, CsvLog
from mbsd.catalog.record_files import open_parquet, parquet_batches, raw_lines
from mbsd.catalog.values import InexactError, NotTextError, as_bytes, text_array, time_bytes
from mbsd.errors import UserError

PLACE = "mbsd_place"
ROWS_PER_BATCH = 1 << 16
ROWS_PER_GROUP = 1 << 19
ROW_BITS = 40  # of a place; the higher bits are the file's number
NO_TEXT = "value that is neither text nor a number"


@dataclass
class Rewritten:
    """What a file became.

    Attributes:
        rows: rows that were written.
        columns: our names of the columns of the new file, and what is in them.
        names: names of the columns that the old file has.
        bad: reason -> (rows left out, line of the first).
        spans: number of rows that have several lines, number of these lines, and the first such row's line.
    """

    rows: int
    columns: dict[str, Column]
    names: list[str] = field(default_factory=list)
    bad: dict[str, tuple[int, int]] = field(default_factory=dict)
    spans: tuple[int, int, int] = (0, 0, 0)


@dataclass
class _Batch:
    columns: dict[str, Any]  # our name -> binary array; a column that is not there is null
    rows: Any  # int64, from 1
    bad: list[tuple[str, int]]
    names: list[str]
    spans: list[tuple[int, int]] = field(default_factory=list)


def rewrite(
    file: str, kind: str, columns: Mapping[str, str], out: str, number: int, max_record_lines: int = 1
) -> Rewritten:
    """Write a file's rows to `out`, with our names of the columns and their place.

    Args:
        file: the file.
        kind: CSV, JSONL or Parquet.
        columns: our name -> the file's, of what is read.
        out: the Parquet file.
        number: of the file in the log.
        max_record_lines: the most lines of a row of CSV.

    Raises:
        UserError: the file cannot be read, or holds a float that has lost digits, or a column without text.
    """
    if kind == "CSV":
        batches = _read_csv(file, columns, max_record_lines)
    else:
        batches = (_read_jsonl if kind == "JSONL" else _read_parquet)(file, columns)
    timed = kind == "Parquet" and _is_timestamp(open_parquet(file).schema_arrow, columns.get("time", ""))
    types = {name: pa.timestamp("us") if name == "time" and timed else pa.binary() for name in columns}
    schema = pa.schema([*types.items(), (PLACE, pa.int64())])
    done = Rewritten(0, {name: (name, "time" if name == "time" and timed else "bytes") for name in columns})
    names: dict[str, None] = {}
    held: list[Any] = []
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in batches:
            places = pa.array((np.int64(number) << ROW_BITS) | batch.rows, pa.int64())
            arrays = [batch.columns.get(name, pa.nulls(len(places), types[name])) for name in columns]
            held.append(pa.RecordBatch.from_arrays([*arrays, places], schema=schema))
            done.rows += len(places)
            names.update(dict.fromkeys(batch.names))
            for line, count in batch.spans:
                done.spans = (done.spans[0] + 1, done.spans[1] + count, done.spans[2] or line)
            for reason, line in batch.bad:
                count, first = done.bad.get(reason, (0, line))
                done.bad[reason] = (count + 1, first)
            if sum(part.num_rows for part in held) >= ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_batches(held, schema))
                held = []
        writer.write_table(pa.Table.from_batches(held, schema))
    done.names = list(names)
    return done


def _read_csv(file: str, columns: Mapping[str, str], max_record_lines: int) -> Iterator[_Batch]:
    log = CsvLog(file, max_record_lines)
    wanted = [name for name in columns if columns[name] in log.header]
    twice = next((columns[name] for name in wanted if log.header.count(columns[name]) > 1), None)
    if twice is not None:
        raise UserError(f"log {file}: the column {twice!r} is in the header twice; keep one of them")
    for batch in log.batches([columns[name] for name in wanted]):
        yield _Batch(dict(zip(wanted, batch.columns, strict=True)), batch.lines, batch.bad, log.header, batch.spans)
    yield _Batch({}, np.zeros(0, np.int64), [], log.header)


def _read_jsonl(file: str, columns: Mapping[str, str]) -> Iterator[_Batch]:
    rows: list[list[bytes | None]] = []
    lines: list[int] = []
    bad: list[tuple[str, int]] = []
    names: dict[str, None] = {}

    def batch() -> _Batch:
        arrays = [pa.array(column, pa.binary()) for column in zip(*rows, strict=True)]
        return _Batch(dict(zip(columns, arrays, strict=False)), np.array(lines, np.int64), bad, list(names))

    for line, raw in raw_lines(file):
        if not raw.strip():
            continue
        try:
            # Bytes that are not UTF-8 become lone surrogates, and bytes that are not UTF-8 again when they are written.
            value = json.loads(raw.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            bad.append((UNREADABLE, line))
            continue
        names.update(dict.fromkeys(value))
        try:
            row = [(time_bytes if ours == "time" else as_bytes)(value.get(name)) for ours, name in columns.items()]
        except InexactError as error:
            raise UserError(f"log {file}, line {line}: {_where(value, columns, error)}{error}") from None
        except NotTextError:
            bad.append((NO_TEXT, line))
            continue
        rows.append(row)
        lines.append(line)
        if len(rows) == ROWS_PER_BATCH:
            yield batch()
            rows, lines, bad = [], [], []
    yield batch()


def _where(value: Mapping[str, Any], columns: Mapping[str, str], error: NotTextError) -> str:
    """Return the name of the column that is at fault, for a message."""
    for name in columns.values():
        try:
            as_bytes(value.get(name))
        except NotTextError as found:
            if str(found) == str(error):
                return f"{name!r} is "
    return ""


def _read_parquet(file: str, columns: Mapping[str, str]) -> Iterator[_Batch]:
    names = open_parquet(file).schema_arrow.names
    wanted = {ours: theirs for ours, theirs in columns.items() if theirs in names}
    before = 0
    for batch in parquet_batches(file, list(wanted.values()), ROWS_PER_BATCH):
        arrays = {}
        for ours, theirs in wanted.items():
            try:
                column = batch.column(theirs)
                is_time = ours == "time" and _is_timestamp(batch.schema, theirs)
                arrays[ours] = _micros(column) if is_time else text_array(column, time=ours == "time")
            except NotTextError as error:
                row = before + error.index + 1
                raise UserError(f"log {file}, row {row}: {theirs!r} is {error}") from None
        yield _Batch(arrays, np.arange(before + 1, before + 1 + batch.num_rows), [], names)
        before += batch.num_rows
    yield _Batch({}, np.zeros(0, np.int64), [], names)


def _is_timestamp(schema: Any, name: str) -> bool:
    kind = schema.field(name).type if name in schema.names else pa.null()
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _micros(column: Any) -> Any:
    """Return timestamps or dates as timestamps of microseconds, UTC; nanoseconds are rounded down."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp(column.type.unit))  # an instant keeps its number
        column = pc.floor_temporal(column, unit="microsecond") if column.type.unit == "ns" else column
    return column.cast(pa.timestamp("us"))
