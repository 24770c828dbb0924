"""Sensitive products without training: does the name of the one category lie nearer to an item than all others do?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.errors import UserError
from mbsd.model.embedder import SHARED_VIEWS
from mbsd.tasks.matching import measured_at, thresholds_at
from mbsd.tasks.sensitive import found_or_not, sensitive_metrics
from mbsd.tasks.vector_task import Encoded, Int64, ItemVectors, Measured, Subject, VectorTask, items_of, split_rows
from mbsd.tasks.zero_shot import check_names, class_scores, class_texts, lead


def _positive(subject: Subject) -> int:
    """The category to find, as a label of the table.

    Raises:
        UserError: none is named, or none of the table's.
    """
    if subject.settings.positive is None:
        raise UserError("positive is not set: task=sensitive without training needs the category to find")
    found_or_not(subject.labels, subject.settings.positive)
    return int(subject.labels.class_names.index(subject.settings.positive))


def _check(subject: Subject) -> None:
    _positive(subject)
    check_names(subject)
    held_out = split_rows(subject.labels, "validation")
    if not np.any(subject.labels.column("label")[held_out] == _positive(subject)):
        raise UserError(
            f"table {subject.labels.path}: no row of its validation split is {subject.settings.positive!r}; thresholds "
            "are chosen there: move some of its rows there"
        )


def _leads(subject: Subject, encoded: Encoded, of_items: ItemVectors, rows: Int64) -> dict[str, NDArray[Any]]:
    """View -> how far the category lies before all others, for each of the table's rows."""
    of_rows, positive = of_items.at(subject.labels.column("item")[rows]), _positive(subject)
    return {view: lead(class_scores(subject, encoded, vectors), positive) for view, vectors in of_rows.vectors.items()}


def _measure(subject: Subject, encoded: Encoded) -> Mapping[str, Measured]:
    table, rows = subject.labels, subject.rows
    held_out = split_rows(table, "validation")
    labels = (table.column("label") == _positive(subject)).astype(np.int64)
    chosen_by, measured = _leads(subject, encoded, encoded.others, held_out), {}
    for view, scores in _leads(subject, encoded, encoded.rows, rows).items():
        at = thresholds_at(chosen_by[view], labels[held_out], subject.settings.recalls)
        measured[view] = Measured(
            sensitive_metrics,
            scores,
            labels[rows],
            more={"precision_at_recall": measured_at(scores, labels[rows], at)},
            answers={"answer": np.where(scores > 0, "yes", "no"), "score": scores},
        )
    return measured


FOUND_BY_NAME = VectorTask(
    name="sensitive",
    kind="categories",
    measure=_measure,
    views=SHARED_VIEWS,
    compares=True,
    others=lambda subject: items_of(subject.labels, split_rows(subject.labels, "validation")),
    texts=class_texts,
    check=_check,
)
