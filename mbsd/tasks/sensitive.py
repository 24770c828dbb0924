"""Sensitive-product recognition: is the item of the one category that must not be shown? One row an item, no query.

The table is one of categories; `task.positive` names the category to find, all others are its opposite. What counts is
the precision that is left when nearly all of them are found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_curve

from mbsd.catalog.tables import Table
from mbsd.config.scoring import EvaluateConfig
from mbsd.config.stages import TaskConfig
from mbsd.errors import UserError
from mbsd.metrics.binary import BINARY, binary_metrics
from mbsd.model.heads import MbsdForClassification
from mbsd.objectives.labels import binary_loss
from mbsd.tasks.task import Labels, Task, binary_head


def sensitive_metrics(logits: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
    """The five metrics of a yes/no question, and average precision where both labels occur."""
    metrics = binary_metrics(logits, labels)
    if "roc_auc" in metrics:
        metrics["average_precision"] = float(average_precision_score(labels, logits))
    return metrics


def precision_at_recall(
    logits: NDArray[Any], labels: NDArray[np.int64], recalls: tuple[float, ...]
) -> dict[str, dict[str, float]]:
    """recall -> the best precision at that recall or above, and the probability from which on an item is flagged."""
    if labels.sum() == 0:
        return {}
    precision, recall, thresholds = precision_recall_curve(labels, logits)
    result = {}
    for wanted in recalls:
        # The curve's last point is no threshold: nothing is flagged.
        enough = np.flatnonzero(recall[:-1] >= wanted)
        best = enough[np.argmax(precision[:-1][enough])]
        result[f"{wanted:g}"] = {
            "precision": float(precision[best]),
            "recall": float(recall[best]),
            "threshold": float(expit(thresholds[best])),
        }
    return result


def found_or_not(table: Table, positive: str) -> Labels:
    """Label 1 for the category `positive`, 0 for all others.

    Raises:
        UserError: the table has no such category, or no other.
    """
    if positive not in table.class_names or len(table.class_names) < 2:
        names = ", ".join(table.class_names[:10]) + (" …" if len(table.class_names) > 10 else "")
        raise UserError(
            f"task.positive={positive}: table {table.path} has the categories {names}; name one of two or more"
        )
    return Labels((f"not {positive}", positive), np.array([int(name == positive) for name in table.class_names]))


def _labels(table: Table, config: TaskConfig) -> Labels:
    assert config.positive is not None, "TaskConfig.check"
    return found_or_not(table, config.positive)


def _more(logits: NDArray[Any], labels: NDArray[np.int64], settings: EvaluateConfig) -> dict[str, Any]:
    return {"precision_at_recall": precision_at_recall(logits, labels, settings.recalls)}


SENSITIVE = Task(
    name="sensitive",
    kind="categories",
    metric_names=(*BINARY, "average_precision"),
    monitor="average_precision",
    loss=binary_loss,
    label_dtype=torch.float32,
    metrics=sensitive_metrics,
    labels=_labels,
    known_labels=lambda table, names: found_or_not(table, names[1]),
    head_class=MbsdForClassification,
    head=binary_head,
    more=_more,
)
