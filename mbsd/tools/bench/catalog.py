"""`mbsd bench catalog`: what a catalogue without pictures costs, built at once, and in parts that are merged."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mbsd.errors import UserError
from mbsd.io.files import digest_of
from mbsd.tools.bench.processes import run_measured

TIME_LIMIT = 24 * 3600.0
REPEATED = 0.01  # share of the rows that have an earlier row's id
COLOURS, SEASONS = ("red", "blue", "green", "black", "white"), ("spring", "summer", "autumn", "winter")


@dataclass(frozen=True)
class CatalogBench:
    """What is measured.

    Attributes:
        rows: of the generated items.
        parts: number of parts.
        folder: where items, parts and catalogues are for the time of the bench; None: the system's temporary folder.
    """

    rows: int
    parts: int
    folder: Path | None


def measure_catalog(bench: CatalogBench) -> dict[str, Any]:
    """Build a catalogue at once and in parts, one after the other with one worker each, merge it, and print a table.

    Returns:
        `steps`: for each its name, rows, cpu_seconds, seconds, peak_rss_bytes and rows_per_cpu_second. The part without
        rows reads those of all others and builds nothing. `bytes` of the catalogue.

    Raises:
        UserError: no rows or parts.
    """
    if bench.rows < 1 or bench.parts < 1:
        raise UserError(f"--rows {bench.rows}, --parts {bench.parts}; expected at least 1 of each")
    if bench.folder is not None:
        bench.folder.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="mbsd-bench-", dir=bench.folder) as name:
        scratch = Path(name)
        items, whole, merged = (scratch / file for file in ("items.jsonl", "whole", "merged"))
        with items.open("w", encoding="utf-8") as file:
            file.writelines(_lines(bench.rows))
        build = ["build", str(items), "--workers", "1", "--out"]
        steps = [_step(console, "at once", bench.rows, [*build, str(whole)])]
        expected, size = _digests(whole), sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
        shutil.rmtree(whole)  # so that a bench needs the room of two catalogues, not of three
        parts = [str(scratch / f"{number}") for number in range(1, bench.parts + 1)]
        for number, part in enumerate(parts, start=1):
            words = [*build, part, "--part", f"{number}/{bench.parts}"]
            steps.append(_step(console, f"part {number} of {bench.parts}", bench.rows, words))
        most = bench.rows + 1  # of so many parts, the last one has no rows
        words = [*build, str(scratch / "reading"), "--part", f"{most}/{most}"]
        steps.append(_step(console, "a part without rows", bench.rows, words))
        steps.append(_step(console, "merge", bench.rows, ["merge", *parts, "--out", str(merged)]))
        if _digests(merged) != expected:
            raise RuntimeError("the merged catalogue is not the one that was built at once")
    _print(console, steps)
    return {"rows": bench.rows, "parts": bench.parts, "bytes": size, "steps": steps}


def _lines(rows: int) -> Iterator[str]:
    """Items of six words, a category of 400 and two attributes."""
    of = random.Random(0)
    words = [f"word{number}" for number in range(5000)]
    for row in range(rows):
        own = row if of.random() > REPEATED else of.randrange(max(row, 1))
        item = {
            "item_id": f"shop-{own * 7919 % 1_000_000_007:010d}", "title": " ".join(of.choices(words, k=6)),
            "category": f"category {row % 400}",
            "attributes": {"colour": COLOURS[row % len(COLOURS)], "season": SEASONS[row % len(SEASONS)]},
        }  # fmt: skip
        yield json.dumps(item) + "\n"


def _step(console: Console, name: str, rows: int, words: list[str]) -> dict[str, Any]:
    console.print(f"[dim]{name}", highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        nothing = Path(scratch) / "nothing"
        nothing.mkdir()
        usage = run_measured([sys.executable, "-m", "mbsd.cli", "catalog", *words], nothing, time_limit=TIME_LIMIT)
    if usage.exit_code != 0:
        raise RuntimeError(f"{name}: exit code {usage.exit_code}\n{usage.output}")
    return {
        "name": name, "rows": rows, "cpu_seconds": usage.cpu_seconds, "seconds": usage.seconds,
        "peak_rss_bytes": usage.peak_rss_bytes, "rows_per_cpu_second": rows / usage.cpu_seconds,
    }  # fmt: skip


def _digests(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): digest_of(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _print(console: Console, steps: list[dict[str, Any]]) -> None:
    table = Table(
        title=f"A catalogue of {steps[0]['rows']:,} rows without pictures; merged, it is the same byte for byte"
    )
    for heading in ("step", "CPU s", "wall s", "peak GB", "rows / CPU s"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for step in steps:
        table.add_row(
            step["name"], f"{step['cpu_seconds']:.1f}", f"{step['seconds']:.1f}", f"{step['peak_rss_bytes'] / 1e9:.2f}",
            f"{step['rows_per_cpu_second']:,.0f}",
        )  # fmt: skip
    console.print(table)
