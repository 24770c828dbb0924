"""Classification into the C categories of a table: a linear layer on h, cross-entropy (SPEC 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

from mbsd.catalog.tables import Table
from mbsd.config.stages import TaskConfig
from mbsd.model.heads import MbsdForClassification
from mbsd.objectives.labels import class_loss
from mbsd.tasks.task import Labels, Task


def class_metrics(logits_nC: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur among labels or answers (macro)."""
    predicted = logits_nC.argmax(-1)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    }


def _classes(table: Table, config: TaskConfig) -> Labels:
    return Labels(tuple(table.class_names), np.arange(len(table.class_names)))


def known_classes(table: Table, names: tuple[str, ...]) -> Labels:
    """The labels of a model that was trained on the classes `names`: tables agree by name, not by number."""
    number = {name: k for k, name in enumerate(names)}
    return Labels(names, np.array([number.get(name, -1) for name in table.class_names], dtype=np.int64))


def _head(labels: Labels, config: TaskConfig) -> dict[str, Any]:
    # Two classes have two logits here: one logit would be another task's head.
    return {"num_labels_out": len(labels.names), "id2label": dict(enumerate(labels.names))}


CLASSIFICATION = Task(
    name="classification",
    kind="categories",
    metric_names=("accuracy", "macro_f1"),
    monitor="macro_f1",
    loss=class_loss,
    label_dtype=torch.int64,
    metrics=class_metrics,
    labels=_classes,
    known_labels=known_classes,
    head_class=MbsdForClassification,
    head=_head,
)
