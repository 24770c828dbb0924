"""Attributes without training: does a tag's text lie nearer to the items that it holds for?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from mbsd.model.embedder import SHARED_VIEWS
from mbsd.tasks.names import templated, text_vectors
from mbsd.tasks.vector_task import Encode, Encoded, Int64, Measured, Subject, Vectors, VectorTask


def tag_scores(tags: Sequence[str], items_nE: Vectors, templates: Sequence[str], encode: Encode) -> NDArray[np.float64]:
    """The cosine of each row's tag and its item's unit vector [n]; 0 where the item has none.

    Args:
        tags: "name:value"; the text tower reads "name value", in each of the templates.
    """
    distinct, of_row = np.unique(np.array(tags, dtype=object).astype(str), return_inverse=True)
    vectors = text_vectors([_shown(tag) for tag in distinct.tolist()], templates, encode)
    cosines: NDArray[np.float64] = np.einsum("ne,ne->n", vectors[of_row], items_nE, dtype=np.float64)
    return cosines


def _shown(tag: str) -> str:
    return tag.replace(":", " ")


def tag_metrics(scores: NDArray[Any], labels: Int64) -> dict[str, float]:
    """ROC-AUC and average precision; neither is defined where all labels are equal."""
    if not 0 < labels.sum() < len(labels):
        return {}
    return {
        "roc_auc": float(roc_auc_score(labels, scores)),
        "average_precision": float(average_precision_score(labels, scores)),
    }


def _texts(subject: Subject) -> list[str]:
    tags = subject.labels.column("text")
    return templated(sorted({_shown(tags[row]) for row in subject.rows.tolist()}), subject.settings.names.templates)


def _measure(subject: Subject, encoded: Encoded) -> Mapping[str, Measured]:
    table, rows = subject.labels, subject.rows
    columns = {
        name: np.array([table.column(name)[row] for row in rows.tolist()]) for name in ("text", "where", "attribute")
    }
    tags = columns.pop("text").tolist()
    measured = {}
    for view, vectors in encoded.rows.at(table.column("item")[rows]).vectors.items():
        scores = tag_scores(tags, vectors, subject.settings.names.templates, encoded.texts)
        labels = table.column("label")[rows]
        measured[view] = Measured(tag_metrics, scores, labels, groups=columns, answers={"score": scores})
    return measured


TAGS = VectorTask(
    name="attributes", kind="attributes", measure=_measure, views=SHARED_VIEWS, compares=True, texts=_texts
)
