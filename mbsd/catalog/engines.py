"""The two engines that mine a log with the same SQL text: DuckDB in this process, or Spark on any number of machines.

They agree on a common subset: `SEMI JOIN`, `ANTI JOIN`, window functions, `md5`, `explode(sequence(a, b))` (which
DuckDB is taught here) and the functions of `FUNCTIONS`. `QUALIFY`, `UPDATE`, `DISTINCT ON`, `::` and the order of nulls
are not in it, and case is folded in Python, since each engine folds it in its own way.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import duckdb
import pyarrow as pa
import pyarrow.dataset as pa_dataset

from mbsd.catalog.java import java_home
from mbsd.errors import UserError

EngineName = Literal["duckdb", "spark"]
Column = tuple[str, str]  # name, and one of: text, bytes, time, integer, other

# Dates as ISO 8601 writes them; what else an engine would take for a time the other may not.
ISO = "^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})?)?$"
# name -> (parameters, type of the result, body). Whole numbers are seconds, ms, us or ns since 1970 by their size.
FUNCTIONS = {
    "micros_of_number": (
        "n BIGINT",
        "BIGINT",
        "CASE WHEN abs(n) < 100000000000 THEN n * 1000000 WHEN abs(n) < 100000000000000 THEN n * 1000 "
        "WHEN abs(n) < 100000000000000000 THEN n ELSE CAST(floor(n / 1000) AS BIGINT) END",
    ),
    "micros_of_text": (
        "s STRING",
        "BIGINT",
        f"CASE WHEN regexp_like(s, '{ISO}') THEN unix_micros(try_cast(s AS TIMESTAMP)) "
        "WHEN regexp_like(s, '^[0-9]{1,18}$') THEN micros_of_number(try_cast(s AS BIGINT)) END",
    ),
}


class UndecodableText(Exception):  # noqa: N818
    """Text of a Parquet file is not UTF-8, and the engine would stop there unless it reads the text as bytes."""


class Engine(Protocol):
    """Tables by name, made from SELECT statements of the common subset.

    Attributes:
        version: name and version.
    """

    version: str

    def open_log(self, paths: Sequence[str], *, as_bytes: bool = False) -> list[Column]:
        """Make the view `raw_log` of Parquet files and return its columns; `as_bytes` reads text undecoded."""
        ...

    def text(self, column: Column) -> tuple[str, str]:
        """SQL for a column of `raw_log` as text (null where it is not UTF-8), and for whether it is not UTF-8."""
        ...

    def micros(self, column: Column) -> str:
        """SQL for a column of `raw_log` in microseconds since 1970, UTC; null where it is no time."""
        ...

    def load(self, name: str, table: Any) -> None:
        """Make a table of a pyarrow Table."""
        ...

    def view(self, name: str, select: str) -> None:
        """Make a view."""
        ...

    def stage(self, name: str, select: str) -> None:
        """Make a table of a statement's rows, or replace it."""
        ...

    def changed(self, name: str, select: str, function: Callable[[str], str]) -> int:
        """Make the table `name` (raw, text): of the texts in a statement's one column, those that `function` changes.

        Returns how many texts there are.
        """
        ...

    def batches(self, select: str) -> Iterator[Any]:
        """A statement's rows as pyarrow RecordBatches."""
        ...

    def drop(self, name: str) -> None:
        """Forget a table."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def rows(engine: Engine, select: str) -> list[dict[str, Any]]:
    """A statement's rows, a few."""
    return [row for batch in engine.batches(select) for row in batch.to_pylist()]


def number(engine: Engine, select: str) -> int:
    """The one number that a statement gives."""
    (row,) = rows(engine, select)
    return int(next(iter(row.values())))


def open_engine(
    name: EngineName, *, seed: int, folder: Path, threads: int = 0, memory_limit: str = "", master: str = ""
) -> Engine:
    """Start an engine; `draw(s)` is its portable hash of (seed, s), 60 bits.

    Args:
        name: duckdb or spark.
        seed: of all draws.
        folder: for what does not fit into memory.
        threads: 0 = one per core; for Spark of a `local` master.
        memory_limit: such as 4GB; empty = the engine's default.
        master: of Spark, such as spark://host:7077; empty = this machine.
    """
    if name == "duckdb":
        if master:
            raise UserError(f"master {master!r} is an option of the engine spark; the engine is duckdb")
        return DuckDB(seed, folder, threads, memory_limit)
    if name == "spark":
        return Spark(seed, folder, threads, memory_limit, master)
    raise UserError(f"engine {name!r}; expected duckdb or spark")


class DuckDB:
    """DuckDB, embedded."""

    def __init__(self, seed: int, folder: Path, threads: int, memory_limit: str) -> None:
        self.version = f"duckdb {duckdb.__version__}"
        self._db = duckdb.connect(":memory:")
        self._db.execute("SET preserve_insertion_order = false")
        self._db.execute("SET temp_directory = $folder", {"folder": str(folder)})
        if threads:
            self._db.execute("SET threads = $threads", {"threads": threads})
        if memory_limit:
            try:
                self._db.execute("SET memory_limit = $limit", {"limit": memory_limit})
            except duckdb.Error as error:
                raise UserError(f"memory limit {memory_limit!r}: {_first_line(error)}; expected such as 4GB") from None
        self._db.execute("CREATE MACRO explode(list) AS unnest(list)")
        self._db.execute("CREATE MACRO sequence(first, last) AS range(first, last + 1)")
        self._db.execute("CREATE MACRO regexp_like(s, pattern) AS regexp_matches(s, pattern)")
        self._db.execute("CREATE MACRO xxhash64(a, b) AS hash(a, b)")
        self._db.execute("CREATE MACRO unix_micros(t) AS epoch_us(t)")
        self._db.execute(f"CREATE MACRO draw(s) AS ('0x' || substr(md5('{seed}' || chr(9) || s), 1, 15))::BIGINT")
        for name, (parameters, _, body) in FUNCTIONS.items():
            self._db.execute(f"CREATE MACRO {name}({parameters.split()[0]}) AS {body}")

    def open_log(self, paths: Sequence[str], *, as_bytes: bool = False) -> list[Column]:
        """As in `Engine`."""
        try:
            if as_bytes:
                self._db.register("log_bytes", _dataset_of_bytes(paths))
                log = self._db.sql("SELECT * FROM log_bytes")
            else:
                log = self._db.read_parquet(_with_folders(paths), union_by_name=True, hive_partitioning=False)
            log.create_view("raw_log", replace=True)
        except duckdb.Error as error:
            raise UserError(f"log {paths[0]}: cannot be read as Parquet ({_first_line(error)})") from None
        return [(name, _duckdb_kind(str(kind))) for name, kind in zip(log.columns, log.types, strict=True)]

    def text(self, column: Column) -> tuple[str, str]:
        """As in `Engine`."""
        name = _quoted(column[0], '"')
        if column[1] == "bytes":
            return f"TRY(decode({name}))", f"({name} IS NOT NULL AND TRY(decode({name})) IS NULL)"
        return f"CAST({name} AS VARCHAR)", "false"

    def micros(self, column: Column) -> str:
        """As in `Engine`."""
        return _micros(column, self.text(column)[0], _quoted(column[0], '"'))

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
        """As in `Engine`; the texts pass through in batches, so that only the changed are held."""
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


class Spark:
    """Spark: this machine's cores, or the cluster of a master."""

    def __init__(self, seed: int, folder: Path, threads: int, memory_limit: str, master: str) -> None:
        try:
            import pyspark
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise UserError(f"engine spark: {error}; install it with `pip install 'mbsd[spark]'`") from None
        self.version = f"spark {pyspark.__version__}"
        self._files = tempfile.TemporaryDirectory(prefix="mbsd-java-")
        home = java_home(Path(self._files.name))
        local = not master or master.startswith("local")
        cores = threads or len(os.sched_getaffinity(0))
        builder = SparkSession.builder.appName("mbsd pairs mine").master(master or f"local[{cores}]")
        settings = {
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.legacy.parquet.nanosAsLong": "true",
            "spark.local.dir": str(folder),
            "spark.driver.maxResultSize": "0",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }
        if local:
            # 200 partitions, the default, are for clusters; a name server is not needed to find oneself.
            settings |= {"spark.sql.shuffle.partitions": str(2 * cores)}
            settings |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        if memory_limit:
            settings["spark.driver.memory" if local else "spark.executor.memory"] = memory_limit.upper().removesuffix(
                "B"
            )
        for name, value in settings.items():
            builder = builder.config(name, value)
        environment = {"PYSPARK_PYTHON": sys.executable} if local else {}
        environment |= {"JAVA_HOME": str(home)} if home is not None else {}
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            self._spark = builder.getOrCreate()
        except pyspark.errors.PySparkRuntimeError as error:
            raise UserError(
                f"engine spark: {_first_line(error)}; Java 17 or newer and a known master are needed"
            ) from None
        finally:
            for name, old in before.items():
                os.environ.pop(name) if old is None else os.environ.update({name: old})
        self._spark.sparkContext.setLogLevel("ERROR")
        draw = f"CAST(conv(substr(md5(concat('{seed}', chr(9), s)), 1, 15), 16, 10) AS BIGINT)"
        for name, (parameters, kind, body) in {"draw": ("s STRING", "BIGINT", draw), **FUNCTIONS}.items():
            self._spark.sql(f"CREATE TEMPORARY FUNCTION {name}({parameters}) RETURNS {kind} RETURN {body}")

    def open_log(self, paths: Sequence[str], *, as_bytes: bool = False) -> list[Column]:
        """As in `Engine`; Spark stops at no byte, so that `as_bytes` changes nothing."""
        from pyspark.errors import PySparkException

        try:
            reader = self._spark.read.option("mergeSchema", "true").option("recursiveFileLookup", "true")
            log = reader.parquet(*paths)
        except PySparkException as error:
            raise UserError(f"log {paths[0]}: cannot be read as Parquet ({_first_line(error)})") from None
        log.createOrReplaceTempView("raw_log")
        return [(name, _spark_kind(kind)) for name, kind in log.dtypes]

    def text(self, column: Column) -> tuple[str, str]:
        """As in `Engine`."""
        name = f"CAST({_quoted(column[0], '`')} AS STRING)"
        if column[1] in ("bytes", "text"):
            return f"try_validate_utf8({name})", f"coalesce(NOT is_valid_utf8({name}), false)"
        return name, "false"

    def micros(self, column: Column) -> str:
        """As in `Engine`."""
        return _micros(column, self.text(column)[0], _quoted(column[0], "`"))

    def load(self, name: str, table: Any) -> None:
        """As in `Engine`."""
        self._keep(name, self._spark.createDataFrame(table))

    def view(self, name: str, select: str) -> None:
        """As in `Engine`."""
        self._spark.sql(select).createOrReplaceTempView(name)

    def stage(self, name: str, select: str) -> None:
        """As in `Engine`; the rows stay in the executors' memory and on their disks."""
        self._keep(name, self._spark.sql(select))

    def changed(self, name: str, select: str, function: Callable[[str], str]) -> int:
        """As in `Engine`; the function travels to the workers by value, which then need no installation of mbsd."""
        from pyspark import cloudpickle

        module = sys.modules[function.__module__]
        cloudpickle.register_pickle_by_value(module)
        try:
            self._spark.udf.register("respelled", function, "string")
            every = self._keep(
                f"all_{name}", self._spark.sql(f"SELECT raw, respelled(raw) AS text FROM ({select}) AS given(raw)")
            )
            self.view(name, f"SELECT raw, text FROM all_{name} WHERE text <> raw")
            return int(every.count())
        finally:
            cloudpickle.unregister_pickle_by_value(module)

    def batches(self, select: str) -> Iterator[Any]:
        """As in `Engine`; they all come to the driver at once."""
        yield from self._spark.sql(select).toArrow().to_batches()

    def drop(self, name: str) -> None:
        """As in `Engine`; Spark frees what nothing names."""
        self._spark.catalog.dropTempView(name)

    def close(self) -> None:
        """As in `Engine`."""
        self._spark.stop()
        self._files.cleanup()

    def _keep(self, name: str, frame: Any) -> Any:
        # A checkpoint forgets how its rows were made. Cached frames would carry the plans of all stages before them,
        # which double from round to round.
        kept = frame.localCheckpoint()
        kept.createOrReplaceTempView(name)
        return kept


class _duckdb_errors:  # noqa: N801
    """Tells DuckDB's errors that a user can mend from the rest."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, duckdb.OutOfMemoryException):
            raise UserError(
                f"engine duckdb: {_first_line(error)}; give more with --memory-limit, or a larger disk with --spill"
            ) from None
        if isinstance(error, duckdb.Error) and "Invalid string encoding" in str(error):
            raise UndecodableText(str(error)) from None


def _micros(column: Column, text: str, name: str) -> str:
    kind = column[1]
    if kind == "time":
        return f"unix_micros(CAST({name} AS TIMESTAMP))"
    if kind == "integer":
        return f"micros_of_number(CAST({name} AS BIGINT))"
    return f"micros_of_text({text})"


def _duckdb_kind(kind: str) -> str:
    if kind == "BLOB":
        return "bytes"
    if kind == "VARCHAR":
        return "text"
    if kind.startswith(("TIMESTAMP", "DATE")):
        return "time"
    return "integer" if kind.endswith(("INT", "INTEGER")) else "other"


def _spark_kind(kind: str) -> str:
    known = {"binary": "bytes", "string": "text", "date": "time", "timestamp": "time", "timestamp_ntz": "time"}
    known |= dict.fromkeys(("tinyint", "smallint", "int", "bigint"), "integer")
    return known.get(kind, "other")


def _dataset_of_bytes(paths: Sequence[str]) -> Any:
    """Parquet files as an Arrow dataset with bytes for text."""
    schema = pa_dataset.dataset(list(paths), format="parquet").schema
    text = (pa.string(), pa.large_string(), pa.string_view())
    fields = [pa.field(field.name, pa.binary() if field.type in text else field.type) for field in schema]
    return pa_dataset.dataset(list(paths), format="parquet", schema=pa.schema(fields))


def _with_folders(paths: Sequence[str]) -> list[str]:
    """The paths, a URL of a folder as the glob of the Parquet files below it."""
    is_folder = [("://" in path and "*" not in path and not path.endswith(".parquet")) for path in paths]
    return [
        f"{path.rstrip('/')}/**/*.parquet" if folder else path for path, folder in zip(paths, is_folder, strict=True)
    ]


def _quoted(name: str, mark: str) -> str:
    return mark + name.replace(mark, 2 * mark) + mark


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
