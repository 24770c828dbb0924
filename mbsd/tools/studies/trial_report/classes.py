"""How model and floor do by class, and by how many training items a class has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mbsd.scoring.paired import RankedScores
from mbsd.tools.studies.trial_report.inputs import Answers, Compared, Float64, shown_floor
from mbsd.tools.studies.trial_report.margins import METRICS, best_floor, class_f1

EDGES = (10, 30, 100, 300, 1000)  # of training items


@dataclass(frozen=True)
class ClassLine:
    """A category (or an attribute): its rows, and the metric of model and floor; None: not defined in test."""

    name: str
    train: int
    test: int
    model: float | None
    floor: float | None


@dataclass(frozen=True)
class Bin:
    """Classes with `low` to `high` training items (high None: without end), the mean of their metrics."""

    low: int
    high: int | None
    classes: int
    test: int
    model: float
    floor: float


@dataclass(frozen=True)
class ByClass:
    """The lines, those with most training rows first, and their means by number of training rows.

    Attributes:
        metric: F1 of a class, ROC-AUC of an attribute.
        floor: as shown; the best over all rows.
    """

    metric: str
    view: str
    floor: str
    lines: list[ClassLine]
    bins: list[Bin]


def by_class(compared: Compared, view: str) -> ByClass:
    """The main model, the mean over its runs, beside the best floor."""
    best = best_floor(compared, view, METRICS[compared.given.task][-1])
    floor, runs = compared.floors[best], compared.models[compared.main][view]
    lines = _tags(compared, runs, floor) if compared.is_binary else _classes(compared, runs, floor)
    lines.sort(key=lambda line: (-line.train, line.name))
    return ByClass("ROC-AUC" if compared.is_binary else "F1", view, shown_floor(best)[0], lines, _bins(lines))


def _classes(compared: Compared, runs: Sequence[Answers], floor: Answers) -> list[ClassLine]:
    table, size = compared.table, len(compared.names)
    train = np.bincount(np.asarray(table.column("label"))[table.rows("train")], minlength=size)
    test = np.bincount(compared.label, minlength=size)
    ours: Float64 = np.mean([class_f1(compared.label, run.answer, size) for run in runs], axis=0)
    theirs = class_f1(compared.label, floor.answer, size)
    of_name = {name: int(train[number]) for number, name in enumerate(table.class_names)}
    return [
        ClassLine(name, of_name[name], int(test[k]), _defined(ours[k]), _defined(theirs[k]))
        if test[k] else ClassLine(name, of_name[name], 0, None, None)
        for k, name in enumerate(compared.names)
    ]  # fmt: skip


def _tags(compared: Compared, runs: Sequence[Answers], floor: Answers) -> list[ClassLine]:
    attributes = np.array(compared.table.column("attribute"))
    train = attributes[compared.table.rows("train")]
    of_test = attributes[compared.rows]

    def of(answers: Answers, at: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
        return RankedScores(answers.score, compared.label).roc_auc(at.astype(np.float64))

    lines = []
    for name in np.unique(attributes).tolist():
        at = of_test == name
        ours, theirs = (float(np.mean([of(run, at) for run in runs])), of(floor, at)) if at.any() else (np.nan, np.nan)
        lines.append(ClassLine(name, int(np.sum(train == name)), int(at.sum()), _defined(ours), _defined(theirs)))
    return lines


def _bins(lines: Sequence[ClassLine]) -> list[Bin]:
    bins = []
    for low, high in zip((0, *EDGES), (*EDGES, None), strict=True):
        chosen = [
            (line.test, line.model, line.floor)
            for line in lines
            if low <= line.train and (high is None or line.train < high)
            if line.model is not None and line.floor is not None
        ]
        if chosen:
            test, ours, theirs = zip(*chosen, strict=True)
            bins.append(Bin(low, high, len(chosen), sum(test), float(np.mean(ours)), float(np.mean(theirs))))
    return bins


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
