"""The splits of a source's rows of labels: the source's own, else that of the row's item, with all that are its equals.

Rows of alignment name two items, so their splits are those of connected components: of the groups of equal items, with
the pairs as further links. No item is then in two splits. Where pairs link nearly all items with each other, one split
has nearly all rows; then the negatives can be left out of the links, and those between two splits out of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.groups import GroupOptions, Groups, find_groups
from mbsd.catalog.labels import Contradictions
from mbsd.catalog.layout import SPLITS, split_of
from mbsd.catalog.several import Items
from mbsd.catalog.task_rows import Kind, TaskRow
from mbsd.errors import UserError

Int64 = NDArray[np.int64]
LARGE = 0.3  # of the rows in one component: the share of no split is then near what it should be


@dataclass(frozen=True)
class LabelOptions:
    """How the rows of a source become a table.

    Attributes:
        contradictions: what to do with rows that say different things of the same text and item, pair or item: stop,
            or drop all of them.
        group: which items are in one split.
        cut_negatives: of alignment: negative pairs link no items, and one between two splits is left out.
    """

    contradictions: Contradictions = "stop"
    group: GroupOptions = field(default_factory=GroupOptions)
    cut_negatives: bool = False

    def check(self, kind: Kind) -> None:
        """Raise a UserError where an option asks for what a table of this kind does not have."""
        if self.cut_negatives and kind != "alignment":
            raise UserError(f"--cut-negatives is of alignment, whose rows name two items; the table is of {kind}")
        if self.cut_negatives and not self.group.by:
            raise UserError("--cut-negatives is of splits by group, and --group is none; leave one of them out")


@dataclass(frozen=True)
class RowSplits:
    """How rows are split.

    Attributes:
        of: the split of each row; "" where it is to be left out, as a negative pair between two splits.
        by: how it was found, for the table's metadata (see `table_file.Table.split_by`).
        notes: what the user should know of it, a line each.
    """

    of: list[str]
    by: dict[str, Any]
    notes: list[str]


def split_rows(rows: Sequence[TaskRow], items: Int64, catalog: Items, options: LabelOptions) -> RowSplits:
    """Return the splits of rows.

    Args:
        rows: of one kind.
        items: the numbers of each row's items in the catalogue, int64 [rows, 1], or [rows, 2] for alignment.
        catalog: whose items they are.
        options: which items are in one split.
    """
    if not rows:
        return RowSplits([], {}, [])
    given = np.array([row.split for row in rows], dtype=object)
    is_given = given != ""
    if not options.group.by:
        own = np.array([row.split or split_of(min(row.item_ids)) for row in rows], dtype=object)
        return RowSplits(own.tolist(), {"by": "source"} if is_given.all() else {"by": "item"}, [])
    groups = find_groups(catalog, options.group)
    of, notes = groups, []
    if items.shape[1] == 2:
        linking = items[[row.label == 1 for row in rows]] if options.cut_negatives else items
        of = groups.joined(linking[:, 0], linking[:, 1])
    names = np.array(SPLITS, dtype=object)[of.split[items]]
    together = (names == names[:, :1]).all(axis=1)
    splits = np.where(is_given, given, np.where(together, names[:, 0], ""))
    by: dict[str, Any] = {"by": "source"}
    if not is_given.all():
        by = options.group.described() | ({"given_rows": int(is_given.sum())} if is_given.any() else {})
        notes.append(groups.describe())
        if items.shape[1] == 2:
            notes += _components(of, items[splits != ""], options)
    if is_given.any():
        notes.append(_kept(groups, items, splits))
    return RowSplits(splits.tolist(), by, notes)


def _components(of: Groups, items: Int64, options: LabelOptions) -> list[str]:
    """What to know of the components of the rows that are kept: how many, and how much is in the largest."""
    if not len(items):
        return []
    rows_of = np.bincount(of.number[items[:, 0]])
    largest = int(rows_of.argmax())
    named = np.unique(items)
    share = rows_of[largest] / len(items)
    where = SPLITS[of.split[named[of.number[named] == largest][0]]]
    held = f"{rows_of[largest]} of {len(items)} rows ({share:.1%}) and {(of.number[named] == largest).sum()} items"
    by = "positive pairs" if options.cut_negatives else "pairs"
    sets = np.count_nonzero(rows_of)
    notes = [f"{sets} sets of items that {by} link are each in one split; the largest has {held}"]
    if share > LARGE:
        other = "" if options.cut_negatives else "--cut-negatives (leaves out negative pairs between two splits), "
        notes.append(
            f"WARNING: one set has {share:.0%} of the rows, all in {where}, so that the splits are far from 80, 10 and "
            f"10 %; give {other}a column `split` of your own, or --group none (items are then in two splits)"
        )
    return notes


def _kept(groups: Groups, items: Int64, splits: NDArray[Any]) -> str:
    """How many items, equal ones counted once, the source's own splits put into two."""
    number = np.concatenate([groups.number[items[:, side]] for side in range(items.shape[1])])
    split = np.concatenate([splits] * items.shape[1])
    pairs = {(one, name) for one, name in zip(number.tolist(), split.tolist(), strict=True) if name}
    named = {one for one, _ in pairs}
    cut = np.bincount([one for one, _ in pairs])
    return (
        f"the source's own splits are kept: {np.count_nonzero(cut > 1)} of {len(named)} items (equal ones counted "
        "once) are in more than one of them"
    )
