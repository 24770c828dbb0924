"""The metrics of a task over the rows of a table: over all, with intervals, and broken down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbsd.catalog.tables import Table
from mbsd.config.scoring import EvaluateConfig
from mbsd.metrics.table_scores import TableScores
from mbsd.scoring.intervals import intervals
from mbsd.tasks.task import Int64, Task


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
            chance = groups.get("chance", {}).get(name)
            interval = f" [{low:.4f}, {high:.4f}]" if low is not None else ""
            shown.append(f"{name} {value:.4f}{interval}" + (f" chance {chance:.4f}" if chance is not None else ""))
        lines.append(f"{view}: " + "  ".join(shown))
    return lines
