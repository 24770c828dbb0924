"""DuckDB, Spark and a plain Python reader agree on every row of a log, or on the reason why it was left out."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from mbsd.catalog.mining.log_files import LogFiles, find_log
from mbsd.catalog.mining.log_tables import make_log, open_log
from mbsd.catalog.mining.mine import MiningReport, MiningSettings
from mbsd.catalog.mining.dialect import UndecodableText
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


@given(logs())
@settings(ALIKE, max_examples=400, phases=[Phase.explicit, Phase.generate])
def test_duckdb(duckdb: Engine, folder: Path, drawn: DrawnLog) -> None:
    check(duckdb, drawn, folder, counted=True)


@pytest.mark.spark
@given(logs())
@settings(ALIKE, max_examples=8, phases=[Phase.explicit, Phase.generate])
def test_spark(spark: Engine, folder: Path, drawn: DrawnLog) -> None:
    check(spark, drawn, folder, counted=False)
