"""Attribute prediction: does the tag "colour:red" hold for the item? A linear layer on h (SPEC 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.tables import Kind, Table
from mbsd.engine.scoring import TableScores
from mbsd.metrics.binary import binary_metrics

TABLE_KIND: Kind = "attributes"


def report(scores: TableScores, table: Table, rows: NDArray[np.int64]) -> dict[str, Any]:
    """The five metrics of each view, over all rows, by attribute, and by where its value can be seen.

    Args:
        scores: of `rows`, in their order.
        rows: row numbers of the table.

    Returns:
        view -> {"all": metrics, "where": {image | title | both | unknown: metrics}, "attribute": {name: metrics}}.
    """
    groups = {name: np.array([table.column(name)[row] for row in rows]) for name in ("where", "attribute")}
    result: dict[str, Any] = {}
    for view, logits_n in zip(scores.views, scores.logits, strict=True):
        result[view] = {"all": binary_metrics(logits_n, scores.labels)}
        for group, values in groups.items():
            result[view][group] = {
                str(value): binary_metrics(logits_n[values == value], scores.labels[values == value])
                for value in np.unique(values)
            }
    return result
