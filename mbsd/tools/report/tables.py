"""The paper's tables from evaluated runs: Table 1 (attributes), 4 (alignment), 5 (classification), and more.

Vectors that were measured without training have two tables: retrieval, a row for each model and direction, and
zero-shot, neighbours and probe side by side, a row for each model and view.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table
from rich.text import Text

from mbsd.io.console import markdown_of
from mbsd.metrics.binary import BINARY
from mbsd.tools.report.gather import Evaluation

FIVE = {"accuracy": "Accuracy", "precision": "P", "recall": "R", "f1": "F1", "roc_auc": "ROC-AUC"}
assert tuple(FIVE) == BINARY
# Task -> number and title, and the metrics that the table has.
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "attributes": ("Table 1: attribute prediction", FIVE),
    "alignment": ("Table 4: product alignment", FIVE),
    "classification": ("Table 5: classification", {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}),
    "sensitive": ("Sensitive products", {**FIVE, "average_precision": "Average precision"}),
    "clustering": ("Clustering", {"nmi": "NMI", "ari": "ARI", "purity": "Purity"}),
    "retrieval": (
        "Retrieval",
        {"r1": "R@1", "r5": "R@5", "r10": "R@10", "p1": "P@1", "p10": "P@10", "mrr": "MRR", "ndcg10": "nDCG@10",
         "map": "MAP"},
    ),
    "frozen": (
        "Categories by frozen vectors",
        {"zero_shot/accuracy": "Zero-shot", "zero_shot/top5": "top 5", "zero_shot/macro_f1": "Macro-F1",
         "neighbours/accuracy_k1": "1 neighbour", "neighbours/accuracy_k20": "20 neighbours",
         "probe/accuracy": "Probe", "probe/macro_f1": "Macro-F1 of the probe"},
    ),
    "matching": ("Matching without training", {**FIVE, "average_precision": "Average precision"}),
}  # fmt: skip
# Tables of several tasks, whose metrics are named TASK/METRIC; any other is of the task that it is named after.
TASKS_OF = {"frozen": ("zero_shot", "neighbours", "probe")}
READS = {"full": "", "text": " (text)", "image": " (image)", "mean": " (mean of both)"}


@dataclass(frozen=True)
class Cell:
    """A metric of a model, over the seeds of its runs.

    Attributes:
        mean: between 0 and 1, as all values here.
        deviation: standard deviation; None: a single run.
        low, high: lowest and highest end of the runs' 95 % intervals; None: they have none.
        runs: number of seeds.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    runs: int

    def __str__(self) -> str:
        spread = f" ± {100 * self.deviation:.2f}" if self.deviation is not None else ""
        return f"{100 * self.mean:.2f}{spread}"


@dataclass
class PaperTable:
    """One task's table: a row for each model and view, a column for each data set and metric.

    Attributes:
        metrics: name in the evaluation -> heading.
        rows: (model, view) -> (dataset, metric) -> value.
    """

    task: str
    title: str
    metrics: dict[str, str]
    datasets: list[str]
    rows: dict[tuple[str, str], dict[tuple[str, str], Cell]] = field(default_factory=dict)

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(dataset, metric) of each column: those for which at least one row has a value."""
        having = {key for cells in self.rows.values() for key in cells}
        return [
            (dataset, metric) for dataset in self.datasets for metric in self.metrics if (dataset, metric) in having
        ]

    def best(self, column: tuple[str, str]) -> str:
        """The highest value of a column, as the table prints it."""
        return max(
            (cells[column] for cells in self.rows.values() if column in cells), key=lambda cell: cell.mean
        ).__str__()

    def lines(self) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
        """Headings, and rows (model, cells); a cell is (text in percent, whether it is the best of its column)."""
        headings = ["Model"]
        for dataset, metric in self.columns:
            headings.append((f"{dataset}: " if len(self.datasets) > 1 else "") + self.metrics[metric])
        body = []
        for (model, view), cells in self.rows.items():
            shown = [str(cells[column]) if column in cells else "" for column in self.columns]
            best = [
                len(self.rows) > 1 and text != "" and text == self.best(column)
                for text, column in zip(shown, self.columns, strict=True)
            ]
            body.append((model + READS.get(view, f" ({view})"), list(zip(shown, best, strict=True))))
        return headings, body

    def markdown(self) -> str:
        """The table as Markdown, the best value of each column in bold."""
        headings, body = self.lines()
        table = Table()
        for n, heading in enumerate(headings):
            table.add_column(Text(heading), justify="right" if n else "left")
        for model, cells in body:
            table.add_row(
                *map(Text, [model.replace("|", "\\|"), *(f"**{text}**" if best else text for text, best in cells)])
            )
        return markdown_of(table)

    def csv(self) -> str:
        """The table as CSV, a line for each value, unrounded and between 0 and 1."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["dataset", "model", "view", "metric", "mean", "deviation", "low", "high", "runs"])
        for (model, view), cells in self.rows.items():
            for (dataset, metric), cell in cells.items():
                values = ["" if value is None else value for value in (cell.deviation, cell.low, cell.high)]
                writer.writerow([dataset, model, view, metric, cell.mean, *values, cell.runs])
        return text.getvalue()


def paper_tables(evaluations: Sequence[Evaluation]) -> list[PaperTable]:
    """A table for each evaluated task, in the paper's order; runs of one name count as seeds of one model."""
    tables = []
    for task, (title, metrics) in TABLES.items():
        of_task = [evaluation for evaluation in evaluations if table_of(evaluation) == task]
        if not of_task:
            continue
        split = {evaluation.split for evaluation in of_task}
        datasets = list(dict.fromkeys(evaluation.dataset for evaluation in of_task))
        table = PaperTable(task, f"{title} ({' and '.join(sorted(split))})", metrics, datasets)
        for model in dict.fromkeys(evaluation.name for evaluation in of_task):
            runs = [evaluation for evaluation in of_task if evaluation.name == model]
            for view in dict.fromkeys(view for run in runs for view in run.views):
                table.rows[model, view] = {
                    (dataset, metric): _cell(chosen, view, metric)
                    for dataset in datasets
                    for metric in metrics
                    if (chosen := [run for run in runs if run.dataset == dataset and _has(run, view, metric)])
                }
        tables.append(table)
    return tables


def table_of(evaluation: Evaluation) -> str:
    """The table, as of TABLES, that an evaluation stands in."""
    return next((table for table, tasks in TASKS_OF.items() if evaluation.task in tasks), evaluation.task)


def _has(run: Evaluation, view: str, metric: str) -> bool:
    task, _, name = metric.rpartition("/")
    return task in ("", run.task) and name in run.views.get(view, {}).get("all", {})


def _cell(runs: Sequence[Evaluation], view: str, metric: str) -> Cell:
    metric = metric.rpartition("/")[2]
    values = [run.views[view]["all"][metric] for run in runs]
    ends = [run.views[view]["interval"][metric] for run in runs if metric in run.views[view].get("interval", {})]
    return Cell(
        float(np.mean(values)),
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
        min(low for low, _ in ends) if ends else None,
        max(high for _, high in ends) if ends else None,
        len(values),
    )
