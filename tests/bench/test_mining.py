from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mbsd.catalog.reader import Catalog
from mbsd.io.files import facts_of, replace_text
from mbsd.tools.bench.mining import SUMS, _is_there
from mbsd.tools.bench.mining_log import ROWS_PER_ITEM, write_log
from mbsd.tools.bench.processes import run_measured
from tests.damage import damage

CHILD = """
import os, subprocess, sys, time
open(sys.argv[1] + "/spilled", "wb").write(bytes(5_000_000))
held = bytearray(os.urandom(1000)) * 200_000
start = time.process_time()
while time.process_time() - start < 0.5:
    pass
os.remove(sys.argv[1] + "/spilled")
if len(sys.argv) > 2:
    print("in", os.getpid(), flush=True)
    sys.exit(subprocess.run([sys.executable, *sys.argv[2:]]).returncode)
time.sleep(0.2)
"""


def test_what_a_process_and_its_child_use(tmp_path: Path) -> None:
    spill, script = tmp_path / "spill", tmp_path / "child.py"
    spill.mkdir()
    script.write_text(CHILD)
    usage = run_measured([sys.executable, str(script), str(spill), str(script), str(spill)], spill, time_limit=60)
    assert usage.exit_code == 0 and usage.output.startswith("in ")
    assert 0.8 < usage.cpu_seconds < 10 and usage.seconds > 0.5
    assert 400e6 < usage.peak_rss_bytes < 1.5e9 and usage.peak_spill_bytes == 5_000_000


def test_a_process_that_takes_too_long_ends_with_all_it_started(tmp_path: Path) -> None:
    spill, script = tmp_path / "spill", tmp_path / "child.py"
    spill.mkdir()
    script.write_text(CHILD)
    words = [sys.executable, str(script), str(spill), "-c", "import time; time.sleep(600)"]
    usage = run_measured(words, spill, time_limit=8)  # long enough for both to start on busy cores
    assert usage.exit_code is None and usage.seconds < 30
    assert not psutil.pid_exists(int(usage.output.split()[1]))
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in alive if "time.sleep(600)" in " ".join(p.cmdline())]


def test_a_damaged_log_of_an_earlier_bench_is_named_and_not_taken(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), soft_wrap=True)
    log = tmp_path / "log.parquet"
    assert not _is_there(console, tmp_path)
    log.write_bytes(bytes(range(100)))
    assert _is_there(console, tmp_path), "an older bench's, of which nothing was recorded"
    replace_text(tmp_path / SUMS, json.dumps(facts_of(log)))
    assert _is_there(console, tmp_path) and not console.file.getvalue()  # type: ignore[attr-defined]
    damage(log)
    assert not _is_there(console, tmp_path)
    assert f"{log} is not as it was written" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_log_is_seeded_and_follows_a_power_law(tmp_path: Path) -> None:
    rows = 200_000
    write_log(tmp_path / "a", rows=rows, seed=1)
    write_log(tmp_path / "b", rows=rows, seed=1)
    write_log(tmp_path / "c", rows=rows, seed=2)
    first, again, other = (pq.read_table(tmp_path / name / "log.parquet") for name in "abc")
    assert first.equals(again) and not first.equals(other) and first.num_rows == rows
    known = set(Catalog(tmp_path / "a/catalog").table()["item_id"].to_pylist())
    assert len(known) == rows // ROWS_PER_ITEM and set(pc.unique(first["item"]).to_pylist()) <= known
    counts = sorted(pc.value_counts(first["item"]).field("counts").to_pylist(), reverse=True)
    # Popularity r^(-2/3): the first tenth of the items has 10^(-1/3) of the rows, strays aside.
    assert sum(counts[: len(known) // 10]) / rows == pytest.approx(10 ** (-1 / 3), abs=0.05)


def test_the_command(tmp_path: Path) -> None:
    words = ["--rows", "20000", "--rows", "60000", "--no-spark", "--json", str(tmp_path / "out/numbers.json")]
    run = subprocess.run([sys.executable, "-m", "mbsd.cli", "bench", "mining", *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out/numbers.json").read_text())
    assert [(r["rows"], r["way"], r["ended"]) for r in result["runs"]] == [
        (20_000, "duckdb", "done"), (20_000, "naive", "done"), (60_000, "duckdb", "done"), (60_000, "naive", "done"),
    ]  # fmt: skip
    for r in result["runs"]:
        assert r["cpu_seconds"] > 0.1 and r["peak_rss_bytes"] > 5e7
    mined, naive = result["runs"][0], result["runs"][1]
    assert mined["log_rows"] == 20_000 and mined["pairs"] > mined["positives"] > 100
    # Both draw all there are, and of these the rewrites have taken some.
    assert 0 <= naive["candidates"] - mined["same_category"] <= mined["rewrites"]
    assert "rows ^" in run.stdout and isinstance(result["growth_exponent"], float)
