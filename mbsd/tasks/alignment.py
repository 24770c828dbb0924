"""Alignment: are two items the same product? One encoder for both, a linear layer on both vectors (SPEC 7).

A batch of B/2 rows holds 2 · B/2 samples: the first items, then the second ones (`mbsd.batch.Batch`).
"""

from __future__ import annotations

from typing import Any

import torch

from mbsd.config.stages import TaskConfig
from mbsd.metrics.binary import BINARY, binary_metrics
from mbsd.model.heads import MbsdForAlignment
from mbsd.objectives.labels import binary_loss
from mbsd.tasks.task import Labels, Task, binary_head, yes_or_no


def _pair_head(labels: Labels, config: TaskConfig) -> dict[str, Any]:
    return binary_head(labels, config) | {"pair_head": config.pair_head or "compare"}


ALIGNMENT = Task(
    name="alignment",
    kind="alignment",
    metric_names=BINARY,
    monitor="roc_auc",
    loss=binary_loss,
    label_dtype=torch.float32,
    metrics=binary_metrics,
    labels=yes_or_no,
    known_labels=yes_or_no,
    head_class=MbsdForAlignment,
    head=_pair_head,
)
