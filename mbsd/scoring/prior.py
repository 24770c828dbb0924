"""What little tells of a row's label: its tag without any item, or the words that two titles have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.catalog.twins.pairs import share_in_common, title_words
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


def describe_words_in_common(table: Table, catalog: Catalog) -> str:
    """Return a line with the ROC-AUC of the titles' words in common, for a table of alignment."""
    rows = table.rows("test")
    labels = table.column("label")[rows]
    if not 0 < labels.sum() < len(rows):
        return f"what titles' words in common tell: cannot be measured on {len(rows)} test rows of one label"
    items, others = (table.column(name)[rows].tolist() for name in ("item_a", "item_b"))
    words = {item: title_words(catalog.title(item)) for item in {*items, *others}}
    titles = [(words[item], words[other]) for item, other in zip(items, others, strict=True)]
    told = {
        "their number": [len(one & other) for one, other in titles],
        "their share of the second title": [share_in_common(one, other) for one, other in titles],
        "of both titles": [share_in_common(one & other, one | other) for one, other in titles],
    }
    by = ", ".join(
        f"{name} {binary_metrics(np.array(scores, dtype=np.float64), labels)['roc_auc']:.3f}"
        for name, scores in told.items()
    )
    return (
        f"titles' words in common, without the pictures, tell right from wrong with ROC-AUC by {by} on the {len(rows)} "
        "test rows"
    )
