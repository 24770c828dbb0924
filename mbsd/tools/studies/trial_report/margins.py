"""Model less best floor on the same test rows, with a paired bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mbsd.scoring import paired
from mbsd.scoring.paired import RankedScores, resampled_items
from mbsd.tools.studies.trial_report.inputs import Answers, Compared, Float64, Int64

# Task -> metrics, the one that decides last.
METRICS = {"classification": ("accuracy", "macro_f1"), "attributes": ("accuracy", "roc_auc")}
SHOWN = {"accuracy": "accuracy", "macro_f1": "macro-F1", "roc_auc": "ROC-AUC"}
# Of the test items, behind every interval of a trial, in its table and on its page alike.
RESAMPLES, SEED = 400, 0


@dataclass(frozen=True)
class Margin:
    """A model less the best floor of what it reads, or less another model.

    Attributes:
        model, floor: values of the metric; the model's is the mean over its runs.
        each: the values of its runs.
        best: name of the floor.
        low, high: 95 % interval of the difference over resampled test items, each with all its rows; None: too few.
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


def class_f1(labels: Int64, answers: Int64, num_classes: int, weights: Float64 | None = None) -> Float64:
    """F1 of each class, 2 TP / (rows that are of it + rows that are said to be); NaN where it occurs in neither.

    Args:
        weights: how often each row counts; None: once.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    same = labels == answers
    right = np.bincount(labels[same], weights[same], num_classes)
    both = np.bincount(labels, weights, num_classes) + np.bincount(answers, weights, num_classes)
    f1: Float64 = np.divide(2.0 * right, both, out=np.full(num_classes, np.nan), where=both > 0)
    return f1


def metric_of(metric: str, labels: Int64, answers: Answers, num_classes: int) -> Callable[[Float64], float]:
    """What gives the metric of some answers from how often each row counts, [n]."""
    if metric == "roc_auc":
        return RankedScores(answers.score, labels).roc_auc
    if metric == "accuracy":
        right = labels == answers.answer
        return lambda weights: float(weights[right].sum() / weights.sum())
    return lambda weights: float(np.nanmean(class_f1(labels, answers.answer, num_classes, weights)))


def floor_values(compared: Compared, metric: str) -> dict[str, float]:
    """The metric of every floor."""
    size, once = len(compared.names), np.ones(len(compared.label))
    return {name: metric_of(metric, compared.label, found, size)(once) for name, found in compared.floors.items()}


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
    """The mean of a metric over some runs less that over others, every resample of items being the same for all.

    Args:
        named: view, metric, and whose the others are.
    """
    view, metric, best = named
    size, num_items = len(compared.names), len(np.unique(compared.items))
    models = [metric_of(metric, compared.label, each, size) for each in (*ours, *others)]
    drawn = resampled_items(compared.items, resamples if num_items > 1 else 0, SEED)
    values = np.array([[model(weights) for model in models] for weights in drawn]).T  # [runs, 1 + resamples]
    of_ours, of_others = values[: len(ours)], values[len(ours) :]
    found = paired.difference(of_ours.mean(0, keepdims=True), of_others.mean(0, keepdims=True))
    low, high = found.interval or (None, None)
    each = tuple(of_ours[:, 0].tolist())
    return Margin(view, metric, float(np.mean(each)), each, best, float(of_others[:, 0].mean()), low, high)
