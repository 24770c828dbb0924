"""Spark: the engine of a cluster, or of one machine's cores (see `sql_engine`)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mbsd.catalog.mining.dialect import FUNCTIONS, Column, first_line, micros_of, quoted
from mbsd.catalog.mining.java import java_home
from mbsd.catalog.mining.log_files import LogPart
from mbsd.catalog.mining.log_rewrite import PLACE, ROW_BITS
from mbsd.catalog.mining.settings import MiningSettings
from mbsd.errors import UserError


class Spark:
    """A Spark session on this machine's cores, or on the cluster of a master; a local one spills to `folder`.

    A session that runs already is used as it is, and goes on when this is closed.
    """

    def __init__(self, settings: MiningSettings, folder: Path) -> None:
        try:
            import pyspark
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise UserError(f"engine spark: {error}; install it with `pip install 'mbsd[spark]'`") from None
        self.version = f"spark {pyspark.__version__}"
        self._files = tempfile.TemporaryDirectory(prefix="mbsd-java-")
        home = java_home(Path(self._files.name))
        local = not settings.master or settings.master.startswith("local")
        cores = settings.threads or len(os.sched_getaffinity(0))
        builder = SparkSession.builder.appName("mbsd pairs mine").master(settings.master or f"local[{cores}]")
        spark_settings = {
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.legacy.parquet.nanosAsLong": "true",
            "spark.local.dir": str(folder),
            "spark.driver.maxResultSize": "0",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }
        if local:
            # 200 partitions, the default, are for clusters; and one machine needs no name server.
            spark_settings |= {"spark.sql.shuffle.partitions": str(2 * cores)}
            spark_settings |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        if settings.memory_limit:
            name = "spark.driver.memory" if local else "spark.executor.memory"
            spark_settings[name] = settings.memory_limit.removesuffix("B")
        for name, value in spark_settings.items():
            builder = builder.config(name, value)
        environment = {"PYSPARK_PYTHON": sys.executable} if local else {}
        environment |= {"JAVA_HOME": str(home)} if home is not None else {}
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            self._ours = SparkSession.getActiveSession() is None
            self._spark = builder.getOrCreate()
        except pyspark.errors.PySparkRuntimeError as error:
            raise UserError(
                f"engine spark: {first_line(error)}; Java 17 or newer and a known master are needed"
            ) from None
        finally:
            for name, old in before.items():
                os.environ.pop(name) if old is None else os.environ.update({name: old})
        self._spark.sparkContext.setLogLevel("ERROR")
        draw = f"CAST(conv(substr(md5(concat('{settings.seed}', chr(9), s)), 1, 15), 16, 10) AS BIGINT)"
        own = {
            "draw": ("s STRING", "BIGINT", draw),
            "full_match": ("s STRING, p STRING", "BOOLEAN", r"regexp_like(s, concat('^(', p, ')\\z'))"),
            "thousandth": ("n BIGINT", "BIGINT", "(n - pmod(n, 1000)) div 1000"),
            "nanos_of": ("n BIGINT", "BIGINT", "n"),
            "micros_of_iso": ("s STRING", "BIGINT", "unix_micros(try_cast(s AS TIMESTAMP))"),
        }
        for name, (parameters, kind, body) in {**own, **FUNCTIONS}.items():
            self._spark.sql(f"CREATE OR REPLACE TEMPORARY FUNCTION {name}({parameters}) RETURNS {kind} RETURN {body}")

    def list_url(self, url: str) -> tuple[list[str], list[Column]]:
        """As in `Engine`."""
        from pyspark.errors import PySparkException

        try:
            reader = self._spark.read.option("mergeSchema", "true").option("recursiveFileLookup", "true")
            log = reader.parquet(url)
        except PySparkException as error:
            raise UserError(f"log {url}: cannot be read as Parquet ({first_line(error)})") from None
        # The engine takes a name for a URL that is not quoted.
        return sorted(map(unquote, log.inputFiles())), [(name, _kind(kind)) for name, kind in log.dtypes]

    def open_part(self, part: LogPart, number: int) -> None:
        """As in `Engine`."""
        from pyspark.errors import PySparkException

        paths = [path if "://" in path else f"file://{os.path.abspath(path)}" for path in part.paths]
        try:
            # Without a pattern, and without `column=value` folders, which are read for both engines alike.
            reader = self._spark.read.option("__globPaths__", "false").option("recursiveFileLookup", "true")
            log = reader.parquet(*paths)
            names = sorted({name for name, kind in part.columns.values() if kind not in ("constant", "null")})
            columns = [quoted(name, "`") for name in names]
            placed = log.selectExpr(*columns, PLACE) if part.placed else self._placed(log, columns, paths, part.first)
        except PySparkException as error:
            raise UserError(f"log {part.paths[0]}: cannot be read as Parquet ({first_line(error)})") from None
        placed.createOrReplaceTempView(f"placed_{number}")
        log.selectExpr(*columns, "true AS there").createOrReplaceTempView(f"raw_{number}")

    def _placed(self, log: Any, columns: list[str], paths: list[str], first: int) -> Any:
        """Return some columns of a frame, and the place of each row."""
        if len(paths) == 1:
            row = f"shiftleft(CAST({first} AS BIGINT), {ROW_BITS}) | (_metadata.row_index + 1)"
            return log.selectExpr(*columns, f"{row} AS {PLACE}")
        # `_metadata` has a file's name in another spelling than we have, and than `inputFiles` has.
        files = {unquote(name): name.replace(":///", ":/", 1) for name in log.inputFiles()}
        other = next((path for path in paths if path not in files), None)
        if other is not None:
            raise UserError(f"log {other}: Spark lists this file under another name; rename it, or use --engine duckdb")
        numbers = self._spark.createDataFrame(
            [(files[path], number) for number, path in enumerate(paths, start=first)], "file STRING, number BIGINT"
        )
        rows = log.selectExpr(*columns, "_metadata.file_path AS file", "_metadata.row_index AS row")
        place = f"(shiftleft(number, {ROW_BITS}) | (row + 1)) AS {PLACE}"
        return rows.join(numbers.hint("broadcast"), "file").selectExpr(*columns, place)

    def text(self, column: Column) -> tuple[str, str]:
        """As in `Engine`."""
        if column[1] == "null":
            return "CAST(NULL AS STRING)", "false"
        if column[1] == "constant":
            escaped = column[0].replace("\\", "\\\\").replace("'", "\\'")
            return f"'{escaped}'", "false"
        name = f"CAST({quoted(column[0], '`')} AS STRING)"
        if column[1] in ("bytes", "text"):
            return f"try_validate_utf8({name})", f"coalesce(NOT is_valid_utf8({name}), false)"
        return name, "false"

    def micros(self, column: Column) -> str:
        """As in `Engine`."""
        name = quoted(column[0], "`")
        # Spark reads nanoseconds as whole numbers (see `nanosAsLong`).
        return micros_of(column, self.text(column)[0], f"CAST({name} AS TIMESTAMP)" if column[1] == "time" else name)

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
        """As in `Engine`; the function is sent to the workers by value, so that they need no mbsd installed."""
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
        """As in `Engine`; all rows are in the driver's memory at once."""
        with _spark_errors():
            yield from self._spark.sql(select).toArrow().to_batches()

    def drop(self, name: str) -> None:
        """As in `Engine`; Spark frees what no name refers to."""
        self._spark.catalog.dropTempView(name)

    def close(self) -> None:
        """As in `Engine`."""
        if self._ours:
            self._spark.stop()
        self._files.cleanup()

    def _keep(self, name: str, frame: Any) -> Any:
        # A checkpoint drops the plan that made its rows. Cached frames would keep the plans of all stages before them,
        # which double from round to round.
        with _spark_errors():
            kept = frame.localCheckpoint()
        kept.createOrReplaceTempView(name)
        return kept


@contextmanager
def _spark_errors() -> Iterator[None]:
    """Turns Spark's errors about a file into ours: of Spark or of Py4J, with the reason far down in their text."""
    try:
        yield
    except Exception as error:
        about = next((line for line in str(error).splitlines() if "FAILED_READ_FILE" in line), None)
        if about is None:
            raise
        reason = about[about.index("[") :].strip()
        raise UserError(f"log: {reason}; the file is damaged or gone, write it again") from None


def _kind(kind: str) -> str:
    known = {"binary": "bytes", "string": "text", "date": "time", "timestamp": "time", "timestamp_ntz": "time"}
    known |= dict.fromkeys(("tinyint", "smallint", "int", "bigint"), "integer")
    return known.get(kind, "")
