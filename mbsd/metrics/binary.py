"""The five metrics of the matching tasks (SPEC 7), by scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

BINARY = ("accuracy", "precision", "recall", "f1", "roc_auc")


def binary_metrics(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 at probability 0.5, and ROC-AUC, of N logits against N labels (0 or 1).

    ROC-AUC is not defined where all labels are equal: the key is then absent.
    """
    predicted = logits > 0
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="binary", zero_division=0.0)
    metrics = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }
    if 0 < labels.sum() < len(labels):
        metrics["roc_auc"] = float(roc_auc_score(labels, logits))
    return metrics
