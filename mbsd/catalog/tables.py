"""Task tables over a catalogue: built from the rows of a file, or derived from the items' own metadata."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mbsd.catalog.groups import GroupOptions, Groups, find_groups
from mbsd.catalog.labels import Labels
from mbsd.catalog.layout import SPLITS
from mbsd.catalog.negatives import NegativeOptions, TagLimits, read_tags
from mbsd.catalog.reader import Catalog
from mbsd.catalog.row_count import RowCount
from mbsd.catalog.row_items import RowItems
from mbsd.catalog.row_splits import LabelOptions, split_rows
from mbsd.catalog.several import Catalogs, Items
from mbsd.catalog.sources import MADE_ID
from mbsd.catalog.table_file import SCHEMAS, Table, write_table
from mbsd.catalog.task_rows import TSV_COLUMNS_OF_KIND, Kind, TaskRow, read_task_rows
from mbsd.catalog.twins.pairs import alignment_rows
from mbsd.errors import UserError

DERIVED: tuple[Kind, ...] = ("attributes", "categories", "alignment")

__all__ = [
    "SCHEMAS",
    "DeriveOptions",
    "Kind",
    "LabelOptions",
    "Table",
    "TableSummary",
    "build_table",
    "derive_table",
    "write_table",
]


@dataclass
class TableSummary:
    """What was written.

    Attributes:
        rows: of the table.
        splits: split -> rows.
        labels: label -> rows.
        count: the account of the source's rows, or of the items' facts.
        split_notes: how the rows were split, a line each.
        made: what the table says of how it was made (`table_file.Table.made`).
    """

    rows: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    count: RowCount = field(default_factory=RowCount)
    split_notes: list[str] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """Return one line: rows by split, positives or number of classes, and what was left out."""
        splits = ", ".join(f"{name} {self.splits[name]}" for name in SPLITS)
        labels = f"{self.labels[1]} positive" if set(self.labels) <= {0, 1} else f"{len(self.labels)} classes"
        left_out = f"; left out: {self.count.describe_left_out()}" if self.count.left_out else ""
        return f"{self.rows} rows ({splits}), {labels}{left_out}"


@dataclass(frozen=True)
class DeriveOptions:
    """How a table follows from the items' metadata.

    Attributes:
        seed: of the negatives' draw.
        negatives: of attributes: which wrong tags there are; of alignment: how many there are for each positive.
        min_items: of categories: those with fewer items are left out.
        group: which items are in one split.
        tags: of attributes: which values are asked.

    Raises:
        UserError: a number is out of range.
    """

    seed: int = 0
    negatives: NegativeOptions = field(default_factory=NegativeOptions)
    min_items: int = 1
    group: GroupOptions = field(default_factory=GroupOptions)
    tags: TagLimits = field(default_factory=TagLimits)

    def __post_init__(self) -> None:
        if self.min_items < 1:
            raise UserError(f"min_items is {self.min_items}; expected 1 or more")


def build_table(
    kind: Kind, source: Path, catalog: Items, out: Path, options: LabelOptions | None = None
) -> TableSummary:
    """Write the table of a TSV, JSONL or Parquet `source` (columns: see `task_rows.TaskRows`).

    A row whose item is not in the catalogue is left out and counted, and so is one that repeats an earlier row's label.
    The split is the source's own where it has one, else that of the item's group, or, of an alignment row, of all pairs
    that are linked with it (see `row_splits`). A category's label is its position in the sorted list of those that
    occur.

    Args:
        kind: of the table.
        source: a file, a folder or a pattern.
        catalog: whose items the rows name; of several, a column `catalog` says which, unless one alone has the id.
        out: the table's file.
        options: None = the defaults.

    Raises:
        UserError: the source cannot be read, contradicts itself, names a catalogue that is not there or an item that
            two have, or not one of its items is in the catalogue.
    """
    if kind not in TSV_COLUMNS_OF_KIND:
        raise UserError(f"table kind {kind!r}; expected one of {', '.join(TSV_COLUMNS_OF_KIND)}")
    options = options or LabelOptions()
    options.check(kind)
    several = isinstance(catalog, Catalogs)
    if several and options.group.titles is not None:
        raise UserError(f"--group-titles {options.group.titles}: is of one catalogue's items; leave it out for several")
    summary = TableSummary()
    given = read_task_rows(source, kind, several=several)
    labels, find = Labels(kind, options.contradictions), RowItems(catalog)
    for read in given:
        row, numbers = find.of(read)
        if None in numbers:
            unknown = row.item_ids[numbers.index(None)]
            summary.count.leave_out("item not in the catalogue", f"{row.place}: {unknown}")
        else:
            labels.add(row, summary.count)
    summary.count.notes += given.notes()
    kept = labels.kept()
    items = np.array([find.of(row)[1] for row in kept], dtype=np.int64)
    splits = split_rows(kept, items, catalog, options)
    summary.split_notes += splits.notes
    rows = []
    for row, numbers, split in zip(kept, items.tolist(), splits.of, strict=True):
        if split:
            rows.append(_values(kind, row, numbers, split, catalog))
        else:
            summary.count.leave_out("negative pair between two splits", str(row.place))
    summary.count.used = len(rows)
    summary.count.reconcile(given.read, str(source))
    if not rows:
        raise UserError(_no_rows(source, catalog, given.is_tsv, summary.count))
    if kind == "categories":
        label_of = {name: label for label, name in enumerate(sorted({row["category"] for row in rows}))}
        for values in rows:
            values["label"] = label_of[values["category"]]
    return _write(kind, rows, catalog, out, summary, splits.by)


def _no_rows(source: Path, catalog: Items, is_tsv: bool, count: RowCount) -> str:
    """Return why a source has no row for this catalogue, and what to do."""
    if not count.read:
        return f"{source}: no rows"
    if count.left_out["item not in the catalogue"] < count.read:
        return f"{source}: no row is left ({count.describe_left_out()})"
    found = f"{source}: none of its {count.read} rows names an item of {catalog.path} ({count.describe_left_out()})"
    own = catalog.record(0).item_id
    if is_tsv and not re.fullmatch(MADE_ID, own):
        return (
            f"{found}; a TSV names an item by its title and image, which fits a catalogue of items without an id "
            f"(its ids are made of them), this one's first id is {own!r}; give the labels as JSONL or Parquet with "
            "item_id"
        )
    return f"{found}; build the catalogue from the same items"


def derive_table(kind: Kind, catalog: Catalog, out: Path, options: DeriveOptions | None = None) -> TableSummary:
    """Write the table that follows from the items' own metadata; the same for the same catalogue and options.

    A row's split is that of its item's group (see `groups`).

    attributes: for each attribute of each item the tag "name:value" with label 1, and tags with other values of that
    attribute, label 0, that are surely wrong (see `negatives`). An attribute with a single value in the whole catalogue
    is left out, for it asks nothing, and so is an item's value without any other that is surely wrong. Which values
    may both be true is written beside the table.
    categories: each item whose category has at least `min_items` items, and one of them in train if any category has;
    labels in the categories' sorted order.
    alignment: of a catalogue with twins (see `twins.make`), each item with its twin, label 1, and with the twin of
    another item that is like it, label 0 (see `twins.pairs`); the table says that it was made so.

    Raises:
        UserError: another kind, or no item has what the table needs.
    """
    options = options or DeriveOptions()
    summary = TableSummary()
    if kind not in DERIVED:
        raise UserError(f"table kind {kind!r} cannot be derived from items; expected {', '.join(DERIVED)}")
    groups = find_groups(catalog, options.group)
    tags = None
    if kind == "attributes":
        tags = read_tags(groups, options.group, options.negatives, options.tags)
        rows = tags.rows(options.seed, summary.count)
        summary.count.notes += tags.notes
        lacking = "two values of one attribute that cannot both be true"
    elif kind == "alignment":
        rows = alignment_rows(groups, options.group, options.seed, options.negatives.per_positive, summary.count)
        summary.made, lacking = {"from": "twins"}, "a twin"
    else:
        rows = _category_rows(groups, options.min_items, summary)
        lacking = "a category" + (f" of at least {options.min_items} items" if options.min_items > 1 else "")
    if not rows:
        raise UserError(f"catalogue {catalog.path}: no items with {lacking}; build it from a source that has them")
    summary.split_notes.append(groups.describe())
    _write(kind, rows, catalog, out, summary, options.group.described())
    if tags is not None:
        summary.count.notes.append(f"values that may both be true: {tags.write_ambiguity(out)}")
    return summary


def _values(kind: Kind, row: TaskRow, numbers: list[int], split: str, catalog: Items) -> dict[str, Any]:
    if kind == "alignment":
        return {"item_a": numbers[0], "item_b": numbers[1], "label": row.label, "split": split}
    if kind == "categories":
        return {"item": numbers[0], "category": row.category, "split": split}
    values: dict[str, Any] = {"text": row.text, "item": numbers[0], "label": row.label, "split": split}
    if kind == "pairs":
        return {**values, "source": row.source or "given", "evidence": row.evidence, "replaced": ""}
    name = row.text.partition(":")[0]
    return {**values, "attribute": name, "where": row.where or catalog.attribute_where.get(name, "unknown")}


def _category_rows(groups: Groups, min_items: int, summary: TableSummary) -> list[dict[str, Any]]:
    columns = groups.catalog.table().select(["item_id", "category"]).to_pydict() | {"split": groups.splits()}
    counts = Counter(columns["category"])
    in_train = {name for name, split in zip(columns["category"], columns["split"], strict=True) if split == "train"}
    if not any(in_train):  # nothing is trained on such a catalogue; it may be there to be scored
        in_train = set(counts)
    kept = sorted(name for name, count in counts.items() if name in in_train and name and count >= min_items)
    label_of = {name: label for label, name in enumerate(kept)}
    rows = []
    for item, (item_id, category, split) in enumerate(zip(*columns.values(), strict=True)):
        if category in label_of:
            rows.append({"item": item, "label": label_of[category], "category": category, "split": split})
        elif category and counts[category] >= min_items:
            where = f"item {item_id}: no item of {category!r} is in train"
            summary.count.leave_out("item of a category without one in train", where)
        elif category:
            where = f"item {item_id}: {category!r} has {counts[category]} items"
            summary.count.leave_out("item of a small category", where)
        else:
            summary.count.leave_out("item without a category", f"item {item_id}")
    return rows


def _write(
    kind: Kind,
    rows: Iterable[dict[str, Any]],
    catalog: Items,
    out: Path,
    summary: TableSummary,
    split_by: dict[str, Any],
) -> TableSummary:
    table = pa.Table.from_pylist(list(rows), schema=SCHEMAS[kind])
    write_table(kind, table, catalog, out, split_by=split_by, made=summary.made)
    summary.rows = table.num_rows
    summary.splits = Counter(table["split"].to_pylist())
    summary.labels = Counter(table["label"].to_pylist())
    return summary
