"""Model less best floor on the same test rows, with a paired bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.scoring.intervals import intervals
from mbsd.tools.trial_report.inputs import Answers, Compared, Float64, Int64

# Task -> metrics, the one that decides last.
METRICS = {"classification": ("accuracy", "macro_f1"), "attributes": ("accuracy", "roc_auc")}
SHOWN = {"accuracy": "accuracy", "macro_f1": "macro-F1", "roc_auc": "ROC-AUC"}
SEED = 0


@dataclass(frozen=True)
class Margin:
    """A model less the best floor of what it reads, or less another model.

    Attributes:
        model, floor: values of the metric; the model's is the mean over its runs.
        each: the values of its runs.
        best: name of the floor.
        low, high: 95 % interval of the difference over resampled test rows; None: too few rows.
    """

    view: str
    metric: str
    model: float
    each: tuple[float, ...]
    best: str
    floor: float
    low: float | None
    high: float | None

    @property
    def value(self) -> float:
        """The difference."""
        return self.model - self.floor

    @property
    def verdict(self) -> str:
        """above | below: the interval lies on one side of 0; even: it does not."""
        if self.low is None or self.high is None:
            return "even"
        return "above" if self.low > 0 else "below" if self.high < 0 else "even"


def class_f1(labels: Int64, answers: Int64, num_classes: int) -> Float64:
    """F1 of each class, 2 TP / (rows that are of it + rows that are said to be); NaN where it occurs in neither."""
    right = np.bincount(labels[labels == answers], minlength=num_classes)
    both = np.bincount(labels, minlength=num_classes) + np.bincount(answers, minlength=num_classes)
    f1: Float64 = np.divide(2.0 * right, both, out=np.full(num_classes, np.nan), where=both > 0)
    return f1


def area(labels: Int64, ranks: Int64) -> float:
    """ROC-AUC from dense ranks (0, 1, …) of the scores, ties count half; NaN where all labels are equal.

    It is scikit-learn's, without a sort for each resample.
    """
    size = int(ranks.max()) + 1
    positive = np.bincount(ranks[labels == 1], minlength=size)
    negative = np.bincount(ranks[labels == 0], minlength=size)
    pairs = int(positive.sum()) * int(negative.sum())
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else float("nan")


def value_of(metric: str, labels: Int64, column: Int64, num_classes: int) -> float:
    """A metric of one column: of answers, or of dense ranks for roc_auc."""
    if metric == "accuracy":
        return float(np.mean(labels == column))
    if metric == "roc_auc":
        return area(labels, column)
    return float(np.nanmean(class_f1(labels, column, num_classes)))


def column_of(metric: str, answers: Answers) -> Int64:
    """What `value_of` reads of them, int64 [n]."""
    if metric != "roc_auc":
        return answers.answer
    ranks: Int64 = np.unique(answers.score, return_inverse=True)[1]
    return ranks


def floor_values(compared: Compared, metric: str) -> dict[str, float]:
    """The metric of every floor."""
    size = len(compared.names)
    return {
        name: value_of(metric, compared.label, column_of(metric, found), size)
        for name, found in compared.floors.items()
    }


def best_floor(compared: Compared, view: str, metric: str) -> str:
    """The floor that reads no more than the view shows and is best on the test rows: the hardest to beat.

    Ties go to the one that is named first.
    """
    values, readable = floor_values(compared, metric), compared.floors_of(view)
    return max(readable, key=lambda name: values[name])


def margin(compared: Compared, model: str, view: str, metric: str, resamples: int) -> Margin:
    """A model over its best floor."""
    best = best_floor(compared, view, metric)
    return difference(compared, (view, metric, best), compared.models[model][view], [compared.floors[best]], resamples)


def difference(
    compared: Compared, named: tuple[str, str, str], ours: Sequence[Answers], others: Sequence[Answers], resamples: int
) -> Margin:
    """The mean of a metric over some runs less that over others, every resample of rows being the same for all.

    Args:
        named: view, metric, and whose the others are.
    """
    view, metric, best = named
    size = len(compared.names)
    columns = np.stack([column_of(metric, each) for each in (*ours, *others)], axis=1)

    def each_value(columns_nk: NDArray[Any], labels: Int64) -> list[float]:
        return [value_of(metric, labels, column, size) for column in columns_nk.T]

    def resampled(columns_nk: NDArray[Any], labels: Int64) -> dict[str, float]:
        values = each_value(columns_nk, labels)
        return {"difference": float(np.mean(values[: len(ours)]) - np.mean(values[len(ours) :]))}

    values = each_value(columns, compared.label)
    found = intervals(resampled, columns, compared.label, resamples, SEED).get("difference", (None, None))
    return Margin(
        view, metric, float(np.mean(values[: len(ours)])), tuple(values[: len(ours)]), best,
        float(np.mean(values[len(ours) :])), *found,
    )  # fmt: skip
