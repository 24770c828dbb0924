"""What the fine-tuned models scored: the paper's metrics by seed, and each pair of models on the same test rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mbsd.errors import UserError
from mbsd.scoring.paired import Difference, Float64, RankedScores, difference, resampled
from mbsd.tools.studies.answers import answers_of
from mbsd.tools.studies.compare.paper_numbers import FIVE
from mbsd.tools.studies.compare.plan import Trained
from mbsd.tools.studies.study import read_scores

# Task -> its metrics, and the one that pairs of models are compared by.
METRICS = {"attributes": FIVE, "alignment": FIVE, "classification": ("accuracy", "macro_f1")}
DECIDES = {"attributes": "roc_auc", "alignment": "roc_auc", "classification": "accuracy"}


@dataclass(frozen=True)
class Score:
    """One metric of one fine-tuning, between 0 and 1."""

    cell: Trained
    metric: str
    value: float


@dataclass(frozen=True)
class Pair:
    """How much the first model is above the other by `metric`, seed by seed."""

    task: str
    metric: str
    first: str
    other: str
    found: Difference


@dataclass(frozen=True)
class TestRows:
    """What one fine-tuned model answered.

    Attributes:
        rows: of the task table, int64 [n].
        items: of each row, int64 [n]; of alignment the first one.
        metric: from how often each row counts, [n], that of `DECIDES`.
    """

    rows: NDArray[np.int64]
    items: NDArray[np.int64]
    metric: Callable[[Float64], float]


def read_metrics(cells: Sequence[Trained]) -> list[Score]:
    """Every metric of every fine-tuning that its evaluation has.

    Raises:
        UserError: the one that pairs are compared by is missing: the test rows have one label only.
    """
    found = []
    for cell in cells:
        values: Mapping[str, float] = read_scores(cell.scores)["views"][cell.model.view]["all"]
        if DECIDES[cell.task] not in values:
            raise UserError(
                f"{cell.folder}: the test rows of {cell.task} have one label only, so there is no ROC-AUC; use a "
                "larger table"
            )
        found += [Score(cell, metric, values[metric]) for metric in METRICS[cell.task]]
    return found


def compare_pairs(scores: Sequence[Score], task: str, resamples: int) -> Iterator[Pair]:
    """Each pair of a task's models, in the tables' order.

    Raises:
        UserError: some were scored on other test rows.
    """
    metric = DECIDES[task]
    of_task = [score for score in scores if (score.cell.task, score.metric) == (task, metric)]
    rows = [read_rows(score.cell) for score in of_task]
    for score, one in zip(of_task, rows, strict=True):
        if not np.array_equal(rows[0].rows, one.rows):
            folder = of_task[0].cell.folder
            raise UserError(f"{score.cell.folder}: was scored on other test rows than {folder}; use another out")
    values = resampled([one.metric for one in rows], rows[0].items, resamples)
    values[:, 0] = [score.value for score in of_task]  # of the logits, as in the tables; answers have fewer digits
    of_model = np.array([score.cell.model.name for score in of_task])
    for first, other in combinations(dict.fromkeys(of_model.tolist()), 2):
        yield Pair(task, metric, first, other, difference(values[of_model == first], values[of_model == other]))


def read_rows(cell: Trained) -> TestRows:
    """The answers of a fine-tuned model to its test rows.

    Raises:
        UserError: they are not those that its scores were written with.
    """
    table, view = answers_of(cell.scores), cell.model.view
    rows = table["row"].to_numpy()
    items = table["item_a" if cell.task == "alignment" else "item"].to_numpy()
    labels = np.array(table["label"].to_pylist(), dtype=object)
    if DECIDES[cell.task] == "roc_auc":
        yes = (labels == "yes").astype(np.int64)
        return TestRows(rows, items, RankedScores(table[f"probability_{view}"].to_numpy(), yes).roc_auc)
    right = labels == np.array(table[f"answer_{view}"].to_pylist(), dtype=object)
    return TestRows(rows, items, lambda weights: float(weights[right].sum() / weights.sum()))
