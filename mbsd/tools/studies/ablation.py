"""`launchers/ablation.py`: Table 6, what each part of the method contributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from mbsd.errors import UserError
from mbsd.scoring.paired import difference, resampled_auc
from mbsd.tools.studies.answers import read_answers, withheld_attributes
from mbsd.tools.studies.chains import Cell
from mbsd.tools.studies.pictures import draw_rows
from mbsd.tools.studies.settings import AblationConfig
from mbsd.tools.studies.study import percent, read_scores, report, roc_auc, run_study, write_csv
from mbsd.tools.studies.study_page.page import Section


@dataclass(frozen=True)
class Scored:
    """What a table is about.

    Attributes:
        view: full, text or image.
        attributes: whose test rows; None: all.
        values: ROC-AUC of each cell.
    """

    view: str
    attributes: tuple[str, ...] | None
    values: tuple[float, ...]

    @property
    def rows(self) -> str:
        """`all`, or `withheld`: rows of attributes that no query named."""
        return "all" if self.attributes is None else "withheld"

    def of(self) -> str:
        """In words."""
        named = "" if self.attributes is None else f", attributes that no query named ({', '.join(self.attributes)})"
        return f"view {self.view}{named}"


def run_ablation(config: AblationConfig) -> Section:
    """Run the study and write `ablation.md`, `ablation.csv` and `ablation.png` to `config.out`.

    Returns:
        The same for a page.
    """
    withheld = withheld_attributes(config)
    runner, cells = run_study(config, {"test": {"views": list(config.views)}})
    scored = _scored(config, cells, withheld)
    out = Path(config.out)
    write_csv(
        out / "ablation.csv",
        [
            {"row": cell.row, "model": cell.name, "seed": cell.seed, "batch_size": cell.batch_size,
             "learning_rate": cell.learning_rate, "view": one.view, "rows": one.rows, "roc_auc": value}
            for one in scored
            for cell, value in zip(cells, one.values, strict=True)
        ],
    )  # fmt: skip
    names = {cell.row: cell.name for cell in cells}
    grid = [
        f"{len({cell.batch_size for cell in cells})} batch sizes",
        f"{len({cell.learning_rate for cell in cells})} learning rates",
        f"{len({cell.seed for cell in cells})} seeds",
    ]
    text = f"ROC-AUC of the test rows in percent, mean ± standard deviation over {', '.join(grid)}"
    is_plain = len(scored) == 1 and config.views == ("full",)
    tables = [(f"{text}{'' if is_plain else f'; {one.of()}'}.", _table(cells, one.values)) for one in scored]
    if config.bootstrap and len(names) > 1:
        tables.append(_differences(config, cells, scored))
    report(runner.console, out / "ablation.md", "Ablation", tables)
    lines = {
        f"{row} {name}" + ("" if is_plain else f", {one.view}, {one.rows}"): _of_row(cells, one.values, row)
        for one in scored
        for row, name in names.items()
    }
    draw_rows(out / "ablation.png", lines, "ROC-AUC, %")
    runner.console.print(f"{out}/ablation.png, ablation.md, ablation.csv", highlight=False)
    return Section("Table 6: ablation", tuple(tables), out / "ablation.png")


def _scored(config: AblationConfig, cells: Sequence[Cell], withheld: tuple[str, ...] | None) -> list[Scored]:
    reports = [read_scores(cell.scores("test"))["views"] for cell in cells]
    found = []
    for view in config.views:
        values = tuple(roc_auc(of_cell[view]["all"], cell) for of_cell, cell in zip(reports, cells, strict=True))
        found.append(Scored(view, None, values))
        if withheld is not None:
            of_cells = [read_answers(cell, "test", withheld) for cell in cells]
            found.append(Scored(view, withheld, tuple(answers.roc_auc(view) for answers in of_cells)))
    return found


def _of_row(cells: Sequence[Cell], values: Sequence[float], row: int) -> list[float]:
    return [value for cell, value in zip(cells, values, strict=True) if cell.row == row]


def _table(cells: Sequence[Cell], values: Sequence[float]) -> Table:
    table = Table("ID", "model", "AUC", "best", "runs")
    for row, name in {cell.row: cell.name for cell in cells}.items():
        found = _of_row(cells, values, row)
        table.add_row(str(row), name, percent(found), percent([max(found)]), str(len(found)))
    return table


def _differences(config: AblationConfig, cells: Sequence[Cell], scored: Sequence[Scored]) -> tuple[str, Table]:
    """The first row less each other one, for each of the tables above, and the line about it."""
    first, *others = dict.fromkeys(cell.row for cell in cells)
    table = Table("rows", "of", "difference", "95 % interval", "of each pair of runs")
    for one in scored:
        auc = _resampled(config, cells, one)
        for other in others:
            found = difference(auc[first], auc[other])
            interval = "–" if found.interval is None else " to ".join(f"{100 * end:+.2f}" for end in found.interval)
            each = ", ".join(f"{100 * value:+.2f}" for value in found.of_pairs)
            table.add_row(f"{first} less {other}", one.of(), f"{100 * found.mean:+.2f}", interval, each)
    text = (
        f"ROC-AUC of row {first} less that of another, in percent, the mean over pairs of runs with the same seed, "
        "batch size and learning rate. The interval is a paired bootstrap over the test items "
        f"({config.bootstrap} resamples, each item with all its rows): it tells how sure the difference of these "
        "models is, not how another seed would train; for that see the pairs."
    )
    return text, table


def _resampled(config: AblationConfig, cells: Sequence[Cell], one: Scored) -> Mapping[int, np.ndarray]:
    """Row of Table 6 -> ROC-AUCs [cells of the row, 1 + resamples]."""
    answers = [read_answers(cell, "test", one.attributes) for cell in cells]
    for cell, other in zip(cells, answers, strict=True):
        if not np.array_equal(answers[0].rows, other.rows):
            raise UserError(f"{cell.folder}: was scored on other test rows than {cells[0].folder}; use another out")
    scores = [of_cell.probabilities[one.view] for of_cell in answers]
    auc = resampled_auc(scores, answers[0].labels, answers[0].items, config.bootstrap)
    auc[:, 0] = one.values  # of the logits, as in the tables; answers have fewer digits, so that close ones are equal
    of_row = np.array([cell.row for cell in cells])
    return {int(row): auc[of_row == row] for row in np.unique(of_row)}
