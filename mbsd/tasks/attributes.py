"""Attribute prediction: does the tag "colour:red" hold for the item? A linear layer on h (SPEC 7)."""

from __future__ import annotations

import torch

from mbsd.metrics.binary import BINARY, binary_metrics
from mbsd.model.heads import MbsdForClassification
from mbsd.objectives.labels import binary_loss
from mbsd.tasks.task import Task, binary_head, yes_or_no

ATTRIBUTES = Task(
    name="attributes",
    kind="attributes",
    metric_names=BINARY,
    monitor="roc_auc",
    loss=binary_loss,
    label_dtype=torch.float32,
    metrics=binary_metrics,
    labels=yes_or_no,
    known_labels=yes_or_no,
    head_class=MbsdForClassification,
    head=binary_head,
    groups=("where", "attribute"),
)
