"""Logs as shops have them: in several formats, with other column names, and with rows that are wrong."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.mining.duckdb import DuckDB
from mbsd.catalog.mining.mine import MiningReport, MiningSettings, mine_pairs
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError
from tests.catalog.helpers import items_of, small_catalog
from tests.catalog.mining_reference import Pair, Row
from tests.catalog.test_mining import read_pairs

COLUMNS = ("user", "query", "item", "kind", "time")
LONG = "q" * 10_000
BROKEN = b"\xff\xfe\xba"
DAY = b"2024-03-02"
# Rows as bytes: what is wrong with each, and the reason under which it is counted.
ROWS: list[tuple[tuple[bytes | None, ...], str]] = [
    *(((f"u{n}".encode(), b"Red  Kind", b"id-0", b"purchase", DAY), "") for n in range(3)),
    *(((f"u{n}".encode(), b"blue kind", b"id-2", b"purchase", b"1709424000"), "") for n in range(2)),
    ((b"u8", b"green kind", b"id-4", b"purchase", b"2024-03-02T10:00:00+08:00"), ""),
    ((b"u9", "\u3000Green\u3000kind".encode(), b"id-4", b"purchase", b"2024-03-02 02:00:00.5"), ""),
    ((b"u1", b"black kind", b"id-6", b"gaze", DAY), ""),
    ((b"u1", b"black kind", b"id-6", None, DAY), ""),
    ((None, b"red kind", b"id-2", b"purchase", DAY), "null user"),
    ((b"", b"red kind", b"id-2", b"purchase", DAY), "null user"),
    ((b"u1", None, b"id-0", b"purchase", DAY), "null query"),
    ((b"u1", b" \t", b"id-0", b"purchase", DAY), "empty query"),
    ((b"u2", "\u3000".encode(), b"id-0", b"purchase", DAY), "empty query"),
    ((b"u1", LONG.encode(), b"id-0", b"purchase", DAY), "query too long"),
    ((b"u2", LONG.upper().encode(), b"id-0", b"purchase", DAY), "query too long"),
    ((b"u1", b"red kind", None, b"purchase", DAY), "null item"),
    ((b"u1", b"red kind", b"nobody's", b"purchase", DAY), "unknown item"),
    ((b"u1", b"red " + BROKEN, b"id-0", b"purchase", DAY), "undecodable text"),
    ((b"u1", "红".encode("gbk"), b"id-0", b"purchase", DAY), "undecodable text"),
    ((BROKEN, b"red kind", b"id-4", b"purchase", DAY), "undecodable text"),
    ((b"u1", b"red kind", b"id-6", b"purchase", b"the other day"), "bad time"),
    ((b"u2", b"red kind", b"id-6", b"purchase", None), "bad time"),
]
REASONS = {
    "bad time": 2,
    "empty query": 2,
    "null item": 1,
    "null query": 1,
    "null user": 2,
    "query too long": 2,
    "undecodable text": 3,
    "unknown item": 1,
}
BY_TIME = {"split": "time", "validation_from": "2024-03-02T01:59:00", "test_from": "2024-03-03"}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return small_catalog(tmp_path_factory.mktemp("input") / "catalog", items_of(12))


def parquet_of_bytes(path: Path, *, as_text: bool = False) -> Path:
    """The rows as binary columns, or as columns that claim to be text whatever their bytes are."""

    def text(values: list[bytes | None]) -> Any:
        ends = [0]
        for value in values:
            ends.append(ends[-1] + len(value or b""))
        validity = sum(1 << k for k, value in enumerate(values) if value is not None)
        buffers = [validity.to_bytes(len(values) // 8 + 1, "little"), struct.pack(f"<{len(ends)}i", *ends)]
        buffers.append(b"".join(value or b"" for value in values))
        return pa.Array.from_buffers(pa.string(), len(values), [pa.py_buffer(buffer) for buffer in buffers])

    columns = [list(column) for column in zip(*(row for row, _ in ROWS), strict=True)]
    arrays = [text(column) if as_text else pa.array(column, pa.binary()) for column in columns]
    pq.write_table(pa.table(arrays, names=list(COLUMNS)), path)
    return path


def mine(folder: Path, catalog: Catalog, log: Path | str, **options: Any) -> tuple[MiningReport, dict[Pair, Row]]:
    report = mine_pairs(log, catalog, folder / "pairs.parquet", MiningSettings(**options))
    return report, read_pairs(folder / "pairs.parquet", catalog)


def check_bad_rows(report: MiningReport, rows: dict[Pair, Row], *, unreadable: int = 0, nulls: bool = True) -> None:
    assert report.log_rows == len(ROWS) + unreadable
    expected = {**REASONS, **({"unreadable line": unreadable} if unreadable else {})}
    if not nulls:  # CSV has no null, only empty fields
        expected["empty query"] += expected.pop("null query")
    assert report.rejected == expected and report.bad_times == 2
    assert report.rows_by_kind["gaze"] == 1 and report.rows_by_kind["null" if nulls else ""] == 1
    positives = {key: row[2:] for key, row in rows.items() if row[0]}
    assert positives == {
        ("red kind", 0): (3, "", "train"),
        ("blue kind", 2): (2, "", "test"),
        ("green kind", 4): (2, "", "validation"),
    }
    # A purchase by nobody, or at no time, is still behaviour.
    assert not {("red kind", 2), ("red kind", 4), ("red kind", 6), ("black kind", 6)} & set(rows)


@pytest.mark.parametrize("as_text", [False, True])
def test_bad_rows_are_counted_and_never_stop(tmp_path: Path, catalog: Catalog, as_text: bool) -> None:
    assert len(LONG) > MAX_QUERY_CHARACTERS and sum(REASONS.values()) == sum(bool(reason) for _, reason in ROWS)
    log = parquet_of_bytes(tmp_path / "log.parquet", as_text=as_text)
    check_bad_rows(*mine(tmp_path, catalog, log, **BY_TIME))
    report, rows = mine(tmp_path, catalog, log)  # a split by item reads no times
    assert report.rejected == {reason: count for reason, count in REASONS.items() if reason != "bad time"}
    assert report.bad_times == 0 and rows["red kind", 6][:3] == (1, "purchase", 2)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv"])
def test_csv_and_jsonl(tmp_path: Path, catalog: Catalog, suffix: str) -> None:
    def field(value: bytes | None) -> bytes:
        # Escapes for what JSON must escape, the bytes as they are for the rest.
        text = (value or b"").decode("utf-8", "surrogateescape")
        return b"null" if value is None else json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape")

    if suffix == ".csv":
        lines = [b",".join(reversed([b'"' + (value or b"") + b'"' for value in row])) for row, _ in ROWS]
        data = b"\n".join([b"\xef\xbb\xbftime,kind,item,query,user", *lines, b"too,few"]) + b"\n"
    else:
        lines = [
            b"{"
            + b", ".join(f'"{name}": '.encode() + field(value) for name, value in zip(COLUMNS, row, strict=True))
            + b"}"
            for row, _ in ROWS
        ]
        data = b"\n".join([*lines[:3], b"no json", b"", *lines[3:], b"[1]"]) + b"\n"
    log = tmp_path / f"log{suffix}"
    log.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    report, rows = mine(tmp_path, catalog, log, **BY_TIME)
    check_bad_rows(report, rows, unreadable=1 if suffix == ".csv" else 2, nulls=suffix != ".csv")


def test_numbers_as_ids_and_times(tmp_path: Path) -> None:
    items = [(str(n), f"item {n}", "kind") for n in range(3)]
    from mbsd.catalog.sources import Item

    catalog = small_catalog(tmp_path / "catalog", [Item(id_, title, "", kind) for id_, title, kind in items])
    micros = 1_709_251_200_000_000
    for times in (
        [micros // 10**6] * 4, [micros // 1000] * 4, [micros] * 4, [micros * 1000] * 4,
        pa.array([micros * 1000] * 4, pa.timestamp("ns")), pa.array([19783] * 4, pa.date32()), ["2024-03-01"] * 4,
    ):  # fmt: skip
        columns = {"user": [1, 2, 1, 2], "query": ["a", "a", "b", "b"], "item": [0, 0, 2, 2], "kind": ["purchase"] * 4}
        pq.write_table(pa.table({**columns, "time": times}), tmp_path / "log.parquet")
        options = {"split": "time", "validation_from": "2024-02-29", "test_from": "2024-03-01T00:00:01"}
        report, rows = mine(tmp_path, catalog, tmp_path / "log.parquet", **options)
        assert {key: row[4] for key, row in rows.items() if row[0]} == {("a", 0): "validation", ("b", 2): "validation"}
        assert report.bad_times == 0 and report.rejected == {}


def test_folders_globs_and_other_column_names(tmp_path: Path, catalog: Catalog) -> None:
    table = pq.read_table(parquet_of_bytes(tmp_path / "whole.parquet")).slice(0, 9)
    expected = mine(tmp_path, catalog, tmp_path / "whole.parquet")[1]
    table = table.rename_columns(["who", "search term", "sku", "kind", "time"])
    table = table.select(["sku", "kind", "who", "search term"])
    (tmp_path / "logs/day=1").mkdir(parents=True)
    pq.write_table(table.slice(0, 4), tmp_path / "logs/day=1/a.parquet")
    pq.write_table(table.slice(4), tmp_path / "logs/b.parquet")
    (tmp_path / "logs/_temporary.parquet").write_text("half written")
    (tmp_path / "logs/_SUCCESS").write_text("")
    columns = {"user": "who", "query": "search term", "item": "sku"}
    for log in (tmp_path / "logs", str(tmp_path / "logs/**/[ab].parquet")):
        report, rows = mine(tmp_path, catalog, log, columns=columns)
        assert report.log_rows == 9
        assert {key for key, row in rows.items() if row[0]} == {
            key for key, row in expected.items() if row[0] and key != ("red kind", 6)
        }


def test_users_mistakes(tmp_path: Path, catalog: Catalog) -> None:
    def fails(log: Path | str, message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            mine(tmp_path, catalog, log, **options)
        assert not (tmp_path / "pairs.parquet").exists()

    row = {"user": "u", "search": "q", "item": "id-0", "kind": "click"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    for suffix in ("parquet", "csv", "jsonl"):
        log = tmp_path / f"x.{suffix}"
        fails(log, "no column 'query'; found .*search.*; needs user, query, item, kind .*--column query=NAME")
        fails(log, "no column 'term'; found", columns={"query": "term"})
        fails(log, "no query led 2 users to buy .*1 rows: 1 click", columns={"query": "search"})
        fails(log, "no column 'time'; found", columns={"query": "search"}, **BY_TIME)
    fails(tmp_path / "none.parquet", "no such file")
    fails(tmp_path, "files of different formats \\(CSV, JSONL, Parquet\\)")
    fails("s3://shop/log.csv", "a URL is read as Parquet")
    (tmp_path / "bad.parquet").write_text("no parquet")
    fails(tmp_path / "bad.parquet", "bad.parquet: not a Parquet file")


def test_the_command(tmp_path: Path, catalog: Catalog) -> None:
    columns = ["who", "search", "item", "kind", "time"]
    log = tmp_path / "renamed.parquet"
    pq.write_table(pq.read_table(parquet_of_bytes(log)).rename_columns(columns), log)
    out = tmp_path / "mined" / "pairs.parquet"
    words = ["pairs", "mine", "--log", str(log), "--catalog", str(catalog.path), "--out", str(out)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "mbsd.cli", *words, *more], capture_output=True, text=True)

    found = run(
        "--column", "user=who", "--column", "query=search", "--split", "time", "--threads", "1",
        "--memory-limit", "1GB",
        "--validation-from", str(BY_TIME["validation_from"]), "--test-from", str(BY_TIME["test_from"]),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    report = json.loads((tmp_path / "mined" / "pairs.report" / "report.json").read_text())
    assert report["rejected"] == REASONS and report["log_rows"] == len(ROWS)
    assert report["settings"]["columns"] == {"user": "who", "query": "search"}
    assert report["split_rows"] == {
        split: [row[4] for row in read_pairs(out, catalog).values()].count(split)
        for split in ("train", "validation", "test")
    }
    for more, message in ((["--column", "user"], "--column user: expected OURS=NAME"), ([], "no column 'user'")):
        refused = run(*more)
        assert refused.returncode == 2 and message in refused.stderr and refused.stderr.count("\n") == 1


def log_of(path: Path, *rows: tuple[Any, ...], columns: tuple[str, ...] = COLUMNS[:4], **types: Any) -> Path:
    arrays = [pa.array(values, types.get(name)) for name, values in zip(columns, zip(*rows, strict=True), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, names=list(columns)), path)
    return path


BOUGHT = [(user, "red kind", "id-0", "purchase") for user in ("u1", "u2")]


def test_a_stray_quote_loses_its_line_alone(tmp_path: Path, catalog: Catalog) -> None:
    rows = [f"u{n % 4},dress {n // 4},id-{n // 4},purchase" for n in range(24)]
    rows[2] = 'u2,"dress 0,id-0,purchase'
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["user,query,item,kind", *rows]) + "\n")
    report, _ = mine(tmp_path, catalog, log)
    assert report.positives == 6 and report.log_rows == 24
    assert report.rejected == {"line with a quote that does not close": 1}
    assert report.rejected_first == {"line with a quote that does not close": f"{log}, line 4"}
    assert f"1 line with a quote that does not close (the first: {log}, line 4)" in report.describe()
    rows[3], rows[7] = 'u3,"dress', '0",id-0,purchase'
    log.write_text("\n".join(["user,query,item,kind", *rows]) + "\n")
    report, _ = mine(tmp_path, catalog, log, max_record_lines=2)
    assert report.rejected == {"line with a quote that does not close": 2, "unreadable line": 1}
    report, _ = mine(tmp_path, catalog, log, max_record_lines=5)  # it may be a row of five lines, which is said
    assert report.notes == [f"rows of several lines: 1, of 5 lines together (the first: {log}, line 5)"]
    with pytest.raises(UserError, match="max_record_lines is 0; expected at least 1"):
        MiningSettings(max_record_lines=0)


def test_users_that_are_no_text(tmp_path: Path, catalog: Catalog) -> None:
    """3, 3.0 and "3" are one buyer, NaN and null are nobody; int64 and float64 files in one folder."""
    users = [3, 3.0, float("nan"), None, "3"]
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps({"user": u, "query": "q", "item": "id-0", "kind": "purchase"}) + "\n" for u in users)
    )
    log_of(tmp_path / "log/a.parquet", *((3, *BOUGHT[0][1:]),), user=pa.int64())
    log_of(
        tmp_path / "log/b.parquet", *((u, *BOUGHT[0][1:]) for u in (3.0, float("nan"), None, 3.0)), user=pa.float64()
    )
    for log, line in ((tmp_path / "log.jsonl", "line 3"), (tmp_path / "log", "row 2")):
        report, rows = mine(tmp_path, catalog, log, min_buyers=1)
        assert [row[:3] for row in rows.values() if row[0]] == [(1, "purchase", 1)] and report.rejected == {
            "null user": 2
        }
        assert report.rejected_first["null user"].endswith(line) and report.log_rows == 5


def test_ids_that_have_lost_digits_are_refused(tmp_path: Path, catalog: Catalog) -> None:
    large = [(user, *BOUGHT[0][1:]) for user in (1.0, 2.0**53)]
    log_of(tmp_path / "log.parquet", *large)
    (tmp_path / "log.jsonl").write_text('{"user": "a"}\n{"user": 9007199254740992.0}\n')
    for name, row in (("log.parquet", "row"), ("log.jsonl", "line")):
        with pytest.raises(UserError, match=rf"{name}, {row} 2: 'user' is 9007199254740992.0, .* at or above 2\*\*53"):
            mine(tmp_path, catalog, tmp_path / name)


def test_paths_are_never_patterns(tmp_path: Path, catalog: Catalog) -> None:
    names = ["log[1].parquet", "log1.parquet", "log*.parquet", "l?g.parquet"]
    for number, name in enumerate(names):
        log_of(tmp_path / "log" / name, *((f"u{k}", "q", f"id-{number}", "purchase") for k in range(2)))
    report, rows = mine(tmp_path, catalog, tmp_path / "log")
    assert report.log_rows == 8 and {item for (_, item), row in rows.items() if row[0]} == {0, 1, 2, 3}
    _, rows = mine(tmp_path, catalog, tmp_path / "log/log[1].parquet")
    assert {item for (_, item), row in rows.items() if row[0]} == {0}


def test_an_empty_or_foreign_file_is_named(tmp_path: Path, catalog: Catalog) -> None:
    log_of(tmp_path / "log/a.parquet", *BOUGHT)
    for make, message in (
        (lambda path: path.touch(), "b.parquet: not a Parquet file but an empty one"),
        (lambda path: path.write_bytes(b"PAR1"), "b.parquet: not a Parquet file"),
        (lambda path: pq.write_table(pa.table({"sku": [1]}), path), "b.parquet: no column 'user'; found sku"),
        (lambda path: log_of(path, *BOUGHT, columns=("user", "query", "item", "item")), "b.parquet: .*'item' .* twice"),
        (lambda path: log_of(path, *((u, [q], i, k) for u, q, i, k in BOUGHT)), "b.parquet: .*'query' is list"),
    ):  # fmt: skip
        make(tmp_path / "log/b.parquet")
        for log in (tmp_path / "log", tmp_path / "log/*.parquet"):
            with pytest.raises(UserError, match=message):
                mine(tmp_path, catalog, log)
    (tmp_path / "c.csv").write_text("user,query,query,item,kind\nu,a,b,id-0,click\n")
    (tmp_path / "u.jsonl").write_bytes('{"user": "u"}\n'.encode("utf-16"))
    for name, message in (("c.csv", "'query' is in the header twice"), ("u.jsonl", "u.jsonl: UTF-16")):
        with pytest.raises(UserError, match=message):
            mine(tmp_path, catalog, tmp_path / name)


def test_columns_in_the_folders_names(tmp_path: Path, catalog: Catalog) -> None:
    for kind in ("click", "purchase"):
        log_of(tmp_path / f"log/kind={kind}/p.parquet", *(row[:3] for row in BOUGHT), columns=COLUMNS[:3])
        (tmp_path / f"csv/kind={kind}").mkdir(parents=True)
        (tmp_path / f"csv/kind={kind}/p.csv").write_text("user,query,item\nu1,red kind,id-0\nu2,red kind,id-0\n")
    (tmp_path / "log/_SUCCESS").touch()
    for log in ("log", "csv", "log/kind=purchase", "log/kind=purchase/p.parquet", "log/*/*.parquet"):
        report, rows = mine(tmp_path, catalog, tmp_path / log)
        assert rows["red kind", 0][:3] == (1, "purchase", 2) and report.rows_by_kind["purchase"] == 2
        assert report.notes == ["read from the folders' names: kind"]
    # A column of the file's own has precedence.
    log_of(tmp_path / "own/kind=click/p.parquet", *BOUGHT)
    assert mine(tmp_path, catalog, tmp_path / "own")[0].rows_by_kind == {"purchase": 2}


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(tmp_path / "log.parquet", *BOUGHT)
    whole = DuckDB.open_part

    def late(engine: DuckDB, part: Any, number: int) -> None:
        log_of(log, *BOUGHT, *BOUGHT)
        whole(engine, part, number)

    monkeypatch.setattr(DuckDB, "open_part", late)
    with pytest.raises(UserError, match="log.parquet: has 2 rows, but 4 were used and 0 left out; was it changed"):
        mine(tmp_path, catalog, log)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York"])
def test_an_instant_is_one_in_every_time_zone(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    moments = [datetime(2024, 3, day, 23, 30, tzinfo=UTC) for day in (1, 2, 3, 4, 5, 6)]
    rows = [(u, f"q{n}", f"id-{n}", "purchase", at) for n, at in enumerate(moments) for u in ("a", "b")]
    options = {"split": "time", "validation_from": "2024-03-03T00:00:00Z", "test_from": "2024-03-05T00:00:00Z"}
    texts = [(*row[:4], row[4].astimezone(timezone(timedelta(hours=8))).isoformat()) for row in rows]
    for given in (rows, texts):
        log_of(tmp_path / "log.parquet", *given, columns=COLUMNS)
        _, pairs = mine(tmp_path, catalog, tmp_path / "log.parquet", **options)
        splits = {item: row[4] for (_, item), row in pairs.items() if row[0]}
        assert splits == {0: "train", 1: "train", 2: "validation", 3: "validation", 4: "test", 5: "test"}
    monkeypatch.undo()
    time.tzset()
