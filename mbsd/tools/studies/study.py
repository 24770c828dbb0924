"""What all studies do: draw the shop if there is to be one, plan, run what is not done, write tables and a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from mbsd.errors import UserError
from mbsd.io.console import markdown_of
from mbsd.io.files import read_own_json, replace_text, replacing
from mbsd.tools.studies.chains import Cell, plan
from mbsd.tools.studies.launches import run_launches
from mbsd.tools.studies.runner import Runner, start_runner
from mbsd.tools.studies.settings import StudyConfig
from mbsd.tools.studies.settings_files import same_settings
from mbsd.tools.studies.shop import Shop, shop_below, shop_commands


def run_study(config: StudyConfig, evaluations: dict[str, dict[str, Any]]) -> tuple[Runner, list[Cell]]:
    """Everything up to the scores of every cell (`Cell.scores`).

    Args:
        evaluations: name -> dotted settings of `launchers/evaluate.py`.
    """
    out, shop = Path(config.out), shop_of(config)
    runner = start_runner(out, config.launch)
    if config.shop is not None:
        same_settings(out, "shop", asdict(config.shop), "out")
        runner.run(shop_commands(out, config.shop))
    launches, cells = plan(config, shop, evaluations)
    run_launches(runner, out, launches, "out")
    return runner, cells


def shop_of(config: StudyConfig) -> Shop | None:
    """The catalogue and tables that a study names itself; None: each YAML file names its own."""
    if config.shop is not None:
        return shop_below(Path(config.out))
    if config.tables is None:
        return None
    return Shop(Path(config.tables.catalog), Path(config.tables.pairs), Path(config.tables.attributes))


def read_scores(path: Path) -> dict[str, Any]:
    """The JSON that `launchers/evaluate.py` wrote."""
    scores: dict[str, Any] = read_own_json(path, "remove it: the same command scores again")
    return scores


def roc_auc(metrics: Mapping[str, float], cell: Cell) -> float:
    """The ROC-AUC among the metrics of a cell's test rows.

    Raises:
        UserError: there is none, as the rows have one label only.
    """
    if "roc_auc" not in metrics:
        raise UserError(f"{cell.folder}: the test rows have one label only, so there is no ROC-AUC; use a larger table")
    return metrics["roc_auc"]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of the sample (n - 1; None of one value)."""
    return mean(values), stdev(values) if len(values) > 1 else None


def percent(values: Sequence[float]) -> str:
    """`81.74 ± 0.30`, as the paper has it."""
    middle, deviation = mean_and_deviation(values)
    return f"{100 * middle:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows unrounded; the first row's keys head the columns."""
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def report(console: Console, path: Path, title: str, tables: Iterable[tuple[str, Table]]) -> None:
    """Print tables and write them to a Markdown file; each comes with a line about it."""
    page = [f"# {title}\n"]
    for text, table in tables:
        console.print(f"\n{text}\n", markup=False, highlight=False)
        console.print(table)
        page += [f"{text}\n", markdown_of(table)]
    replace_text(path, "\n".join(page))
