"""A task table with a share of its training labels: what a model learns of fewer of them."""

from __future__ import annotations

from collections import defaultdict
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.layout import draw
from mbsd.catalog.reader import Catalog
from mbsd.catalog.table_file import Table, write_table
from mbsd.errors import UserError


def sample_table(table: Table, catalog: Catalog, share: float, out: Path, seed: int = 0) -> int:
    """Write the table with a share of its training rows and all others; returns how many training rows are kept.

    What is drawn is a label: an item's category; of attributes an item's value, with the wrong tags beside it; else a
    row. Of each class (category, value, or label) a share is kept, rounded up, so that none vanishes. Of one class the
    labels whose hash of (seed, item, …) is smallest are kept: those of a smaller share are among those of a larger one.
    Of attributes the hash is the item's alone: it is by and large the same items that keep their values, all of them,
    as where someone has labelled a share of the items; and batches show each of their pictures for several tags.

    Raises:
        UserError: no share, or a table without training rows.
    """
    if not 0 < share <= 1:
        raise UserError(f"share is {share:g}; expected a number above 0, up to 1")
    train = table.rows("train")
    if len(train) == 0:
        raise UserError(f"table {table.path}: its train split is empty; use a table with rows of that split")
    units = _units(table, catalog, train)
    of_class: dict[str, set[_Unit]] = defaultdict(set)
    for unit, name in units.values():
        of_class[name].add(unit)
    kept: set[_Unit] = set()
    for members in of_class.values():
        ordered = sorted(members, key=lambda unit: (draw(seed, unit.drawn), unit))
        kept.update(ordered[: ceil(share * len(ordered) - 1e-9)])
    stays: NDArray[np.bool_] = np.ones(len(table), dtype=bool)
    stays[train] = [units[row][0] in kept for row in train.tolist()]
    rows = table.take(np.flatnonzero(stays))
    write_table(table.kind, rows, catalog, out, made=table.made, split_by=table.split_by)
    return int(stays[train].sum())


class _Unit(NamedTuple):
    """A label that is kept or not, by ids that are the same in every catalogue of these items.

    Attributes:
        name: of the label.
        drawn: what its place in the draw is the hash of.
    """

    name: str
    drawn: str


def _units(table: Table, catalog: Catalog, train: NDArray[np.int64]) -> dict[int, tuple[_Unit, str]]:
    """Training row -> (the label that it belongs to, its class)."""
    if table.kind == "attributes":
        return _values(table, catalog, train)
    names = [name for name in ("item", "item_a", "item_b", "text") if name in table.column_names]
    found = {}
    for row in train.tolist():
        values = table.row(row, (*names, "label"))
        unit = "\t".join(catalog.record(values[n]).item_id if n != "text" else values[n] for n in names)
        found[row] = _Unit(unit, unit), str(values["label"])
    return found


def _values(table: Table, catalog: Catalog, train: NDArray[np.int64]) -> dict[int, tuple[_Unit, str]]:
    """Of attributes: an item's attribute, and the value that it has; "" where all its tags are wrong."""
    items, texts = table.column("item"), table.column("text")
    names, labels = table.column("attribute"), table.column("label")
    true = {(int(items[row]), names[row]): texts[row] for row in train.tolist() if labels[row] == 1}
    found = {}
    for row in train.tolist():
        key = int(items[row]), names[row]
        value = true[key] if key in true else f"{names[row]}:"
        item_id = catalog.record(key[0]).item_id
        found[row] = _Unit(f"{item_id}\t{key[1]}", item_id), value
    return found
