"""Logs as they come, drawn by hypothesis: quoting, line ends, encodings, types of columns, units of time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tests.catalog.plain_log import COLUMNS

BROKEN = "\udcba"  # a byte of another encoding, as "surrogateescape" reads and writes it
WORDS = [
    "red kind", " Red  KIND", "", "  ", "\u3000红", "ﬁ\u0323", '5" screen', 'say "hi"', "a,b", "two\nlines", "two\r",
    '"', "x" * 513, f"r{BROKEN}d", "nan",
]  # fmt: skip
IDS = ["u1", "u2", "3", "", "3.0", f"u{BROKEN}", "\u3000"]
ITEMS = ["id-0", "id-1", "7", "nobody's", "", f"{BROKEN}"]
TIMES = [
    "2024-03-02", "2024-03-02T10:00:00+08:00", "2024-03-02 02:00:00.5", "2024-03-02T23:59:59.123456789Z", "2024-02-30",
    "2024-03-02T24:00:00", "1709424000", "1709424000000", "1709424000000000123", "-5", "1709424000.25", "the other day",
    "", "99999999999999999999", "1901-01-01 00:00:00.000001-00:30", "2024-03-02\n",
]  # fmt: skip
COLUMN_KINDS = ["text"] * 4 + ["large", "dictionary", "bytes", "int64", "int8", "uint64", "float", "half", "bool"]
NUMBERS = st.one_of(st.sampled_from([3, 3.0, 3.5, 1e-5, -0.0, 2**53 - 1, 10**25, True, float("nan"), None]))
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))


@dataclass(frozen=True)
class DrawnLog:
    """Files to write: name -> bytes, or an Arrow table."""

    files: dict[str, Any]
    max_record_lines: int

    def write(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                table, int96 = content
                pq.write_table(table, folder / name, use_deprecated_int96_timestamps=int96)
        return sorted(folder.iterdir())


def logs() -> st.SearchStrategy[DrawnLog]:
    return st.one_of(_logs(".csv", _csv()), _logs(".jsonl", _jsonl()), _logs(".parquet", _parquet()))


def _logs(suffix: str, content: st.SearchStrategy[Any]) -> st.SearchStrategy[DrawnLog]:
    names = ["a", "log[1]", "log1", "b*", "ü %41 {x}"]
    files = st.lists(content, min_size=1, max_size=3).map(
        lambda files: {name + suffix: one for name, one in zip(names, files, strict=False)}
    )
    return st.builds(DrawnLog, files, st.sampled_from([1, 2, 3]))


def _texts() -> st.SearchStrategy[list[tuple[str, ...]]]:
    row = st.tuples(*map(st.sampled_from, (IDS, WORDS, ITEMS, ["purchase", "click", ""], TIMES)))
    return st.lists(row, max_size=12)


@st.composite
def _csv(draw: Callable[..., Any]) -> bytes:
    """Quoted well, not at all, or by somebody who has never heard of it."""
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))

    def field(text: str) -> str:
        how = draw(st.sampled_from(["well"] * 6 + ["always"] * 2 + ["never"]))
        if how == "always" or (how == "well" and any(character in text for character in '",\r\n')):
            return '"' + text.replace('"', '""') + '"'
        return text

    lines = [",".join(map(field, row)) for row in draw(_texts())]
    strays = draw(
        st.lists(
            st.sampled_from(["too,few", "", "1,2,3,4,5,6", 'u1,"red kind,id-0,purchase,', ' "u1",a,b,c,d']), max_size=2
        )
    )
    for stray in strays:
        lines.insert(draw(st.integers(0, len(lines))), stray)
    text = end.join([",".join(COLUMNS), *lines]) + draw(st.sampled_from([end, ""]))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode("utf-8", "surrogateescape")


@st.composite
def _jsonl(draw: Callable[..., Any]) -> bytes:
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = [json.dumps(dict.fromkeys(COLUMNS, "id-0"))]
    for row in draw(_texts()):
        record: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
        for name in draw(st.sets(st.sampled_from(COLUMNS))):
            record[name] = draw(NUMBERS)
        if draw(st.booleans()):
            record = {name: value for name, value in record.items() if value is not None}
        lines.append(json.dumps(record, ensure_ascii=draw(st.booleans())))
    strays = ["no json", "", "[1]", '{"user": ["u"], "query": "q", "item": "id-0", "kind": "click", "time": 5}', "{"]
    strays.append('{"user": "u", "query": "\\ud800", "item": "id-0", "kind": "click", "time": 1709424000}')
    if draw(st.integers(0, 9)) == 9:
        strays.append('{"user": 9007199254740992.0, "query": "q", "item": "id-0", "kind": "click", "time": 5}')
    for stray in draw(st.lists(st.sampled_from(strays), max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), stray)
    return (end.join(lines) + draw(st.sampled_from([end, ""]))).encode("utf-8", "surrogateescape")


@st.composite
def _parquet(draw: Callable[..., Any]) -> tuple[Any, bool]:
    rows = draw(_texts())
    columns = {name: _column(draw, [row[place] for row in rows]) for place, name in enumerate(COLUMNS[:4])}
    columns["time"] = draw(_times(len(rows), [row[4] for row in rows]))
    names = draw(st.permutations([*COLUMNS, "price"]))
    columns["price"] = (
        pa.array([1.5] * len(rows)) if draw(st.booleans()) else pa.array([[1]] * len(rows), pa.list_(pa.int8()))
    )
    return pa.table({name: columns[name] for name in names}), draw(st.booleans())


def _column(draw: Callable[..., Any], texts: list[str]) -> Any:
    values: list[Any] = [None if draw(st.integers(0, 7)) == 7 else text for text in texts]
    kind = draw(st.sampled_from(COLUMN_KINDS))
    if kind == "bytes":
        return pa.array([v if v is None else v.encode("utf-8", "surrogateescape") for v in values], pa.binary())
    if kind in ("text", "large", "dictionary"):
        plain = [v if v is None else v.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for v in values]
        array = pa.array(plain, pa.large_string() if kind == "large" else pa.string())
        return array.dictionary_encode() if kind == "dictionary" else array
    numbers: Any = {
        "int64": st.sampled_from([3, 7, -(2**63), None]), "int8": st.sampled_from([3, 7, None]),
        "uint64": st.sampled_from([3, 2**64 - 1, None]), "bool": st.sampled_from([True, False, None]),
        "float": st.sampled_from([3.0, 7.0, 3.5, 1e-5, -0.0, 2.0**53 - 1, float("nan"), None]),
        "half": st.sampled_from([3.0, 7.0, 3.5, None]),
    }[kind]  # fmt: skip
    types = {"int64": pa.int64(), "int8": pa.int8(), "uint64": pa.uint64(), "bool": pa.bool_(), "half": pa.float16()}
    return pa.array([draw(numbers) for _ in texts], types.get(kind, pa.float64()))


@st.composite
def _times(draw: Callable[..., Any], count: int, texts: list[str]) -> Any:
    kind = draw(st.sampled_from(["text", "s", "ms", "us", "ns", "date", "seconds", "number", "float", "null"]))
    if kind == "text":
        return pa.array(texts, pa.string())
    if kind == "null":
        return pa.nulls(count)
    moments = [None if draw(st.integers(0, 7)) == 7 else draw(MOMENTS) for _ in range(count)]
    if kind == "date":
        return pa.array([m and m.date() for m in moments], pa.date32())
    micros = [None if m is None else (m - datetime(1970, 1, 1)) // timedelta(microseconds=1) for m in moments]
    if kind == "float":
        return pa.array([m and m / 1e6 for m in micros] if draw(st.booleans()) else micros, pa.float64())
    if kind in ("seconds", "number"):
        return pa.array(micros if kind == "number" else [None if m is None else m // 10**6 for m in micros], pa.int64())
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind]
    numbers = [
        None if m is None else m * per_second // 10**6 + (draw(st.integers(0, 999)) if kind == "ns" else 0)
        for m in micros
    ]
    return pa.array(numbers, pa.int64()).cast(pa.timestamp(kind, draw(st.sampled_from([None, "UTC", "Asia/Shanghai"]))))
