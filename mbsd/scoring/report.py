"""The metrics of a task over the rows of a table: over all, with intervals, and broken down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mbsd.catalog.tables import Table
from mbsd.config.scoring import EvaluateConfig
from mbsd.metrics.table_scores import TableScores
from mbsd.scoring.intervals import intervals
from mbsd.tasks.task import Int64, Task
from mbsd.tasks.vector_task import Measured


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
        compared, more = task.compare(of_view, scores.labels, settings) if task.compare else (of_view, {})
        if task.more is not None:
            more = {**more, **task.more(compared, scores.labels, settings)}
        result[view] = lines_of_view(Measured(task.metrics, compared, scores.labels, more, groups), settings)
    return result


def lines_of_view(measured: Measured, settings: EvaluateConfig) -> dict[str, Any]:
    """What a report says of one view: metrics over all rows, 95 % intervals, further lines, and broken down."""
    metrics, scores, labels = measured.metrics, measured.scores, measured.labels
    lines: dict[str, Any] = {"all": metrics(scores, labels)}
    if settings.bootstrap:
        lines["interval"] = intervals(metrics, scores, labels, settings.bootstrap, settings.bootstrap_seed)
    lines |= measured.more
    for name, values in measured.groups.items():
        lines[name] = {
            str(value): metrics(scores[values == value], labels[values == value]) for value in np.unique(values)
        }
    return lines


def heading(settings: EvaluateConfig, task: str, samples: int, labels: Sequence[str]) -> dict[str, Any]:
    """What a report begins with: what was measured of which model, on how many rows, and what their labels mean."""
    return {
        "model": settings.model,
        "task": task,
        "split": settings.split,
        "catalog": settings.data.catalog or {one.known_as: one.path for one in settings.data.catalogs or ()},
        "table": settings.data.table,
        "samples": samples,
        "labels": list(labels),
    }


def lines_of(views: Mapping[str, Any]) -> list[str]:
    """A report as lines for the screen."""
    lines = []
    for view, groups in views.items():
        shown = []
        for name, value in groups["all"].items():
            low, high = groups.get("interval", {}).get(name, (None, None))
            chance = groups.get("chance", {}).get(name)
            interval = f" [{low:.4f}, {high:.4f}]" if low is not None else ""
            shown.append(f"{name} {value:.4f}{interval}" + (f" chance {chance:.4f}" if chance is not None else ""))
        lines.append(f"{view}: " + "  ".join(shown))
    return lines
