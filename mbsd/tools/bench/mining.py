"""`mbsd bench mining`: what mining a log costs, by rows and engine, and what a join of whole categories would cost."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mbsd.catalog.mining.mine import MiningSettings, mine_pairs
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError, exits_cleanly
from mbsd.io.files import difference, facts_of, read_own_json, replace_text
from mbsd.tools.bench.mining_naive import mine_naively
from mbsd.tools.bench.processes import Usage, run_measured

SUMS = "log.json"  # beside a log: its size and checksum
TIME_LIMIT = 3600.0
NAIVE_TIME_LIMIT = 600.0
SPARK_MEMORY = "2GB"


@dataclass(frozen=True)
class MiningBench:
    """What is measured.

    Attributes:
        rows: sizes of the generated logs.
        spark: also mine with Spark, logs of up to `compare_rows` rows.
        naive: also draw by a join of all items with all queries of their category, up to `compare_rows` rows.
        compare_rows: the largest log that Spark and the join get.
        threads: of each engine.
        memory_limit: of DuckDB, for mining and for the join.
        folder: the logs are kept and reused there; None: a temporary folder.
    """

    rows: tuple[int, ...]
    spark: bool
    naive: bool
    compare_rows: int
    threads: int
    memory_limit: str
    folder: Path | None


def measure_mining(bench: MiningBench) -> dict[str, Any]:
    """Generate a log of each size, mine it with each engine in its own process, and print a table.

    Returns:
        `runs`: for each log and way its rows, way, exit_code, seconds, cpu_seconds, peak_rss_bytes, peak_spill_bytes
        and the counts of the mining report. `growth_exponent` of DuckDB's CPU seconds by rows: 1 is linear.

    Raises:
        UserError: a log of fewer than 1000 rows.
    """
    folder, threads, memory_limit = bench.folder, bench.threads, bench.memory_limit
    for size in bench.rows:
        if size < 1000:
            raise UserError(f"--rows {size}; expected at least 1000")
    console = Console(soft_wrap=True)
    runs: list[dict[str, Any]] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mbsd-bench-", dir=folder) as scratch:
        for size in sorted(bench.rows):
            log = (folder or Path(scratch)) / f"{size}"
            if not _is_there(console, log):
                console.print(f"[dim]generating {size} rows", highlight=False)
                _child({"way": "generate", "folder": str(log), "rows": size}, Path(scratch))
                replace_text(log / SUMS, json.dumps(facts_of(log / "log.parquet")) + "\n")
            ways = ["duckdb"]
            ways += ["spark"] if bench.spark and size <= bench.compare_rows else []
            ways += ["naive"] if bench.naive and size <= bench.compare_rows else []
            for way in ways:
                task = {"way": way, "folder": str(log), "threads": threads, "memory_limit": memory_limit}
                console.print(f"[dim]{way}, {size} rows", highlight=False)
                usage, found = _child(task, Path(scratch))
                ended = {0: "done", 2: "out of memory", None: "out of time"}.get(usage.exit_code, "failed")
                last = usage.output.strip().splitlines()[-1:] if usage.exit_code else []
                measured = {name: value for name, value in asdict(usage).items() if name != "output"}
                runs.append({"rows": size, "way": way, "ended": ended, **measured, **found, "error": " ".join(last)})
    result = {
        "runs": runs,
        "growth_exponent": _growth(runs),
        "threads": threads,
        "memory_limit": memory_limit,
        "spark_memory": SPARK_MEMORY,
    }
    _print(console, result)
    return result


def _is_there(console: Console, folder: Path) -> bool:
    """Whether a log of an earlier bench lies there, as it was written; a damaged one is named."""
    log, sums = folder / "log.parquet", folder / SUMS
    if not log.is_file():
        return False
    wrong = difference(log, read_own_json(sums, "remove it and the log beside it")) if sums.exists() else ""
    if wrong:
        console.print(f"{log} is not as it was written ({wrong}): it is generated again", highlight=False)
    return not wrong


def _child(task: dict[str, Any], scratch: Path) -> tuple[Usage, dict[str, Any]]:
    """Run a task in its own process; return the resources it used, and the numbers it wrote."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        spill, result = Path(name) / "spill", Path(name) / "result.json"
        spill.mkdir()
        words = [sys.executable, "-m", __name__, json.dumps({**task, "spill": str(spill), "result": str(result)})]
        limit = NAIVE_TIME_LIMIT if task["way"] == "naive" else TIME_LIMIT
        usage = run_measured(words, spill, time_limit=limit)
        if usage.exit_code not in (0, 2, None) or (usage.exit_code and task["way"] == "generate"):
            raise RuntimeError(f"{task}: exit code {usage.exit_code}\n{usage.output}")
        return usage, json.loads(result.read_text(encoding="utf-8")) if usage.exit_code == 0 else {}


def _growth(runs: list[dict[str, Any]]) -> float | None:
    """Slope of log(CPU seconds) over log(rows) in DuckDB's runs; None where only one size was measured."""
    points = [(run["rows"], run["cpu_seconds"]) for run in runs if run["way"] == "duckdb" and run["ended"] == "done"]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def _print(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"Mining, {result['threads']} threads, memory limit {result['memory_limit']}")
    for heading in ("rows", "way", "", "CPU s", "wall s", "peak GB", "spill GB", "pairs"):
        table.add_column(heading, justify="left" if heading in ("way", "") else "right")
    for run in result["runs"]:
        table.add_row(
            f"{run['rows']:,}", run["way"], run["ended"], f"{run['cpu_seconds']:.1f}", f"{run['seconds']:.1f}",
            f"{run['peak_rss_bytes'] / 1e9:.2f}", f"{run['peak_spill_bytes'] / 1e9:.2f}", f"{run.get('pairs', '')}",
        )  # fmt: skip
    console.print(table)
    if result["growth_exponent"] is not None:
        console.print(f"CPU seconds of DuckDB grow as rows ^ {result['growth_exponent']:.2f}", highlight=False)


@exits_cleanly
def _run_task(text: str) -> None:
    """In the child process: generate a log or mine it, and write the numbers to the task's result file."""
    task = json.loads(text)
    folder = Path(task["folder"])
    found: dict[str, Any] = {}
    if task["way"] == "generate":
        from mbsd.tools.bench.mining_log import write_log

        write_log(folder, rows=task["rows"])
    else:
        settings = MiningSettings(
            threads=task["threads"], memory_limit=task["memory_limit"], spill=task["spill"], engine="duckdb"
        )
        catalog, log = Catalog(folder / "catalog"), folder / "log.parquet"
        if task["way"] == "naive":
            found = {"candidates": mine_naively(log, catalog, settings)}
        else:
            if task["way"] == "spark":
                settings = replace(settings, engine="spark", memory_limit=SPARK_MEMORY)
            report = mine_pairs(log, catalog, Path(task["result"]).with_name("pairs.parquet"), settings)
            found = {"pairs": sum(report.split_rows.values()), **asdict(report)}
            del found["settings"], found["seconds"]
    replace_text(Path(task["result"]), json.dumps(found))


if __name__ == "__main__":
    _run_task(sys.argv[1])
