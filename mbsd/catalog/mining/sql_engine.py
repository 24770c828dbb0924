"""The two engines that mine a log with one SQL text: DuckDB in this process, or Spark on any number of machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from mbsd.catalog.mining.dialect import Column
from mbsd.catalog.mining.log_files import LogPart
from mbsd.catalog.mining.settings import MiningSettings
from mbsd.errors import UserError


class Engine(Protocol):
    """Tables by name, made from SELECT statements of the common subset (see `dialect`).

    In them `draw(s)` is a portable hash of (seed, s), 60 bits.

    Attributes:
        version: name and version.
    """

    version: str

    def list_url(self, url: str) -> tuple[list[str], list[Column]]:
        """Return the Parquet files at a URL, which may be a folder's or a pattern, and their columns.

        Raises:
            UserError: they cannot be read.
        """
        ...

    def open_part(self, part: LogPart, number: int) -> None:
        """Make the view `raw_NUMBER` of a part's columns, and `placed_NUMBER`, which has each row's place as well.

        Paths are names, whatever characters they hold.

        Raises:
            UserError: a file cannot be read.
        """
        ...

    def text(self, column: Column) -> tuple[str, str]:
        """Return SQL for a column of a part as text, null where it is not UTF-8, and for whether it is not UTF-8."""
        ...

    def micros(self, column: Column) -> str:
        """Return SQL for a column of a part in microseconds since 1970, UTC; null where it is no time."""
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

        Returns the number of all texts.
        """
        ...

    def batches(self, select: str) -> Iterator[Any]:
        """Yield a statement's rows as pyarrow RecordBatches."""
        ...

    def drop(self, name: str) -> None:
        """Drop a table."""
        ...

    def close(self) -> None:
        """Release the engine's memory, files and processes."""
        ...


def open_engine(settings: MiningSettings, folder: Path) -> Engine:
    """Start the engine that the settings name; what does not fit into memory goes to `folder`.

    Raises:
        UserError: another name, an option of the other engine, or the engine cannot start.
    """
    if settings.engine == "duckdb":
        if settings.master:
            raise UserError(f"master {settings.master!r} is an option of the engine spark; the engine is duckdb")
        from mbsd.catalog.mining.duckdb import DuckDB

        return DuckDB(settings, folder)
    if settings.engine == "spark":
        from mbsd.catalog.mining.spark import Spark

        return Spark(settings, folder)
    raise UserError(f"engine {settings.engine!r}; expected duckdb or spark")


def rows(engine: Engine, select: str) -> list[dict[str, Any]]:
    """Return a statement's rows, of which there must be few."""
    return [row for batch in engine.batches(select) for row in batch.to_pylist()]


def number(engine: Engine, select: str) -> int:
    """Return the one number that a statement gives."""
    (row,) = rows(engine, select)
    return int(next(iter(row.values())))
