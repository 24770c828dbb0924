"""What mining asks of an engine, and what the two of them have in common.

DuckDB and Spark agree on a common subset: `SEMI JOIN`, `ANTI JOIN`, window functions, `md5`, `explode(sequence(a, b))`
(which DuckDB is taught) and the functions of `FUNCTIONS`. `QUALIFY`, `UPDATE`, `DISTINCT ON`, `::` and the order of
nulls are not in it, and case is folded in Python, since each engine folds it in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

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


def micros_of(column: Column, text: str, name: str) -> str:
    """SQL for a column's time, given the SQL of its text and its quoted name."""
    kind = column[1]
    if kind == "time":
        return f"unix_micros(CAST({name} AS TIMESTAMP))"
    if kind == "integer":
        return f"micros_of_number(CAST({name} AS BIGINT))"
    return f"micros_of_text({text})"


def quoted(name: str, mark: str) -> str:
    """A column's name as SQL, in an engine's marks."""
    return mark + name.replace(mark, 2 * mark) + mark


def first_line(error: BaseException) -> str:
    """What an error says, without the trace that engines add to it."""
    return str(error).splitlines()[0]
