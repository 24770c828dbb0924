"""Matching without training: two items are one product where the cosine of their vectors lies above a threshold.

The threshold is the validation split's: the one of its best F1, and for each recall that is asked for the one of the
best precision at that recall. The test split is only ever measured at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, precision_score, recall_score

Vectors = NDArray[np.floating[Any]]
Int64 = NDArray[np.int64]

APART = -1.0  # the score of a pair of which one has no vector


def pair_scores(first_nE: Vectors, second_nE: Vectors) -> NDArray[np.float64]:
    """The cosine of each pair of unit vectors [n]; APART where one of them is zeros: it has no vector."""
    cosines = np.einsum("ne,ne->n", first_nE, second_nE, dtype=np.float64)
    known = first_nE.any(axis=1) & second_nE.any(axis=1)
    return np.where(known, cosines, APART)


def best_threshold(scores: NDArray[Any], labels: Int64) -> float:
    """The score above which a pair is taken as one product, for the best F1 of these rows; both labels occur."""
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    precision, recall = precision[:-1], recall[:-1]  # the curve's last point is no threshold: nothing is taken
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return _below(float(thresholds[np.argmax(f1)]), scores)


def thresholds_at(scores: NDArray[Any], labels: Int64, recalls: Sequence[float]) -> dict[float, float]:
    """recall -> the threshold of the best precision of these rows at that recall or above."""
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    found = {}
    for wanted in recalls:
        enough = np.flatnonzero(recall[:-1] >= wanted)
        found[wanted] = _below(float(thresholds[enough[np.argmax(precision[:-1][enough])]]), scores)
    return found


def measured_at(scores: NDArray[Any], labels: Int64, thresholds: dict[float, float]) -> dict[str, dict[str, float]]:
    """recall -> precision and recall of these rows at thresholds that other rows have chosen."""
    return {
        f"{wanted:g}": {
            "precision": float(precision_score(labels, scores > threshold, zero_division=0.0)),
            "recall": float(recall_score(labels, scores > threshold, zero_division=0.0)),
            "threshold": threshold,
        }
        for wanted, threshold in thresholds.items()
    }


def _below(threshold: float, scores: NDArray[Any]) -> float:
    """Half way down to the next lower score: rows of another split fall on either side, none on the threshold."""
    lower = scores[scores < threshold]
    return float((threshold + lower.max()) / 2) if len(lower) else threshold - 1e-6
