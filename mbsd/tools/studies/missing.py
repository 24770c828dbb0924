"""`launchers/missing.py`: Fig. 7, attribute prediction with titles or pictures missing, with and without SDMI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from mbsd.tools.studies.answers import read_answers, withheld_attributes
from mbsd.tools.studies.chains import Cell, chain_of
from mbsd.tools.studies.pictures import draw_missing
from mbsd.tools.studies.settings import MissingStudyConfig
from mbsd.tools.studies.study import percent, read_scores, report, roc_auc, run_study, write_csv
from mbsd.tools.studies.study_page.page import Section

REMOVED = ("title", "image")
LEFT = {"title": "image", "image": "text"}  # the view without it
WHERE = {
    "all": "all attributes",
    "image": "attributes that only the picture shows",
    "withheld": "attributes that no query named",
}


@dataclass(frozen=True)
class Point:
    """One ROC-AUC of a cell.

    Attributes:
        removed, rate: title or image, and the share of the test rows that lost it.
        where: "all" attributes, "image": those whose value only the picture shows, or "withheld": those that no query
            of the pair table named.
    """

    cell: Cell
    removed: str
    rate: float
    where: str
    roc_auc: float


def run_missing(config: MissingStudyConfig) -> Section:
    """Run the study and write `missing.md`, `missing.csv` and `missing.png` to `config.out`.

    Returns:
        The same for a page.
    """
    withheld = withheld_attributes(config)
    rates = list(config.rates)
    views = {"full", LEFT["title"], LEFT["image"]}
    runner, cells = run_study(
        config,
        {
            "test-title": {"views": sorted(views), "missing.rates": rates, "missing.modality": "title"},
            "test-image": {"views": [], "missing.rates": rates, "missing.modality": "image"},
        },
    )
    points = [point for cell in cells for point in _points(cell, config.rates, withheld)]
    out = Path(config.out)
    write_csv(
        out / "missing.csv",
        [
            {"row": p.cell.row, "model": p.cell.name, "seed": p.cell.seed, "batch_size": p.cell.batch_size,
             "learning_rate": p.cell.learning_rate, "removed": p.removed, "rate": p.rate, "where": p.where,
             "roc_auc": p.roc_auc}
            for p in points
        ],
    )  # fmt: skip
    names: dict[int, str] = {row: f"{row} {chain_of(row, config.constant_weight).name}" for row in config.chosen_rows}
    wheres = [where for where in WHERE if any(point.where == where for point in points)]
    tables = [
        (f"{removed} removed from a share of the test rows, {WHERE[where]}: ROC-AUC in percent, mean ± standard "
         f"deviation over {len(cells) // len(names)} chains of runs", _table(points, removed, where, names))
        for where in wheres
        for removed in REMOVED
    ]  # fmt: skip
    report(runner.console, out / "missing.md", "Missing titles and pictures", tables)
    draw_missing(out / "missing.png", _curves(points, names, wheres), WHERE)
    runner.console.print(f"{out}/missing.png, missing.md, missing.csv", highlight=False)
    return Section("Fig. 7: missing titles and pictures", tuple(tables), out / "missing.png")


def _points(cell: Cell, rates: tuple[float, ...], withheld: tuple[str, ...] | None) -> Iterator[Point]:
    of_views = read_scores(cell.scores("test-title"))["views"]
    for removed in REMOVED:
        missing = read_scores(cell.scores(f"test-{removed}"))["missing"]
        at_rate = {0.0: of_views["full"], 1.0: of_views[LEFT[removed]]}
        at_rate |= {rate: missing[f"{removed} missing at {rate:g}"] for rate in rates}
        for rate, scores in sorted(at_rate.items()):
            yield Point(cell, removed, rate, "all", roc_auc(scores["all"], cell))
            if "image" in scores["where"]:
                yield Point(cell, removed, rate, "image", roc_auc(scores["where"]["image"], cell))
        if withheld is not None:
            views, fewer = (read_answers(cell, f"test-{name}", withheld) for name in ("title", removed))
            yield Point(cell, removed, 0.0, "withheld", views.roc_auc("full"))
            for rate in sorted(rates):
                yield Point(cell, removed, rate, "withheld", fewer.roc_auc(f"missing_{rate:g}"))
            yield Point(cell, removed, 1.0, "withheld", views.roc_auc(LEFT[removed]))


def _of(points: list[Point], removed: str, where: str, rate: float, row: int) -> list[float]:
    """ROC-AUCs in the order of the cells, which is the same seeds and settings for every row."""
    return [
        p.roc_auc
        for p in points
        if (p.removed, p.rate, p.where, p.cell.row) == (removed, rate, where, row)
    ]  # fmt: skip


def _table(points: list[Point], removed: str, where: str, names: dict[int, str]) -> Table:
    rates = sorted({point.rate for point in points})
    table = Table("model", *(f"{100 * rate:g} %" for rate in rates))
    values = partial(_of, points, removed, where)
    for row, name in names.items():
        table.add_row(name, *(percent(values(rate, row)) for rate in rates))
    first, *others = names
    for other in others:
        pairs = (zip(values(rate, first), values(rate, other), strict=True) for rate in rates)
        table.add_row(
            f"{first} less {other}, pair by pair", *(percent([a - b for a, b in of_rate]) for of_rate in pairs)
        )
    return table


def _curves(
    points: list[Point], names: dict[int, str], wheres: list[str]
) -> dict[tuple[str, str], dict[str, dict[float, list[float]]]]:
    """(removed, where) -> model -> rate -> values of the cells."""
    rates = sorted({point.rate for point in points})
    return {
        (removed, where): {
            name: {rate: _of(points, removed, where, rate, row) for rate in rates} for row, name in names.items()
        }
        for where in wheres
        for removed in REMOVED
    }
