"""What the tag of a row alone tells of its label, without any item: a table should not be solvable so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.tables import Table
from mbsd.metrics.binary import binary_metrics

SEEN_BEFORE = 1.0  # a right and a wrong row of every tag, so that a rare one says little


def tag_log_odds(table: Table) -> NDArray[np.float64]:
    """Of the test rows of a table of attributes, float64 [test rows]: log (right + 1) / (wrong + 1) in training rows.

    Zero for a tag without a training row.
    """
    tags, place = np.unique(np.array(table.column("text")), return_inverse=True)
    train = table.rows("train")
    right = np.bincount(place[train], weights=table.column("label")[train], minlength=len(tags))
    rows = np.bincount(place[train], minlength=len(tags))
    odds = np.log((right + SEEN_BEFORE) / (rows - right + SEEN_BEFORE))
    return np.asarray(odds[place[table.rows("test")]])


def prior_metrics(table: Table) -> dict[str, float]:
    """The five metrics of these log-odds on the test rows; no ROC-AUC where all their labels are equal."""
    return binary_metrics(tag_log_odds(table), table.column("label")[table.rows("test")])


def describe_prior(table: Table) -> str:
    """Return a line with the ROC-AUC of the tag alone."""
    rows = len(table.rows("test"))
    found = prior_metrics(table).get("roc_auc") if rows else None
    if found is None:
        return f"what a tag tells without the item: cannot be measured on {rows} test rows of one label"
    return f"a tag alone, without the item, tells right from wrong with ROC-AUC {found:.3f} on the {rows} test rows"
