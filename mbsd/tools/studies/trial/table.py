"""The table of a trial: floors and models, each view by itself, on the screen, in `summary.json` and `summary.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mbsd.io.files import read_own_json, replace_text
from mbsd.tools.studies.study import mean_and_deviation, report
from mbsd.tools.studies.trial.margins import Answers, margin
from mbsd.tools.studies.trial.settings import STARTS, TASKS, TITLES, Run, Trial, labels_part

FLOORS = {
    "tfidf": "TF-IDF", "colours": "colour histogram", "hog": "HOG", "hog_colours": "HOG + colours",
    "all": "TF-IDF, colours, HOG",
}  # fmt: skip
VIEWS = {"full": "title and image", "text": "title", "image": "image"}
FLOOR_VIEWS = {"tfidf": "text", "colours": "image", "hog": "image", "hog_colours": "image", "all": "full"}
# Column -> kind of run, and the metric of its scores; those of clustering have a file of their own.
COLUMNS = {
    "attributes, ROC-AUC": ("attributes", "roc_auc"),
    "classification, accuracy": ("classification", "accuracy"),
    "macro-F1": ("classification", "macro_f1"),
    "clustering, NMI": ("clustering", "nmi"),
    "ARI": ("clustering", "ari"),
    "purity": ("clustering", "purity"),
}
WIDTH = 150  # of the table, letters; narrower, names would be cut


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        view: what is read, of VIEWS.
        titles: of TITLES.
        share: of the labels.
        values: column -> one value a seed; a floor has one.
    """

    model: str
    view: str
    titles: str
    share: float
    values: dict[str, list[float]]
    margins: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """With means over seeds in the columns, None where there is no value."""
        found: dict[str, Any] = {
            "model": self.model, "reads": VIEWS[self.view],
            "titles": "" if self.view == "image" else TITLES[self.titles], "labels": self.share,
        }  # fmt: skip
        spread = {column: mean_and_deviation(values) for column, values in self.values.items() if values}
        found |= {column: spread[column][0] if column in spread else None for column in COLUMNS}
        found["deviation"] = {column: deviation for column, (_, deviation) in spread.items() if deviation is not None}
        found["seeds"] = max((len(values) for values in self.values.values()), default=0)
        return found | {"margins": self.margins}


def tabulate(console: Console, trial: Trial, out: Path) -> None:
    """Gather the scores."""
    rows = [row for share in trial.label_shares for row in _rows(trial, out, share)]
    replace_text(out / "summary.json", json.dumps([row.as_json() for row in rows], indent=1, ensure_ascii=False) + "\n")
    tables = [("Scores of the test split; clustering of vectors that no category has trained.", _scores(trial, rows))]
    models = [row for row in rows if row.margins]
    tables.append(
        ("Less the best floor that reads no more, and 95 % of its differences over test rows.", _margins(trial, models))
    )
    if len(trial.starts) > 1:
        told = "at equal training time" if trial.equal_time else "with as many steps of fine-tuning"
        tables.append((f"Pre-trained less from scratch, {told}, mean ± deviation of seeds.", _worth(trial, rows)))
    report(console, out / "summary.md", "Trial", tables)


def _rows(trial: Trial, out: Path, share: float) -> Iterator[Row]:
    floors = list(_floor_rows(out, share))
    yield from floors
    if "pretrained" in trial.starts and share == max(trial.label_shares):
        yield from _stage1_rows(trial, out)
    for start in trial.starts:
        for titles in TITLES:
            for view in VIEWS:
                if view != "image" or titles == "plain":
                    yield _model_row(trial, out, Run(titles, "attributes", 0, start, share), view)


def _floor_rows(out: Path, share: float) -> Iterator[Row]:
    for titles in TITLES:
        scores = {task: _floors(out, titles, task, share) for task in TASKS}
        for name, told in FLOORS.items():
            view = FLOOR_VIEWS[name]
            if view == "image" and titles != "plain":
                continue  # the same pictures
            found = {
                "attributes": scores["attributes"][name], "classification": scores["classification"][name],
                "clustering": scores["classification"][name]["clustering"],
            }  # fmt: skip
            yield Row(told, view, titles, share, {c: [found[kind][key]] for c, (kind, key) in COLUMNS.items()})


def _stage1_rows(trial: Trial, out: Path) -> Iterator[Row]:
    """Vectors that no label has trained at all."""
    for titles in TITLES:
        files = [out / titles / f"{Run(titles, 'stage1', *_seed(trial, seed)).clusters}.json" for seed in trial.seeds]
        scores = [_read(file)["views"] for file in files]
        for view in VIEWS:
            if view != "image" or titles == "plain":
                values = _values({"clustering": [of_seed[view]["all"] for of_seed in scores]})
                yield Row("MBSD, stage 1 alone", view, titles, max(trial.label_shares), values)


def _seed(trial: Trial, seed: int) -> tuple[int, str, float, bool]:
    return seed, "", 1.0, seed == trial.seeds[0]


def _model_row(trial: Trial, out: Path, one: Run, view: str) -> Row:
    """Of all seeds of the fine-tunings that `one` is of."""
    first = trial.seeds[0]
    folder = out / one.titles
    runs = {
        task: [Run(one.titles, task, seed, one.start, one.share, seed == first) for seed in trial.seeds]
        for task in TASKS
    }
    files = {str(task): [folder / f"{run.result}.json" for run in of_task] for task, of_task in runs.items()}
    files["clustering"] = [folder / f"{run.clusters}.json" for run in runs["attributes"]]
    scores = {kind: [_read(file)["views"][view]["all"] for file in of_kind] for kind, of_kind in files.items()}
    margins = {}
    for column, (kind, metric) in COLUMNS.items():
        if kind == "clustering":
            continue
        best = _best_floor(out, one, kind, metric, view)
        models = [Answers(file.with_suffix(".parquet"), view) for file in files[kind]]
        floor = Answers(folder / f"{_table(kind, one.share)}_floors.parquet", best)
        margins[column] = {"floor": FLOORS[best], **margin(models, floor, metric)}
    return Row(f"MBSD, {STARTS[one.start]}", view, one.titles, one.share, _values(scores), margins)


def _values(scores: dict[str, list[dict[str, float]]]) -> dict[str, list[float]]:
    """Column -> a value a seed; a metric that is not defined, as ROC-AUC of rows of one label, is left out."""
    return {
        column: [of_seed[key] for of_seed in scores.get(kind, []) if key in of_seed]
        for column, (kind, key) in COLUMNS.items()
    }


def _best_floor(out: Path, run: Run, kind: str, metric: str, view: str) -> str:
    """The best of those that read nothing that the view does not show."""
    scores = _floors(out, run.titles, kind, run.share)
    allowed = [name for name, of in FLOOR_VIEWS.items() if view in ("full", of)]
    return max(allowed, key=lambda name: scores[name][metric])


def _floors(out: Path, titles: str, task: str, share: float) -> dict[str, Any]:
    found: dict[str, Any] = _read(out / titles / f"{_table(task, share)}_floors.json")["floors"]
    return found


def _table(task: str, share: float) -> str:
    return "_".join([{str(k): v for k, v in TASKS.items()}[task], *labels_part(share)])


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
    scratch = {(row.view, row.titles, row.share): row for row in rows if row.model.endswith(STARTS["scratch"])}
    for row in rows:
        if row.model.endswith(STARTS["pretrained"]):
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
    titles = "" if row.view == "image" else TITLES[row.titles]
    return [row.model, VIEWS[row.view], titles, *([f"{row.share:.0%}"] if len(trial.label_shares) > 1 else [])]


def _shown(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    middle, deviation = mean_and_deviation(values)
    return f"{middle:{sign}.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def _above(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return ""
    bounds = f" [{found['interval'][0]:+.3f}, {found['interval'][1]:+.3f}]" if found["interval"] else ""
    return f"{found['value']:+.3f}{bounds}"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_own_json(path, "remove it: the same command makes it again")
    return found
