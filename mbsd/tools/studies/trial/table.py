"""The table of a trial: floors and models, each view by itself, on the screen, in `summary.json` and `summary.md`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from mbsd.io.files import read_own_json, replace_text
from mbsd.tools.studies.study import mean_and_deviation, report
from mbsd.tools.studies.trial.page import ATTRIBUTES_START, comparison, model_name
from mbsd.tools.studies.trial.recipe import Kind
from mbsd.tools.studies.trial.settings import TITLES, Run, Trial
from mbsd.tools.studies.trial_report.inputs import VIEWS, Compared, read_comparison, shown_floor
from mbsd.tools.studies.trial_report.margins import RESAMPLES, Margin, margin

FLOORS = ("tfidf", "colours", "hog", "hog_colours", "all")
# Column -> kind of run, and the metric of its scores; those of clustering have a file of their own.
COLUMNS: dict[str, tuple[Kind | Literal["clustering"], str]] = {
    "attributes, ROC-AUC": ("attributes", "roc_auc"),
    "classification, accuracy": ("classification", "accuracy"),
    "macro-F1": ("classification", "macro_f1"),
    "clustering, NMI": ("clustering", "nmi"),
    "ARI": ("clustering", "ari"),
    "purity": ("clustering", "purity"),
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        view: what is read, of VIEWS.
        titles: of TITLES, beside which it was trained; "" of a floor that reads pictures alone.
        share: of the labels.
        values: column -> one value a seed; a floor has one.
    """

    model: str
    view: str
    titles: str
    share: float
    values: dict[str, list[float]]
    margins: dict[str, Margin] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """With means over seeds in the columns, None where there is no value."""
        found: dict[str, Any] = {
            "model": self.model, "reads": VIEWS[self.view],
            "titles": TITLES.get(self.titles, ""), "labels": self.share,
        }  # fmt: skip
        spread = {column: mean_and_deviation(values) for column, values in self.values.items() if values}
        found |= {column: spread[column][0] if column in spread else None for column in COLUMNS}
        found["deviation"] = {column: deviation for column, (_, deviation) in spread.items() if deviation is not None}
        found["seeds"] = max((len(values) for values in self.values.values()), default=0)
        found["margins"] = {
            column: {"floor": one.best, "value": one.value, "low": one.low, "high": one.high}
            for column, one in self.margins.items()
            if not math.isnan(one.value)
        }
        return found


def width(trial: Trial) -> int:
    """Letters of the table; narrower, names would be cut."""
    return 150 if len(trial.seeds) == 1 else 185


def tabulate(console: Console, trial: Trial, out: Path) -> None:
    """Gather the scores."""
    rows = [row for share in trial.label_shares for row in _rows(trial, out, share)]
    replace_text(out / "summary.json", json.dumps([row.as_json() for row in rows], indent=1, ensure_ascii=False) + "\n")
    told = "Scores of the test split; clustering of stage 1's vectors, which no label has trained."
    told += f" {ATTRIBUTES_START}" if "attributes" in trial.tasks else ""
    tables = [(told, _scores(trial, rows))]
    models = [row for row in rows if row.margins]
    tables.append(
        (
            "Less the best floor that reads no more, and 95 % of its differences over test items.",
            _margins(trial, models),
        )
    )
    if len(trial.starts) > 1:
        told = "at equal training time" if trial.equal_time else "with as many steps of fine-tuning"
        tables.append((f"Pre-trained less from scratch, {told}, mean ± deviation of seeds.", _worth(trial, rows)))
    report(console, out / "summary.md", "Trial", tables)


def _rows(trial: Trial, out: Path, share: float) -> Iterator[Row]:
    yield from _floor_rows(trial, out, share)
    if "pretrained" in trial.starts and share == max(trial.label_shares):
        yield from _stage1_rows(trial, out)
    compared = {
        (titles, task): read_comparison(comparison(trial, out, Run(titles, task, trial.seeds[0], share=share)))
        for titles in TITLES
        for task in trial.tasks
    }
    for start in trial.starts:
        for titles in TITLES:
            of_tasks: dict[str, Compared] = {task: compared[titles, task] for task in trial.tasks}
            for view in VIEWS:
                yield _model_row(Run(titles, "classification", trial.seeds[0], start, share), view, of_tasks)


def _floor_rows(trial: Trial, out: Path, share: float) -> Iterator[Row]:
    for titles in TITLES:
        floors = {
            task: _read(out / titles / f"{Run(titles, task, 0, share=share).table}_floors.json")["floors"]
            for task in trial.tasks
        }
        for name in FLOORS:
            told, view = shown_floor(name)
            if view == "image" and titles != "plain":
                continue  # the same pictures
            found: dict[str, Any] = {task: of_task[name] for task, of_task in floors.items()}
            found["clustering"] = found["classification"]["clustering"]
            values = {
                column: [found[kind][metric]] if kind in found else [] for column, (kind, metric) in COLUMNS.items()
            }
            yield Row(told, view, "" if view == "image" else titles, share, values)


def _stage1_rows(trial: Trial, out: Path) -> Iterator[Row]:
    """Vectors that no label has trained at all."""
    for titles in TITLES:
        runs = [Run(titles, "stage1", seed, is_first=seed == trial.seeds[0]) for seed in trial.seeds]
        scores = [_read(out / titles / f"{run.clusters}.json")["views"] for run in runs]
        for view in VIEWS:
            values = {
                column: [of_seed[view]["all"][metric] for of_seed in scores] if kind == "clustering" else []
                for column, (kind, metric) in COLUMNS.items()
            }
            yield Row("MBSD, stage 1 alone", view, titles, max(trial.label_shares), values)


def _model_row(one: Run, view: str, compared: Mapping[str, Compared]) -> Row:
    """Of all seeds of the fine-tunings that `one` is of."""
    model, margins = model_name(one.start), {}
    values: dict[str, list[float]] = {}
    for column, (kind, metric) in COLUMNS.items():
        values[column] = []
        if kind in compared:
            found = margin(compared[kind], model, view, metric, RESAMPLES)
            values[column] = [value for value in found.each if not math.isnan(value)]
            margins[column] = found
    return Row(model, view, one.titles, one.share, values, margins)


def _scores(trial: Trial, rows: Sequence[Row]) -> Table:
    table = _headed(trial, list(COLUMNS))
    for row in rows:
        table.add_row(*_named(trial, row), *(_shown(row.values[column]) for column in COLUMNS))
    return table


def _margins(trial: Trial, rows: Sequence[Row]) -> Table:
    columns = list(rows[0].margins) if rows else []
    table = _headed(trial, columns)
    for row in rows:
        table.add_row(*_named(trial, row), *(_above(row.margins[column]) for column in columns))
    return table


def _worth(trial: Trial, rows: Sequence[Row]) -> Table:
    """Differences by seed: both starts have the same seeds."""
    table = _headed(trial, list(COLUMNS))
    scratch = {(row.view, row.titles, row.share): row for row in rows if row.model == model_name("scratch")}
    for row in rows:
        if row.model == model_name("pretrained"):
            other = scratch[row.view, row.titles, row.share]
            differences = (
                [a - b for a, b in zip(row.values[column], other.values[column], strict=True)] for column in COLUMNS
            )
            table.add_row("difference", *_named(trial, row)[1:], *(_shown(found, sign="+") for found in differences))
    return table


def _headed(trial: Trial, columns: Sequence[str]) -> Table:
    names = ["model", "reads", "titles", *(["labels"] if len(trial.label_shares) > 1 else [])]
    table = Table()
    for heading in (*names, *columns):
        of_row = heading in names
        table.add_column(heading, justify="left" if of_row else "right", no_wrap=of_row)
    return table


def _named(trial: Trial, row: Row) -> list[str]:
    return [
        row.model,
        VIEWS[row.view],
        TITLES.get(row.titles, ""),
        *([f"{row.share:.0%}"] if len(trial.label_shares) > 1 else []),
    ]


def _shown(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    middle, deviation = mean_and_deviation(values)
    return f"{middle:{sign}.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def _above(found: Margin) -> str:
    if math.isnan(found.value):  # ROC-AUC of rows of one label
        return ""
    if found.low is None or found.high is None:
        return f"{found.value:+.3f}"
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_own_json(path, "remove it: the same command makes it again")
    return found
