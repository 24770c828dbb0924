"""The contract of a downstream task: which table, what its labels are, which head, which loss, which metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.tables import Kind, Table
from mbsd.config.data import DataConfig
from mbsd.config.scoring import EvaluateConfig
from mbsd.config.stages import TaskConfig
from mbsd.data.loader import Samples, TableSamples
from mbsd.data.samples import Relabelled
from mbsd.errors import UserError
from mbsd.metrics.table_scores import TableScores
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.heads import ViewsOutput
from mbsd.scoring.intervals import intervals
from mbsd.stages.stage import TaskLoss, TaskMetrics

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
        head_class, head: the model, and the settings of MbsdConfig that it is made with.
        says: what of a model's output is scored.
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
    says: Callable[[ViewsOutput], Tensor] = lambda output: output.logits
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
            f"table {table.path}, row {row}: category {table.column('category')[row]!r} of the {split} split is none "
            f"of the {len(labels.names)} that the model was trained on; take such rows out, or train with them"
        )
    samples = TableSamples(table, split)
    return samples if np.array_equal(labels.of, np.arange(len(labels.of))) else Relabelled(samples, labels.of)


def check_training_table(task: Task, table: Table, labels: Labels) -> None:
    """Refuse a table that nothing can be learned from, or that asks for what was never shown.

    Raises:
        UserError: an empty split; one label in all of train or validation; a class of validation or test without a
            row in train, naming the row.
    """
    of_row = labels.of[table.column("label")]
    for split in ("train", "validation"):
        found = np.unique(of_row[table.rows(split)])
        if len(found) == 0:
            raise UserError(f"table {table.path}: its {split} split is empty; use more items")
        if len(found) == 1:
            raise UserError(
                f"table {table.path}: all rows of its {split} split have the label {labels.names[found[0]]!r}; there "
                "is nothing to tell apart: use more items, or a table with both"
            )
    trained = np.unique(of_row[table.rows("train")])
    for split in ("validation", "test"):
        rows = table.rows(split)
        unseen = np.flatnonzero(~np.isin(of_row[rows], trained))
        if len(unseen):
            row = int(rows[unseen[0]])
            raise UserError(
                f"table {table.path}, row {row}: class {labels.names[of_row[row]]!r} of the {split} split has no row "
                "in train; move some of its rows there, or take the class out of the table"
            )


def check_tags(table: Table, splits: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
    """Refuse a tag that the text limit would cut: two tags could become one.

    Raises:
        UserError: naming the first row with such a tag.
    """
    if table.kind != "attributes":
        return
    room = min(data.max_query_tokens, data.max_text_tokens) - 2
    tags, lengths = table.column("text"), {}
    for split in splits:
        for row in table.rows(split).tolist():
            tag = tags[row]
            if tag not in lengths:
                lengths[tag] = len(tokenizer.tokenize(normalise_query(tag)))
            if lengths[tag] > room:
                raise UserError(
                    f"table {table.path}, row {row}: the tag {_short(tag)!r} has {lengths[tag]} tokens, and "
                    f"data.max_query_tokens={data.max_query_tokens} leaves room for {room}; shorten it, or raise "
                    "data.max_query_tokens (and data.max_text_tokens)"
                )


def class_weights(table: Table, labels: Labels, config: TaskConfig) -> Tensor | None:
    """[C] float32: what a row of each class counts in the loss, scaled so that the training rows' mean is 1.

    Raises:
        UserError: not one weight for each class.
    """
    given = config.class_weights
    if given is None:
        return None
    of_row = labels.of[table.column("label")[table.rows("train")]]
    counts = np.bincount(of_row, minlength=len(labels.names))
    if given == "balanced":
        weights = np.ones(len(counts))
        present = np.flatnonzero(counts)
        weights[present] = compute_class_weight("balanced", classes=present, y=of_row)
    else:
        if len(given) != len(counts):
            raise UserError(
                f"task.class_weights={list(given)}: {len(given)} weights, and table {table.path} has {len(counts)} "
                f"classes ({', '.join(map(_short, labels.names[:5]))} …); give one for each, in this order, or balanced"
            )
        weights = np.array(given, dtype=np.float64)
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()


def report(task: Task, scores: TableScores, table: Table, rows: Int64, settings: EvaluateConfig) -> dict[str, Any]:
    """The metrics of each view over all rows, with intervals, and broken down.

    Args:
        scores: of `rows`, in their order.
        rows: row numbers of the table.
        settings: EvaluateConfig.

    Returns:
        view -> {"all": metrics, "interval": {metric: [low, high]} (95 %), group: {value: metrics}, …}.
    """
    groups = {name: np.array([table.column(name)[row] for row in rows]) for name in task.groups}
    result: dict[str, Any] = {}
    for view, of_view in zip(scores.views, scores.logits, strict=True):
        compared, lines = task.compare(of_view, scores.labels, settings) if task.compare else (of_view, {})
        result[view] = {"all": task.metrics(compared, scores.labels), **lines}
        if settings.bootstrap:
            result[view]["interval"] = intervals(
                task.metrics, compared, scores.labels, settings.bootstrap, settings.bootstrap_seed
            )
        if task.more is not None:
            result[view] |= task.more(compared, scores.labels, settings)
        for group, values in groups.items():
            result[view][group] = {
                str(value): task.metrics(compared[values == value], scores.labels[values == value])
                for value in np.unique(values)
            }
    return result


def lines_of(views: Mapping[str, Any]) -> list[str]:
    """A report as lines for the screen."""
    lines = []
    for view, groups in views.items():
        shown = []
        for name, value in groups["all"].items():
            low, high = groups.get("interval", {}).get(name, (None, None))
            shown.append(f"{name} {value:.4f}" + (f" [{low:.4f}, {high:.4f}]" if low is not None else ""))
        lines.append(f"{view}: " + "  ".join(shown))
    return lines


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
