"""What all studies do: draw the shop where one is asked for, plan, run what is not done, write tables and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from mbsd.errors import UserError
from mbsd.io.console import markdown_of
from mbsd.tools.studies.chains import Cell, plan
from mbsd.tools.studies.commands import Commands, LaunchConfig, refuse_without_launchers
from mbsd.tools.studies.settings import StudyConfig
from mbsd.tools.studies.shop import draw_shop
from mbsd.tools.studies.steps import run_steps, same_settings


def start_commands(out: Path, launch: LaunchConfig) -> Commands:
    """What runs a study's commands, with their logs in `out/logs`.

    Raises:
        UserError: there are no launchers in this installation.
    """
    refuse_without_launchers()
    out.mkdir(parents=True, exist_ok=True)
    return Commands(Console(soft_wrap=True), out / "logs", launch)


def run_study(config: StudyConfig, evaluations: dict[str, dict[str, Any]]) -> tuple[Commands, list[Cell]]:
    """Everything up to the scores of every cell (`Cell.scores`).

    Args:
        evaluations: name -> dotted settings of `launchers/evaluate.py`.
    """
    out = Path(config.out)
    commands = start_commands(out, config.launch)
    if config.shop is not None:
        same_settings(out, "shop", asdict(config.shop), "out")
    shop = draw_shop(commands, out, config.shop) if config.shop is not None else None
    steps, cells = plan(config, shop, evaluations)
    run_steps(commands, out, steps, "out")
    return commands, cells


def read_scores(path: Path) -> dict[str, Any]:
    """What `launchers/evaluate.py` wrote."""
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return scores


def roc_auc(metrics: Mapping[str, float], cell: Cell) -> float:
    """Of the metrics of a cell's test rows, or of some of them.

    Raises:
        UserError: they have one label only.
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
    """The numbers as they are; the first row's keys head the columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def tell(commands: Commands, path: Path, title: str, tables: Iterable[tuple[str, Table]]) -> None:
    """Show tables on the screen and write them to a Markdown file; each is a line about it and the table."""
    page = [f"# {title}\n"]
    for text, table in tables:
        commands.console.print(f"\n{text}\n", markup=False, highlight=False)
        commands.console.print(table)
        page += [f"{text}\n", markdown_of(table)]
    path.write_text("\n".join(page), encoding="utf-8")
