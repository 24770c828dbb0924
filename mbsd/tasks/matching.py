"""Matching without training: two items are one product where the cosine of their vectors lies above a threshold.

The threshold is the validation split's: the one of its best F1, and for each recall that is asked for the one of the
best precision at that recall. The test split is only ever measured at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, precision_score, recall_score

from mbsd.errors import UserError
from mbsd.tasks.sensitive import sensitive_metrics
from mbsd.tasks.vector_task import Encoded, Int64, ItemVectors, Measured, Subject, VectorTask, items_of, split_rows

Features = Any  # [n, E], dense or sparse

APART = -1.0  # the score of a pair of which one has no vector


def pair_scores(first: Features, second: Features, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The cosine of each pair of unit vectors [n]; APART where one of them has no vector.

    Args:
        first, second: [n, E], dense or sparse.
        known: bool [n]; whether both have one.
    """
    if scipy.sparse.issparse(first):
        cosines = np.asarray(first.multiply(second).sum(axis=1)).reshape(-1)
    else:
        cosines = np.einsum("ne,ne->n", first, second, dtype=np.float64)
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


def check_both_labels(subject: Subject) -> None:
    """Refuse a table whose validation split can choose no threshold.

    Raises:
        UserError: it is empty, or all of its rows have one label.
    """
    table = subject.labels
    labels = table.column("label")[split_rows(table, "validation")]
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"table {table.path}: all rows of its validation split have the label {labels[0]}; the threshold is chosen "
            "there, which takes both"
        )


def _scores_of(table_rows: tuple[Any, Int64], vectors: ItemVectors) -> Mapping[str, NDArray[np.float64]]:
    """View -> the score of each of a table's rows."""
    table, rows = table_rows
    first, second = (vectors.at(table.column(name)[rows]) for name in ("item_a", "item_b"))
    return {
        view: pair_scores(first.vectors[view], second.vectors[view], first.present[view] & second.present[view])
        for view in vectors.views
    }


def _measure(subject: Subject, encoded: Encoded) -> Mapping[str, Measured]:
    table, rows = subject.labels, subject.rows
    held_out, label = split_rows(table, "validation"), table.column("label")
    chosen_by = _scores_of((table, held_out), encoded.others)
    measured = {}
    for view, scores in _scores_of((table, rows), encoded.rows).items():
        threshold = best_threshold(chosen_by[view], label[held_out])
        at = thresholds_at(chosen_by[view], label[held_out], subject.settings.recalls)
        measured[view] = Measured(
            sensitive_metrics,  # of what lies above 0
            scores - threshold,
            label[rows],
            more={"threshold": threshold, "precision_at_recall": measured_at(scores, label[rows], at)},
            answers={"answer": np.where(scores > threshold, "yes", "no"), "score": scores},
        )
    return measured


MATCHING = VectorTask(
    name="matching",
    kind="alignment",
    measure=_measure,
    others=lambda subject: items_of(subject.labels, split_rows(subject.labels, "validation")),
    check=check_both_labels,
)
