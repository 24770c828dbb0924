"""The contract of a downstream task: which table, what its labels are, which head, which loss, which metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbsd.catalog.tables import Kind, Table
from mbsd.config.scoring import EvaluateConfig
from mbsd.config.stages import TaskConfig
from mbsd.data.samples import Relabelled, Samples, TableSamples
from mbsd.errors import UserError
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.stages.labelled import TaskLoss, TaskMetrics

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """What a task makes of a table's labels.

    Attributes:
        names: of the task's labels 0, 1, …
        of: int64, the task's label of each label of the table; -1: none.
    """

    names: tuple[str, ...]
    of: Int64


@dataclass(frozen=True)
class Task:
    """A downstream task; the functions are of its own file.

    Attributes:
        name: as `task.name` has it.
        kind: of its table.
        metric_names: what `metrics` gives, where it is defined.
        monitor: the metric that the best checkpoint is chosen by, if the settings name none.
        loss: None: nothing is trained.
        label_dtype: of `Batch.labels_B`.
        metrics: (scores [n] or [n, C], labels [n]) -> named values, of all rows or any of them.
        labels: (table, its settings) -> what becomes of the table's labels.
        known_labels: the same for a trained model: (table, names of the model's labels).
        head_class, head: the model, and the settings of BackboneConfig that it is made with.
        groups: columns of the table; metrics are broken down by their values too.
        more: (scores [n] or [n, C], labels [n], settings of the evaluation) -> further lines of a report.
        compare: (scores [n, D], labels [n], settings of the evaluation) -> what `metrics` reads instead of the scores,
            and further lines of a report; None: the scores themselves.
    """

    name: str
    kind: Kind
    metric_names: tuple[str, ...]
    monitor: str
    loss: TaskLoss | None
    label_dtype: torch.dtype
    metrics: TaskMetrics
    labels: Callable[[Table, TaskConfig], Labels]
    known_labels: Callable[[Table, tuple[str, ...]], Labels]
    head_class: type[MbsdPreTrainedModel]
    head: Callable[[Labels, TaskConfig], dict[str, Any]]
    groups: tuple[str, ...] = ()
    more: Callable[[NDArray[Any], Int64, EvaluateConfig], dict[str, Any]] | None = None
    compare: Callable[[NDArray[Any], Int64, EvaluateConfig], tuple[NDArray[Any], dict[str, Any]]] | None = None


def yes_or_no(table: Table, _: Any) -> Labels:
    """Labels of a table that holds 0 and 1."""
    return Labels(("no", "yes"), np.arange(2))


def binary_head(labels: Labels, config: TaskConfig) -> dict[str, Any]:
    """One logit, of label 1."""
    return {"num_labels_out": 1, "id2label": dict(enumerate(labels.names))}


def task_samples(table: Table, split: str, labels: Labels) -> Samples:
    """The rows of a split with the task's labels.

    Raises:
        UserError: the split is empty, or a row's category is none that the task knows.
    """
    rows = table.rows(split)
    if len(rows) == 0:
        raise UserError(f"table {table.path}: its {split} split is empty; use a table with rows of that split")
    unknown = np.flatnonzero(labels.of[table.column("label")[rows]] < 0)
    if len(unknown):
        row = int(rows[unknown[0]])
        raise UserError(
            f"table {table.path}, row {row + 1}: category {table.column('category')[row]!r} of the {split} split is "
            f"none of the {len(labels.names)} that the model was trained on; take such rows out, or train with them"
        )
    samples = TableSamples(table, split)
    return samples if np.array_equal(labels.of, np.arange(len(labels.of))) else Relabelled(samples, labels.of)


def shortened(text: str) -> str:
    """A text as messages show it, at most 40 characters."""
    return text if len(text) <= 40 else text[:37] + "..."
