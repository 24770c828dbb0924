"""CSV logs: a stray quote costs its own line, and Arrow's blocks read as the slow way does."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbsd.catalog.mining.log_csv import OPEN_QUOTE, CsvLog
from mbsd.errors import UserError


def read(path: Path, data: bytes, most: int = 10, block: int = 1 << 18) -> tuple[dict[int, tuple[Any, ...]], Any]:
    path.write_bytes(data)
    log, rows, bad = CsvLog(str(path), most, block), {}, []
    for batch in log.batches(log.header):
        fields = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        rows |= dict(zip(batch.lines.tolist(), fields, strict=True))
        bad += batch.bad
    return rows, bad


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("place", [0, 3, 4000, 4999])
def test_a_stray_quote_costs_one_line(tmp_path: Path, place: int, end: str) -> None:
    lines = [f"u{n},dress {n},i{n}" for n in range(5000)]
    lines[place] = f'u,"dress {place},i'
    data = end.join(["user,query,item", *lines, ""]).encode()
    rows, bad = read(tmp_path / "log.csv", data, block=1 << 12)
    assert bad == [(OPEN_QUOTE, place + 2)] and len(rows) == 4999
    assert all(
        rows[n + 2] == (f"u{n}".encode(), f"dress {n}".encode(), f"i{n}".encode()) for n in range(5000) if n != place
    )


def test_two_stray_quotes_take_nothing_between_them(tmp_path: Path) -> None:
    lines = [f"u{n},dress {n},i{n}" for n in range(50)]
    lines[4], lines[8], lines[20], lines[24], lines[40] = 'u,"dress,i', 'u,"dress,i', 'u,"d,i', 'd",i,x', 'u,"a" red,i'
    rows, bad = read(tmp_path / "log.csv", "\n".join(["user,query,item", *lines]).encode())
    # Of each first quote the second is the end, but it ends no field, or the row would have a field too few.
    assert bad == [(OPEN_QUOTE, 6), (OPEN_QUOTE, 10), (OPEN_QUOTE, 22)] and len(rows) == 47
    assert rows[42] == (b"u", b"a red", b"i")


def test_rows_of_several_lines(tmp_path: Path) -> None:
    data = b'a,b\n1,"x\ny\n"\n2,z\n"3\n\n\n",w\n'
    assert read(tmp_path / "a.csv", data) == ({2: (b"1", b"x\ny\n"), 5: (b"2", b"z"), 6: (b"3\n\n\n", b"w")}, [])
    assert read(tmp_path / "a.csv", data, most=3)[1] == [(OPEN_QUOTE, 6), (OPEN_QUOTE, 9)]
    assert read(tmp_path / "a.csv", data, most=1)[0] == {5: (b"2", b"z")}


PIECES = [*'ab,,,"\n\n\r', "\r\n", '","', '"\n', '\n"', "\xe9"]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.sampled_from([1, 5, 64]))
@settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_blocks_of_any_size_read_alike(tmp_path: Path, text: str, block: int) -> None:
    data = ("h,k\n" + text).encode("latin-1")
    whole = read(tmp_path / "log.csv", data, 3)
    assert read(tmp_path / "log.csv", data, 3, block) == whole
    with mock.patch.object(CsvLog, "_by_arrow", return_value=None):
        assert read(tmp_path / "log.csv", data, 3) == whole


def test_files_that_are_none(tmp_path: Path) -> None:
    cut = gzip.compress(b"a,b\n" + bytes(range(256)) * 99)[:-9]
    for name, data, message in (
        ("a.csv", b"", "a.csv: an empty file"), ("b.csv", b'"a,b\n', "header does not end"),
        ("c.csv", "a,b\n".encode("utf-16"), "c.csv: UTF-16; convert the file to UTF-8"),
        ("d.csv.gz", cut, "d.csv.gz: cannot be read"), ("e.csv.bz2", b"a,b\n", "e.csv.bz2: cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read(tmp_path / name, data)
    assert read(tmp_path / "f.csv.bz2", bz2.compress(b"a\n1\n")) == ({2: (b"1",)}, [])
