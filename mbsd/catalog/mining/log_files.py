"""The files of a behaviour log: found by path, folder, glob or URL; CSV and JSONL become Parquet first."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mbsd.errors import UserError

FORMAT_OF_SUFFIX = {".parquet": "Parquet", ".csv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL"}
COMPRESSED = (".gz", ".bz2", ".zst")
LINES_PER_BATCH = 1 << 16


@dataclass(frozen=True)
class LogFiles:
    """The Parquet files of a log.

    Attributes:
        name: the log as the user gave it, for messages.
        paths: local files, or one URL.
        unreadable: number of lines that are not valid CSV or JSONL.
    """

    name: str
    paths: tuple[str, ...]
    unreadable: int = 0


def find_log(log: Path | str, columns: Mapping[str, str], folder: Path) -> LogFiles:
    """Find the files of a log; what is not Parquet is rewritten as Parquet in `folder`, value by value as bytes.

    Args:
        log: a file, a folder (with all below it), a glob, or a URL that the engine reads.
        columns: our name of a column -> its name in the log.
        folder: an existing folder for the rewritten files.

    Raises:
        UserError: there is no such file, the files are of different formats, or a column is in none of their rows.
    """
    name = str(log)
    if "://" in name:
        if _format(name) not in (None, "Parquet"):
            raise UserError(f"log {name}: a URL is read as Parquet; copy CSV and JSONL files to a disk first")
        return LogFiles(name, (name,))
    files = _files(name)
    formats = sorted({_format(file) or "Parquet" for file in files})
    if len(formats) > 1:
        raise UserError(f"log {name}: files of different formats ({', '.join(formats)}); give a glob of one of them")
    if formats == ["Parquet"]:
        return LogFiles(name, tuple(files))
    read = _read_csv if formats == ["CSV"] else _read_jsonl
    rewritten, unreadable, found = [], 0, set()
    schema = pa.schema([(column, pa.binary()) for column in columns.values()])
    for number, file in enumerate(files):
        rewritten.append(str(folder / f"{number:06d}.parquet"))
        with pq.ParquetWriter(rewritten[-1], schema, compression="zstd") as writer:
            for batch, names, bad in read(file, schema):
                writer.write_batch(batch)
                found |= names
                unreadable += bad
    check_columns(name, columns, sorted(found))
    return LogFiles(name, tuple(rewritten), unreadable)


def check_columns(name: str, columns: Mapping[str, str], found: list[str]) -> None:
    """Raise a UserError that names the first of the wanted columns that is missing from those found."""
    for ours, theirs in columns.items():
        if theirs not in found:
            raise UserError(
                f"log {name}: no column {theirs!r}; found {', '.join(found) or 'none'}; needs "
                f"{', '.join(columns.values())} (another name is given as --column {ours}=NAME)"
            )


def _files(name: str) -> list[str]:
    path = Path(name)
    if path.is_dir():
        # Other tools' half-written files and markers begin with a dot or an underscore.
        files = [
            str(file)
            for file in sorted(path.rglob("*"))
            if file.is_file() and _format(file.name) and not file.name.startswith((".", "_"))
        ]
    elif path.is_file():
        files = [name]
    else:
        files = sorted(file for file in glob.glob(name, recursive=True) if Path(file).is_file())
    if not files:
        raise UserError(f"log {name}: no such file, or a folder or glob without a Parquet, CSV or JSONL file")
    return files


def _format(name: str) -> str | None:
    path = Path(name.lower())
    return FORMAT_OF_SUFFIX.get(Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix)


Batch = tuple[Any, set[str], int]  # record batch of bytes, the column names met, lines that could not be read


def _read_csv(file: str, schema: Any) -> Iterator[Batch]:
    with pa.input_stream(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", "replace") as text:
        header = set(next(csv.reader(text), []))
    bad: list[int] = []

    def skip(row: Any) -> str:
        bad.append(row.number or 0)
        return "skip"

    if not header:
        raise UserError(f"log {file}: an empty file; expected CSV with a header")
    known = [name for name in schema.names if name in header]
    try:
        reader = pa_csv.open_csv(
            pa.input_stream(file),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.binary() for name in known}, include_columns=known
            ),
        )
        for batch in reader:
            yield _complete(batch, schema), header, 0
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"log {file}: cannot be read as CSV ({str(error).splitlines()[0]})") from None
    yield _complete(pa.RecordBatch.from_pylist([], pa.schema([])), schema), header, len(bad)


def _read_jsonl(file: str, schema: Any) -> Iterator[Batch]:
    rows: list[dict[str, bytes | None]] = []
    names: set[str] = set()
    bad = 0
    with pa.input_stream(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                bad += 1
                continue
            names.update(value)
            rows.append({name: _bytes(value.get(name)) for name in schema.names})
            if len(rows) == LINES_PER_BATCH:
                yield pa.RecordBatch.from_pylist(rows, schema), names, 0
                rows = []
    yield pa.RecordBatch.from_pylist(rows, schema), names, bad


def _bytes(value: Any) -> bytes | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    # Bytes that were not UTF-8 are lone surrogates in the text; they are written as bytes that are not UTF-8 either.
    return text.encode("utf-8", "surrogatepass")


def _complete(batch: Any, schema: Any) -> Any:
    columns = [
        batch.column(name) if name in batch.schema.names else pa.nulls(batch.num_rows, pa.binary())
        for name in schema.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
