"""The SQL that DuckDB and Spark have in common, and the few functions that both are given.

The common subset: `SEMI JOIN`, `ANTI JOIN`, window functions, `md5`, `explode(sequence(a, b))` (which DuckDB gets as
macros), the functions of `FUNCTIONS`, and four that each engine defines for itself:

    full_match(s, pattern)    whether the whole of s is as the pattern says
    thousandth(n)             n / 1000, rounded down
    nanos_of(t)               nanoseconds since 1970 of a timestamp that has them
    micros_of_iso(s)          microseconds since 1970 of text that is `ISO`; without a zone it is UTC

`QUALIFY`, `UPDATE`, `DISTINCT ON`, `::` and the order of nulls are not in it, and case is folded in Python, since each
engine folds it in its own way.
"""

from __future__ import annotations

# Name, and what is in the column. text | bytes (text that may not be UTF-8) | integer | time (a date or a timestamp) |
# nanos (a timestamp of nanoseconds) | null | constant: then the name is the value. "" = what we do not read.
Column = tuple[str, str]

# Dates in ISO 8601 alone: the engines disagree on what else is a time.
DATE = "[12][0-9]{3}-[0-9]{2}-[0-9]{2}"
ZONE = "(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])?"
CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
ISO = f"{DATE}([T ]{CLOCK}([.][0-9]{{1,6}})?{ZONE})?"
ISO_NANOS = f"{DATE}[T ]{CLOCK}[.][0-9]{{7,9}}{ZONE}"
# name -> (parameters, type of the result, body). Numbers are seconds, ms, us or ns since 1970 by their size.
FUNCTIONS = {
    "micros_of_number": (
        "n BIGINT",
        "BIGINT",
        "CASE WHEN n BETWEEN -99999999999 AND 99999999999 THEN n * 1000000 "
        "WHEN n BETWEEN -99999999999999 AND 99999999999999 THEN n * 1000 "
        "WHEN n BETWEEN -99999999999999999 AND 99999999999999999 THEN n ELSE thousandth(n) END",
    ),
    "micros_of_decimal": (
        "d DECIMAL(28, 9)",
        "BIGINT",
        "CASE WHEN d > -100000000000 AND d < 100000000000 THEN CAST(floor(d * 1000000) AS BIGINT) "
        "WHEN d > -100000000000000 AND d < 100000000000000 THEN CAST(floor(d * 1000) AS BIGINT) "
        "WHEN d > -100000000000000000 AND d < 100000000000000000 THEN CAST(floor(d) AS BIGINT) "
        "ELSE thousandth(CAST(floor(d) AS BIGINT)) END",
    ),
    "micros_of_text": (
        "s STRING",
        "BIGINT",
        f"CASE WHEN full_match(s, '{ISO}') THEN micros_of_iso(s) "
        f"WHEN full_match(s, '{ISO_NANOS}') THEN "
        f"micros_of_iso(concat(substr(s, 1, 26), regexp_extract(s, '{ZONE}$', 0))) "
        "WHEN full_match(s, '-?[0-9]{1,19}') THEN micros_of_number(try_cast(s AS BIGINT)) "
        "WHEN full_match(s, '-?[0-9]{1,18}[.][0-9]{1,9}') THEN micros_of_decimal(try_cast(s AS DECIMAL(28, 9))) END",
    ),
}


class UndecodableText(Exception):  # noqa: N818
    """Text of a Parquet file is not UTF-8, and the engine would stop there unless it reads the text as bytes."""


def micros_of(column: Column, text: str, name: str) -> str:
    """Return SQL for a column's time in microseconds since 1970, given the SQL of its text and its quoted name.

    A time without a zone is one of UTC.
    """
    kind = column[1]
    if kind == "time":
        return f"unix_micros({name})"
    if kind == "nanos":
        return f"thousandth(nanos_of({name}))"
    if kind == "integer":
        return f"micros_of_number(CAST({name} AS BIGINT))"
    if kind == "null":
        return "CAST(NULL AS BIGINT)"
    return f"micros_of_text({text})"


def quoted(name: str, mark: str) -> str:
    """Return a column's name as SQL, in an engine's quotation marks."""
    return mark + name.replace(mark, 2 * mark) + mark


def first_line(error: BaseException) -> str:
    """Return an error's message without the trace that engines add to it."""
    return str(error).splitlines()[0]
