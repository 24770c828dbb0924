"""How sure the difference of two models is, on the same test rows: a paired bootstrap over the items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.scoring.intervals import LEVEL, UNDEFINED

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """A mean difference of a metric.

    Attributes:
        mean: over the pairs, of all rows.
        of_pairs: each pair's.
        interval: the 2.5 % and 97.5 % quantiles of the mean over resampled items; None where too many resamples have
            one label only.
    """

    mean: float
    of_pairs: tuple[float, ...]
    interval: tuple[float, float] | None


class RankedScores:
    """Scores of n rows, sorted once, whose ROC-AUC is then a sum for any weights of the rows.

    Args:
        scores: [n]; equal ones count as half right.
        labels: 0 or 1, int64 [n].
    """

    def __init__(self, scores: NDArray[Any], labels: Int64) -> None:
        distinct, self._place = np.unique(scores, return_inverse=True)
        self._labels, self._num_distinct = labels.astype(np.float64), len(distinct)

    def roc_auc(self, weights: Float64) -> float:
        """Return the ROC-AUC of rows that count `weights` [n] times each; NaN where one label has no weight."""
        positive = np.bincount(self._place, weights * self._labels, self._num_distinct)
        negative = np.bincount(self._place, weights * (1 - self._labels), self._num_distinct)
        pairs = positive.sum() * negative.sum()
        if pairs == 0:
            return float("nan")
        return float((positive * (np.cumsum(negative) - negative / 2)).sum() / pairs)


def resampled_items(items: Int64, resamples: int, seed: int = 0) -> Iterator[Float64]:
    """Yield how often each row counts, [n]: once each, then by items drawn with replacement, 1 + resamples times.

    An item is drawn with all of its rows, since they share its title and picture.

    Args:
        items: of each row, int64 [n].
        resamples: number of draws.
        seed: of the draws.
    """
    _, place = np.unique(items, return_inverse=True)
    num_items = int(place.max()) + 1
    rng = np.random.default_rng(seed)
    yield np.ones(len(items))
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(num_items, size=num_items), minlength=num_items)
        yield drawn[place].astype(np.float64)


def resampled_auc(
    scores: Sequence[NDArray[Any]], labels: Int64, items: Int64, resamples: int, seed: int = 0
) -> Float64:
    """Return the ROC-AUC of each model on all rows and on resampled items, [models, 1 + resamples].

    Column 0 is of all rows; every model is given the same draws (`resampled_items`).

    Args:
        scores: of each model, [n] each.
        labels: 0 or 1, int64 [n].
        items: of each row, int64 [n].
        resamples: number of draws.
        seed: of the draws.
    """
    return resampled([RankedScores(of_model, labels).roc_auc for of_model in scores], items, resamples, seed)


def resampled(metrics: Sequence[Callable[[Float64], float]], items: Int64, resamples: int, seed: int = 0) -> Float64:
    """Return a metric of each model on all rows and on resampled items, [models, 1 + resamples], as `resampled_auc`.

    Args:
        metrics: of each model, from how often each row counts, [n].
        items: of each row, int64 [n].
        resamples: number of draws.
        seed: of the draws.
    """
    drawn = resampled_items(items, resamples, seed)
    return np.array([[metric(weights) for metric in metrics] for weights in drawn]).T


def difference(one: Float64, other: Float64) -> Difference:
    """Return how much `one` is above `other`, metrics [pairs, 1 + resamples] as of `resampled_auc`."""
    less = one - other
    means = less.mean(0)
    drawn = means[1:]
    interval = None
    if len(drawn) and np.isnan(drawn).mean() <= UNDEFINED:
        low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = (float(low), float(high))
    return Difference(float(means[0]), tuple(less[:, 0].tolist()), interval)
