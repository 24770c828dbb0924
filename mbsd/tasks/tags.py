"""Attributes without training: does a tag's text lie nearer to the items that it holds for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from mbsd.tasks.zero_shot import Encode, Vectors, text_vectors

Int64 = NDArray[np.int64]


def tag_scores(tags: Sequence[str], items_nE: Vectors, templates: Sequence[str], encode: Encode) -> NDArray[np.float64]:
    """The cosine of each row's tag and its item's unit vector [n]; 0 where the item has none.

    Args:
        tags: "name:value"; the text tower reads "name value", in each of the templates.
    """
    distinct, of_row = np.unique(np.array(tags, dtype=object).astype(str), return_inverse=True)
    vectors = text_vectors([tag.replace(":", " ") for tag in distinct.tolist()], templates, encode)
    cosines: NDArray[np.float64] = np.einsum("ne,ne->n", vectors[of_row], items_nE, dtype=np.float64)
    return cosines


def tag_metrics(scores: NDArray[Any], labels: Int64) -> dict[str, float]:
    """ROC-AUC and average precision; neither is defined where all labels are equal."""
    if not 0 < labels.sum() < len(labels):
        return {}
    return {
        "roc_auc": float(roc_auc_score(labels, scores)),
        "average_precision": float(average_precision_score(labels, scores)),
    }
