"""What floors of attributes know of an item's category, as a model that was fine-tuned on categories before does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.errors import UserError
from mbsd.scoring.floor_features import Features, Int64, together
from mbsd.tasks.probe import fitted

FOLDS = 5
INVERSE_PENALTY = 10.0


@dataclass(frozen=True)
class SeenCategories:
    """The training rows of a table of categories.

    Attributes:
        items: their numbers in `Joined` of two catalogues, or in the one that both tables are of.
        labels: numbers of their categories.
    """

    items: Int64
    labels: Int64

    @classmethod
    def read(cls, table: Path, its_catalog: Catalog, catalog: Catalog) -> SeenCategories:
        """Those of a table; `catalog`: of the attributes.

        Raises:
            UserError: it is of another kind, cannot be read, or has no training row.
        """
        found = Table(table, its_catalog, "categories")
        rows = found.rows("train")
        if len(rows) == 0:
            raise UserError(f"table {table}: its train split is empty; use a table with rows of that split")
        behind = 0 if its_catalog.path == catalog.path else len(catalog)
        return cls(found.column("item")[rows] + behind, found.column("label")[rows])


def with_categories(features: Mapping[str, Features], items: Int64, seen: SeenCategories) -> dict[str, Features]:
    """Each kind of features, and beside it the probability of each category that a classifier reads from it.

    An item whose category is among `seen` is classified by a model that was trained without it: otherwise training
    items would look better known than those that are asked.

    Args:
        features: name -> [items, features], dense or sparse.
        items: of the features, sorted: all of `seen` are among them.

    Returns:
        name -> [items, features + categories].
    """
    at = np.searchsorted(items, seen.items)
    return {name: _beside(of_items, _probabilities(of_items, at, seen.labels)) for name, of_items in features.items()}


def _beside(of_items: Features, probabilities: NDArray[np.float64]) -> Features:
    if scipy.sparse.issparse(of_items):
        return together(of_items, probabilities)
    return np.hstack([of_items, probabilities])


def _probabilities(of_items: Features, at: Int64, labels: Int64) -> NDArray[np.float64]:
    found = np.zeros((of_items.shape[0], int(labels.max()) + 1))
    everywhere = np.arange(of_items.shape[0])
    folds = KFold(FOLDS, shuffle=True, random_state=0).split(at) if len(at) >= FOLDS else []
    parts = [(np.arange(len(at)), everywhere), *((learned, at[rest]) for learned, rest in folds)]
    for learned, asked in parts:
        found[asked] = 0  # also of a category that is in none of the rows which this model learns from
        known = np.unique(labels[learned])
        if len(known) == 1:
            found[asked, known] = 1
        else:
            model = fitted(of_items[at[learned]], labels[learned], INVERSE_PENALTY)
            found[np.ix_(asked, known)] = model.predict_proba(of_items[asked])
    return found
