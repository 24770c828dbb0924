"""How sure a metric is: bootstrap intervals over the rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

from mbsd.stages.labelled import TaskMetrics

LEVEL = 0.95
MOST_ROWS = 10_000_000  # drawn in all, so that a large table takes minutes and not hours
LEAST = 100
UNDEFINED = 0.05  # a metric that more resamples than this do not define (all of one label) has no interval


def intervals(
    metrics: TaskMetrics, scores: NDArray[Any], labels: NDArray[np.int64], resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """metric -> the 2.5 % and 97.5 % quantiles of its values over resampled rows (scipy's percentile bootstrap).

    Args:
        scores, labels: of n rows, in an order that does not depend on the number of ranks.
        resamples: fewer above ten thousand rows, but no fewer than 100.
    """
    names = list(metrics(scores, labels))
    resamples = min(resamples, max(LEAST, MOST_ROWS // max(1, len(labels))))
    if len(labels) < 2:
        return {}

    def statistic(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        values = metrics(scores[rows], labels[rows])
        return np.array([values.get(name, np.nan) for name in names])

    with warnings.catch_warnings():
        # Of its own interval, which it gives up where one resample does not define a metric; ours leaves that one out.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        drawn = bootstrap(
            (np.arange(len(labels)),),
            statistic,
            n_resamples=resamples,
            vectorized=False,
            batch=1,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    found = {}
    for name, values in zip(names, drawn, strict=True):
        if np.isnan(values).mean() <= UNDEFINED:
            low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            found[name] = (float(low), float(high))
    return found
