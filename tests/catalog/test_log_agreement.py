"""DuckDB, Spark and a plain Python reader agree on every row of a log, or on the reason why it was left out."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from mbsd.catalog.mining.dialect import UndecodableText
from mbsd.catalog.mining.log_files import LogFiles, find_log
from mbsd.catalog.mining.log_tables import make_log, open_log
from mbsd.catalog.mining.mine import MiningReport, MiningSettings
from mbsd.catalog.mining.sql_engine import Engine, open_engine, rows
from mbsd.errors import UserError
from tests.catalog import plain_log
from tests.catalog.drawn_logs import DrawnLog, logs

NAMES = {name: name for name in plain_log.COLUMNS}
KNOWN = ("id-0", "id-1", "7", "true", "3")
ALIKE = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
number = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def far_from_utc() -> Iterator[None]:
    """The machine's own zone plays no part: this one is hours away from UTC, and has half-hour offsets in its past."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Kolkata"
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def duckdb(folder: Path, far_from_utc: None) -> Iterator[Engine]:
    yield from _engine("duckdb", folder)


@pytest.fixture(scope="module")
def spark(folder: Path, far_from_utc: None) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        yield from _engine("spark", folder)


def _engine(name: Any, folder: Path) -> Iterator[Engine]:
    engine = open_engine(MiningSettings(engine=name, threads=2), folder)
    items = {"item_id": KNOWN, "category": ["c"] * len(KNOWN), "split": ["train"] * len(KNOWN)}
    engine.load("items", pa.table({**items, "item": np.arange(len(KNOWN))}))
    yield engine
    engine.close()


def read_by(engine: Engine, files: LogFiles) -> dict[tuple[str, int], tuple[Any, ...]]:
    try:
        files = make_log(engine, files)
        found = rows(engine, "SELECT * FROM placed_log")
    except UndecodableText:
        as_bytes = files.as_bytes()
        assert as_bytes is not None
        files = make_log(engine, as_bytes)
        found = rows(engine, "SELECT * FROM placed_log")
    columns = ("user_id", "query", "item_id", "kind", "micros", "undecodable")
    read = {_place(files.where(row["place"])): tuple(row[name] for name in columns) for row in found}
    assert len(read) == len(found) == files.rows
    return read


def check(engine: Engine, drawn: DrawnLog, folder: Path, *, counted: bool) -> None:
    here = folder / f"{next(number):03d}"
    paths = drawn.write(here / "log")
    try:
        plain = plain_log.read(paths, drawn.max_record_lines)
    except plain_log.RefusedError:
        with pytest.raises(UserError, match=r"line \d+: .* is 9007199254740992.0, .* has lost its last digits"):
            find_log(here / "log", NAMES, here, drawn.max_record_lines)
        return
    files = find_log(here / "log", NAMES, here, drawn.max_record_lines)
    assert files.count.left_out == {reason: len(places) for reason, places in plain.unread.items()}
    assert read_by(engine, files) == plain.rows
    if counted:
        report = MiningReport()
        by_time = MiningSettings(split="time", validation_from="0.8", test_from="0.9")
        open_log(engine, files, by_time, report)
        counts, first = plain.reasons(KNOWN)
        assert report.rejected == counts and report.log_rows == len(plain.rows) + sum(map(len, plain.unread.values()))
        if len(paths) == 1:  # of several files, those that are read alike come first
            assert {reason: _place(place) for reason, place in report.rejected_first.items()} == first


def _place(words: str) -> tuple[str, int]:
    path, _, place = words.rpartition(", ")
    return path, int(place.split(" ")[1])


MOMENT = datetime(2024, 3, 2, 10, 30)
MICROS = 1_709_375_400_000_000
STRANGE = "a 'view' \\ 100%"
ZONES = ("UTC", None, "Asia/Shanghai")
USERS = [
    pa.array(["3"]), pa.array([3]), pa.array([3.0]), pa.array([3], pa.int8()), pa.array([3], pa.uint64()),
    pa.array([b"3"]), pa.array([Decimal("3.00")]), pa.array(["3"]).dictionary_encode(), pa.array([3.0], pa.float32()),
    pa.array(["3"], pa.large_string()),
]  # fmt: skip
TIMES = [
    *(pa.array([MOMENT], pa.timestamp(unit, zone)) for zone in ZONES for unit in ("ns", "us", "ms")),
    *(pa.array([MICROS * 1000 // 10**power]) for power in (0, 3, 6, 9)),
    *(pa.array([number]) for number in (MICROS / 1e6, MICROS * 1e3)),
    *(pa.array([text]) for text in ("2024-03-02T10:30:00", "2024-03-02 16:00:00+05:30", "1709375400", "1709375400.0")),
    pa.array([Decimal("1709375400.000")]),
]
BOTH = pytest.mark.parametrize("name", ["duckdb", pytest.param("spark", marks=pytest.mark.spark)])


def test_the_times_are_one_moment() -> None:
    assert plain_log.micros_of("2024-03-02T10:30:00") == MICROS and len(TIMES) == 20


@BOTH
def test_files_of_all_types_in_one_log(request: pytest.FixtureRequest, folder: Path, name: str) -> None:
    """The files differ in all that may differ: types of ids and times, names, and what the folders' names say."""
    engine, log = request.getfixturevalue(name), folder / f"{name}-types"
    numbers = range(len(TIMES)) if name == "duckdb" else (0, 4, 10, 16)
    for number in numbers:
        # A price is of one type in no two files, and nobody reads it.
        columns = {"time": TIMES[number], "price": pa.array([number]) if number % 2 else pa.array([{"eur": 5}])}
        columns |= {"item": ["id-0"], "query": ["red"], "user": USERS[number % len(USERS)]}
        path = log / f"kind={quote('purchase' if number % 3 else STRANGE, safe='')}" / f"[{number}]*?.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, use_deprecated_int96_timestamps=number == 3)
    files = find_log(log, NAMES, folder)
    read = read_by(engine, files)
    assert len(read) == len(numbers) and {path for path, _ in read} == set(map(str, log.rglob("*.parquet")))
    assert {(row[0], row[1], row[2], row[4], row[5]) for row in read.values()} == {("3", "red", "id-0", MICROS, False)}
    strange = len([number for number in numbers if number % 3 == 0])
    assert Counter(row[3] for row in read.values()) == {"purchase": len(numbers) - strange, STRANGE: strange}
    assert files.count.notes == ["read from the folders' names: kind"]


@BOTH
def test_a_time_that_nobody_asks_for_is_not_read(request: pytest.FixtureRequest, folder: Path, name: str) -> None:
    engine, log = request.getfixturevalue(name), folder / f"{name}-none"
    log.mkdir()
    for number, stamp in enumerate(([[1]], pa.array([MOMENT]), ["soon"])):
        columns = {name: ["x"] for name in NAMES}
        pq.write_table(pa.table({**columns, "time": stamp}), log / f"{number}.parquet")
    files = find_log(log, {ours: theirs for ours, theirs in NAMES.items() if ours != "time"}, folder)
    assert len(files.parts) == 1 and [row[4] for row in read_by(engine, files).values()] == [0, 0, 0]
    with pytest.raises(UserError, match="0.parquet: the column 'time' is list<.*>; expected a time or a number"):
        find_log(log, NAMES, folder)


@BOTH
def test_a_damaged_file_is_named(request: pytest.FixtureRequest, folder: Path, name: str) -> None:
    engine, log = request.getfixturevalue(name), folder / f"{name}-damaged"
    log.mkdir()
    texts = [f"{number * 7919 % 10_007}" for number in range(10_000)]
    for file in ("good.parquet", "bad.parquet"):
        pq.write_table(pa.table(dict.fromkeys(NAMES, texts)), log / file)
    damaged = bytearray((log / "bad.parquet").read_bytes())
    damaged[20_000:20_500] = bytes(500)
    (log / "bad.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match="bad.parquet.*damaged or gone, write it again"):
        read_by(engine, find_log(log, NAMES, folder))


@BOTH
def test_a_log_at_a_url(request: pytest.FixtureRequest, folder: Path, name: str) -> None:
    engine, log = request.getfixturevalue(name), folder / f"{name}-url"
    places = [log / "kind=click/p[0].parquet", log / "kind=purchase/p[1].parquet"]
    for path in places:
        path.parent.mkdir(parents=True)
        table = {"user": [3, None], "query": ["red", "red"], "item": ["id-0", "id-0"]}
        pq.write_table(pa.table({**table, "time": pa.array([5, 6], pa.timestamp("us"))}), path)
    files = make_log(engine, find_log(f"file://{log}", NAMES, folder))
    found = rows(engine, "SELECT user_id, kind, micros, place FROM placed_log ORDER BY place")
    where = [files.where(row.pop("place")).removeprefix("file://") for row in found]
    assert where == [f"{path}, row {row}" for path in places for row in (1, 2)]
    assert [tuple(row.values()) for row in found] == [
        ("3", "click", 5), (None, "click", 6), ("3", "purchase", 5), (None, "purchase", 6),
    ]  # fmt: skip
    pq.write_table(pa.table({**table, "user": [3.5, 4.5], "kind": ["a", "b"], "time": [1, 2]}), places[0])
    with pytest.raises(
        UserError, match="url.*the column 'user' is neither text nor whole numbers.*copy the log to a disk"
    ):
        make_log(engine, find_log(f"file://{log}/kind=click", NAMES, folder))


@given(logs())
@settings(ALIKE, max_examples=40, phases=[Phase.explicit, Phase.generate])
def test_duckdb(duckdb: Engine, folder: Path, drawn: DrawnLog) -> None:
    check(duckdb, drawn, folder, counted=True)


@pytest.mark.spark
@given(logs())
@settings(ALIKE, max_examples=8, phases=[Phase.explicit, Phase.generate])
def test_spark(spark: Engine, folder: Path, drawn: DrawnLog) -> None:
    check(spark, drawn, folder, counted=False)
