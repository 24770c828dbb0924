"""A behaviour log read in plain Python: what every row of it says, or why it says nothing.

Written from the rules alone (docs/catalogue.md), one value at a time, without Arrow's conversions or any SQL.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ("user", "query", "item", "kind", "time")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST = 512


@dataclass(frozen=True)
class Instant:
    """A timestamp of Parquet, rounded down to microseconds."""

    micros: int


class RefusedError(Exception):
    """The log as a whole is refused."""


@dataclass
class Plain:
    """Rows as (user, query, item, kind, micros, undecodable) by (file, line), and lines left out by reason."""

    rows: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict)
    unread: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def reasons(self, known: Iterable[str]) -> tuple[Counter[str], dict[str, tuple[str, int]]]:
        """Reason -> rows, and the first of them, as a split by time counts them; `known` are the catalogue's ids."""
        counts = Counter({reason: len(lines) for reason, lines in self.unread.items()})
        first = {reason: min(lines) for reason, lines in self.unread.items()}
        for place, row in sorted(self.rows.items()):
            reason = reason_of(row, set(known))
            if reason:
                counts[reason] += 1
                first.setdefault(reason, place)
        return counts, first


def read(files: list[Path], max_record_lines: int) -> Plain:
    found = Plain()
    for path in files:
        if path.suffix == ".csv":
            records = csv_records(path, max_record_lines)
        elif path.suffix == ".jsonl":
            records = jsonl_records(path)
        else:
            records = enumerate(parquet_records(path), start=1)
        for line, record in records:
            place = (str(path), line)
            if isinstance(record, str):
                found.unread.setdefault(record, []).append(place)
                continue
            try:
                texts = [text_of(record.get(name)) for name in COLUMNS[:4]]
                time = micros_of(record.get("time"))
            except TypeError:
                found.unread.setdefault("value that is neither text nor a number", []).append(place)
                continue
            undecodable = any(text is not None and not is_utf8(text) for text in texts)
            found.rows[place] = (*(None if text and not is_utf8(text) else text for text in texts), time, undecodable)
    return found


def text_of(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or value != value:
        return None
    if isinstance(value, int | float | Decimal):
        if isinstance(value, float) and abs(value) >= 2**53:
            raise RefusedError
        return str(int(value)) if value == value // 1 else str(value)
    raise TypeError(value)


def micros_of(value: Any) -> int | None:
    if isinstance(value, Instant):
        return value.micros
    if isinstance(value, date):
        return (value - date(1970, 1, 1)) // timedelta(microseconds=1)
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            return None
        value = int(value) if value.is_integer() else repr(value)
    text = text_of(value)
    if text is None:
        return None
    if re.fullmatch(r"-?[0-9]{1,19}", text) or re.fullmatch(r"-?[0-9]{1,18}[.][0-9]{1,9}", text):
        number = Decimal(text)
        if "." not in text and not -(2**63) <= number < 2**63:
            return None
        for limit, factor in ((10**11, Decimal(10**6)), (10**14, Decimal(1000)), (10**17, Decimal(1))):
            if abs(number) < limit:
                return math.floor(number * factor)
        return math.floor(number) // 1000
    if not re.fullmatch(
        r"[12]\d{3}-\d\d-\d\d([T ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d([.]\d{1,9})?(Z|[+-](0\d|1[0-4]):[0-5]\d)?)?", text
    ):
        return None
    try:
        time = datetime.fromisoformat(re.sub(r"([.]\d{6})\d+", r"\1", text))
    except ValueError:
        return None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)


def is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def reason_of(row: tuple[Any, ...], known: set[str]) -> str:
    user, query, item, _, time, undecodable = row
    if undecodable:
        return "undecodable text"
    if query is None:
        return "null query"
    if not item:
        return "null item"
    normal = " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", query).casefold()).split())
    if not normal:
        return "empty query"
    if len(normal) > LONGEST:
        return "query too long"
    if not user:
        return "null user"
    return "bad time" if time is None else "" if item in known else "unknown item"


def lines_of(path: Path) -> list[str]:
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)


def jsonl_records(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        yield number, value if isinstance(value, dict) else "unreadable line"


def parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "time"}
    if "time" in table.column_names:
        kind = table.schema.field("time").type
        if pa.types.is_timestamp(kind):
            times, over = {"ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[kind.unit]
            numbers = table["time"].cast(pa.timestamp(kind.unit)).cast(pa.int64()).to_pylist()
            columns["time"] = [None if n is None else Instant(n * times // over) for n in numbers]
        else:
            columns["time"] = table["time"].to_pylist()
    yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def csv_records(path: Path, most: int) -> Iterator[tuple[int, Any]]:
    lines = lines_of(path)
    header: list[str] = []
    number = 0
    while number < len(lines):
        start, (fields, taken, closed, tidy) = number, fields_from(lines[number : number + most])
        if not closed or (taken > 1 and not (tidy and len(fields) == len(header))):
            fields, taken = None, 1
        number += taken
        if fields is None:
            yield start + 1, "line with a quote that does not close"
        elif not lines[start].strip("\r\n"):
            continue
        elif not header:
            header = fields
        elif len(fields) != len(header):
            yield start + 1, "unreadable line"
        else:
            yield start + 1, dict(zip(header, fields, strict=True))


def fields_from(lines: list[str]) -> tuple[list[str], int, bool, bool]:
    """The fields of the record that begins these lines; how many it has, whether it ends, and closes whole fields."""
    fields: list[str] = []
    current, state, tidy = "", "start", True
    for taken, line in enumerate(lines, start=1):
        for character in line:
            if state == "quoted":
                state = "closed" if character == '"' else "quoted"
                current += "" if character == '"' else character
            elif character == ",":
                fields.append(current)
                current, state = "", "start"
            elif state == "closed" and character == '"':
                current, state = current + '"', "quoted"
            elif state == "start" and character == '"':
                state = "quoted"
            elif character not in "\r\n":
                tidy = tidy and state != "closed"
                current, state = current + character, "plain"
        if state != "quoted":
            return [*fields, current], taken, True, tidy
    return fields, len(lines), False, tidy
