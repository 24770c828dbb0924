"""The SQL that DuckDB and Spark have in common, and the few functions that both are given.

The common subset: `SEMI JOIN`, `ANTI JOIN`, window functions, `md5`, `explode(sequence(a, b))` (which DuckDB gets as
macros) and the functions of `FUNCTIONS`. `QUALIFY`, `UPDATE`, `DISTINCT ON`, `::` and the order of nulls are not in it,
and case is folded in Python, since each engine folds it in its own way.
"""

from __future__ import annotations

Column = tuple[str, str]  # name, and one of: text, bytes, time, integer, other

# Dates in ISO 8601 alone: the engines disagree on what else is a time.
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


def micros_of(column: Column, text: str, name: str) -> str:
    """Return SQL for a column's time in microseconds since 1970, given the SQL of its text and its quoted name."""
    kind = column[1]
    if kind == "time":
        return f"unix_micros(CAST({name} AS TIMESTAMP))"
    if kind == "integer":
        return f"micros_of_number(CAST({name} AS BIGINT))"
    return f"micros_of_text({text})"


def quoted(name: str, mark: str) -> str:
    """Return a column's name as SQL, in an engine's quotation marks."""
    return mark + name.replace(mark, 2 * mark) + mark


def first_line(error: BaseException) -> str:
    """Return an error's message without the trace that engines add to it."""
    return str(error).splitlines()[0]
