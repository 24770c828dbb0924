"""The other engine: the same rows from the same SQL, on Spark."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from mbsd.catalog.groups import group_splits
from mbsd.catalog.mining.java import java_home
from mbsd.catalog.mining.mine import MiningReport, MiningSettings, mine_pairs
from mbsd.catalog.reader import Catalog
from mbsd.tools.bench.mining_log import write_log
from tests.catalog.helpers import items_of, small_catalog
from tests.catalog.test_mining import shop_events
from tests.catalog.test_mining import write_log as write_events
from tests.catalog.test_mining_input import BY_TIME, check_bad_rows, parquet_of_bytes, read_pairs

pytestmark = pytest.mark.spark
ROWS = 2_000_000


@pytest.fixture(autouse=True)
def quick_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Java that compiles once and collects in one thread: more pays for itself after minutes only."""
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")


def _both(log: Path, catalog: Catalog, folder: Path, settings: MiningSettings) -> dict[str, MiningReport]:
    """Mine with both engines and assert that neither table has a row that the other lacks."""
    reports, tables = {}, {}
    for engine in ("duckdb", "spark"):
        out = folder / f"{engine}.parquet"
        reports[engine] = mine_pairs(log, catalog, out, replace(settings, engine=engine, threads=2))
        tables[engine] = pq.read_table(out)
    assert tables["duckdb"].equals(tables["spark"])
    assert (folder / "duckdb.parquet").read_bytes() == (folder / "spark.parquet").read_bytes()
    same = [{**vars(report), "seconds": 0, "engine": "", "settings": {}} for report in reports.values()]
    assert same[0] == same[1]
    assert reports["spark"].engine.startswith("spark ")
    return reports


def test_two_million_rows(tmp_path: Path) -> None:
    write_log(tmp_path, rows=ROWS)
    settings = MiningSettings(memory_limit="2GB", spill=str(tmp_path / "spill"))
    report = _both(tmp_path / "log.parquet", Catalog(tmp_path / "catalog"), tmp_path, settings)["duckdb"]
    assert report.log_rows == ROWS
    assert min(report.positives, report.same_category, report.rewrites) > 5_000


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SparkSession]:
    """A session that all mining of a test uses: it starts once."""
    environment = {"JAVA_HOME": str(home)} if (home := java_home(tmp_path)) is not None else {}
    for name, value in {**environment, "PYSPARK_PYTHON": sys.executable}.items():
        monkeypatch.setenv(name, value)
    builder = SparkSession.builder.master("local[2]").config("spark.sql.shuffle.partitions", "4")
    session = builder.config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1").getOrCreate()
    yield session
    session.stop()


def test_every_match(tmp_path: Path, session: SparkSession) -> None:
    """Negatives enough that rounds follow, of which the last reach all of a category."""
    items, events = shop_events()
    catalog, log = small_catalog(tmp_path / "catalog", items), tmp_path / "log.parquet"
    write_events(log, events)
    for match in [("length", "frequency"), ("length",), ("frequency",), ()]:
        settings = MiningSettings(
            match=match, replace_rewrites=match != ("frequency",), negatives_per_positive=3, rewrites_per_positive=2
        )
        report = _both(log, catalog, tmp_path, settings)["duckdb"]
        assert report.rounds > 1 and min(report.same_category, report.rewrites) > 300
        assert (report.rewrites_replaced > 0) == (match == ("length", "frequency"))
        assert set(report.length_and_frequency) == {"same-category", "rewrite"}
        assert session.sparkContext._jsc is not None  # what somebody else has started goes on


def test_bad_rows_and_times(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path / "catalog", items_of(12))
    log = parquet_of_bytes(tmp_path / "log.parquet", as_text=True)
    reports = _both(log, catalog, tmp_path, MiningSettings(**BY_TIME))
    check_bad_rows(reports["spark"], read_pairs(tmp_path / "spark.parquet", catalog))


def test_items_of_a_group(tmp_path: Path) -> None:
    """Both engines get the items' splits from us, so a group's rows are alike in both."""
    items = [replace(item, title=f"title {n % 4}") for n, item in enumerate(items_of(12))]
    catalog = small_catalog(tmp_path / "catalog", items)
    log = parquet_of_bytes(tmp_path / "log.parquet", as_text=True)
    reports = _both(log, catalog, tmp_path, MiningSettings())
    assert reports["spark"].groups.startswith("12 of 12 items are in groups with an equal title or picture (4 groups")
    rows, splits = read_pairs(tmp_path / "spark.parquet", catalog), group_splits(catalog)
    assert len(rows) > 6 and splits != catalog.table()["split"].to_pylist()
    assert all(row[4] == splits[item] for (_, item), row in rows.items())


def test_a_machine_without_java(tmp_path: Path) -> None:
    """The extra `spark` brings a Java of its own, which is found where the machine has none."""
    catalog = small_catalog(tmp_path / "catalog", items_of(12))
    log = parquet_of_bytes(tmp_path / "log.parquet")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sh", "dirname", "basename", "cat", "rm", "uname", "ps", "nice", "env"):
        tool = next((Path(p, name) for p in ("/usr/bin", "/bin") if Path(p, name).exists()), None)
        if tool is not None:
            (tools / name).symlink_to(tool)
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    words = [
        "-m",
        "mbsd.cli.main",
        "pairs",
        "mine",
        "--log",
        log,
        "--catalog",
        catalog.path,
        "--out",
        tmp_path / "pairs.parquet",
    ]
    words += ["--engine", "spark", "--threads", "2", "--min-buyers", "3"]
    run = subprocess.run(
        [sys.executable, *map(str, words)], env={**environment, "PATH": str(tools)}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert {key for key, row in read_pairs(tmp_path / "pairs.parquet", catalog).items() if row[0]} == {("red kind", 0)}
    assert (tmp_path / "pairs.report" / "report.json").is_file() and "1 purchases" in run.stdout
