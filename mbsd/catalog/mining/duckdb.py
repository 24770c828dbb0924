"""DuckDB, embedded: the engine of one machine (see `sql_engine`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from mbsd.catalog.mining.dialect import FUNCTIONS, ZONE, Column, UndecodableText, first_line, micros_of, quoted
from mbsd.catalog.mining.log_files import LogPart
from mbsd.catalog.mining.log_rewrite import PLACE, ROW_BITS
from mbsd.catalog.mining.settings import MiningSettings
from mbsd.errors import UserError

FILE_ERRORS = ("read file", "Cannot open file", "No files found")


class DuckDB:
    """An in-memory database, which spills to `folder`."""

    def __init__(self, settings: MiningSettings, folder: Path) -> None:
        self.version = f"duckdb {duckdb.__version__}"
        self._db = duckdb.connect(":memory:")
        self._db.execute("SET preserve_insertion_order = false")
        self._db.execute("SET temp_directory = $folder", {"folder": str(folder)})
        if settings.threads:
            self._db.execute("SET threads = $threads", {"threads": settings.threads})
        if settings.memory_limit:
            self._db.execute("SET memory_limit = $limit", {"limit": settings.memory_limit})
        self._db.execute("CREATE MACRO explode(list) AS unnest(list)")
        self._db.execute("CREATE MACRO sequence(first, last) AS range(first, last + 1)")
        self._db.execute("CREATE MACRO full_match(s, pattern) AS regexp_full_match(s, pattern)")
        self._db.execute("CREATE MACRO thousandth(n) AS (n - ((n % 1000) + 1000) % 1000) // 1000")
        self._db.execute("CREATE MACRO nanos_of(t) AS epoch_ns(t)")
        # A TIMESTAMP takes no notice of a zone in its text, and a TIMESTAMPTZ without one is of the machine's zone.
        self._db.execute(
            f"CREATE MACRO micros_of_iso(s) AS CASE WHEN regexp_extract(s, '{ZONE}$', 1) <> '' "
            "THEN epoch_us(TRY_CAST(s AS TIMESTAMPTZ)) ELSE epoch_us(TRY_CAST(s AS TIMESTAMP)) END"
        )
        self._db.execute("CREATE MACRO xxhash64(a, b) AS hash(a, b)")
        self._db.execute("CREATE MACRO unix_micros(t) AS epoch_us(t)")
        draw = f"('0x' || substr(md5('{settings.seed}' || chr(9) || s), 1, 15))::BIGINT"
        self._db.execute(f"CREATE MACRO draw(s) AS {draw}")
        for name, (parameters, _, body) in FUNCTIONS.items():
            self._db.execute(f"CREATE MACRO {name}({parameters.split()[0]}) AS {body}")

    def list_url(self, url: str) -> tuple[list[str], list[Column]]:
        """As in `Engine`."""
        one = url.endswith(".parquet") and "*" not in url
        pattern = url if "*" in url else f"{url.rstrip('/')}/**/*.parquet"
        listed = "SELECT file FROM glob(?) ORDER BY file"
        try:
            files = [url] if one else [file for (file,) in self._db.execute(listed, [pattern]).fetchall()]
            if not files:
                raise UserError(f"log {url}: no Parquet file there")
            of_files = ", ".join(map(_path, files))
            log = self._db.sql(
                f"SELECT * FROM read_parquet([{of_files}], union_by_name = true, hive_partitioning = false)"
            )
        except duckdb.Error as error:
            raise UserError(f"log {url}: cannot be read as Parquet ({first_line(error)})") from None
        return files, [(name, _kind(str(kind))) for name, kind in zip(log.columns, log.types, strict=True)]

    def open_part(self, part: LogPart, number: int) -> None:
        """As in `Engine`."""
        names = {quoted(name, '"') for name, kind in part.columns.values() if kind not in ("constant", "null")}
        row = f"(({part.first} + file_index) << {ROW_BITS}) | (file_row_number + 1)"
        place = PLACE if part.placed else f"CAST({row} AS BIGINT) AS {PLACE}"
        files = ", ".join(map(_path, part.paths))
        try:
            self._db.execute(
                f"CREATE OR REPLACE VIEW placed_{number} AS SELECT {', '.join([*sorted(names), place])} "
                f"FROM read_parquet([{files}], hive_partitioning = false)"
            )
        except duckdb.Error as error:
            raise UserError(f"log {part.paths[0]}: cannot be read as Parquet ({first_line(error)})") from None
        self.view(f"raw_{number}", f"SELECT * FROM placed_{number}")

    def text(self, column: Column) -> tuple[str, str]:
        """As in `Engine`."""
        name = quoted(column[0], '"')
        if column[1] == "null":
            return "CAST(NULL AS VARCHAR)", "false"
        if column[1] == "constant":
            return quoted(column[0], "'"), "false"
        if column[1] == "bytes":
            return f"TRY(decode({name}))", f"({name} IS NOT NULL AND TRY(decode({name})) IS NULL)"
        return f"CAST({name} AS VARCHAR)", "false"

    def micros(self, column: Column) -> str:
        """As in `Engine`."""
        return micros_of(column, self.text(column)[0], quoted(column[0], '"'))

    def load(self, name: str, table: Any) -> None:
        """As in `Engine`."""
        self._db.register("incoming", table)
        self._run(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM incoming")
        self._db.unregister("incoming")

    def view(self, name: str, select: str) -> None:
        """As in `Engine`."""
        self._run(f"CREATE OR REPLACE VIEW {name} AS {select}")

    def stage(self, name: str, select: str) -> None:
        """As in `Engine`."""
        self._run(f"CREATE OR REPLACE TABLE {name} AS {select}")

    def changed(self, name: str, select: str, function: Callable[[str], str]) -> int:
        """As in `Engine`; the texts are read in batches, and only the changed ones are held."""
        schema = pa.schema([("raw", pa.string()), ("text", pa.string())])
        kept, count = [pa.RecordBatch.from_pylist([], schema)], 0
        for batch in self.batches(select):
            raw = batch.column(0).to_pylist()
            count += len(raw)
            pairs = [(a, b) for a, b in zip(raw, map(function, raw), strict=True) if a != b]
            if pairs:
                kept.append(
                    pa.RecordBatch.from_arrays([pa.array(side) for side in zip(*pairs, strict=True)], schema=schema)
                )
        self.load(name, pa.Table.from_batches(kept))
        return count

    def batches(self, select: str) -> Iterator[Any]:
        """As in `Engine`."""
        with _duckdb_errors():
            yield from self._db.sql(select).to_arrow_reader(1 << 16)

    def drop(self, name: str) -> None:
        """As in `Engine`."""
        self._run(f"DROP TABLE {name}")

    def close(self) -> None:
        """As in `Engine`."""
        self._db.close()

    def _run(self, statement: str) -> None:
        with _duckdb_errors():
            self._db.execute(statement)


class _duckdb_errors:  # noqa: N801
    """Turns DuckDB's errors that a user can mend, and undecodable text, into ours."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, duckdb.OutOfMemoryException):
            raise UserError(
                f"engine duckdb: {first_line(error)}; give more with --memory-limit, or a larger disk with --spill"
            ) from None
        if not isinstance(error, duckdb.Error | OSError):  # the latter while rows are taken through Arrow
            return
        if "Invalid string encoding" in str(error):
            raise UndecodableText(str(error)) from None
        if any(words in str(error) for words in FILE_ERRORS):
            raise UserError(f"log: {first_line(error)}; the file is damaged or gone, write it again") from None


def _kind(kind: str) -> str:
    if kind == "BLOB":
        return "bytes"
    if kind == "VARCHAR":
        return "text"
    if kind in ("TIMESTAMP_NS", "TIMESTAMPTZ_NS"):
        return "nanos"
    if kind.startswith(("TIMESTAMP", "DATE")):
        return "time"
    return "integer" if kind.endswith(("INT", "INTEGER")) and kind not in ("UBIGINT", "HUGEINT", "UHUGEINT") else ""


def _path(path: str) -> str:
    """Return a file's path as SQL, with those characters in brackets that would make it a pattern."""
    return quoted("".join(f"[{character}]" if character in "*?[" else character for character in path), "'")
