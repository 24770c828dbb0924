"""A file of labels (TSV, JSONL, Parquet) -> the rows of a task table, with items named by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mbsd.catalog.record_files import format_of, read_records, text_of
from mbsd.catalog.sources import label_of, tsv_items, tsv_label, tsv_rows
from mbsd.errors import UserError

Kind = Literal["pairs", "attributes", "alignment", "categories"]

TSV_COLUMNS_OF_KIND: dict[Kind, int] = {"pairs": 4, "attributes": 4, "alignment": 5, "categories": 3}


@dataclass(frozen=True)
class TaskRow:
    """One row of labels; which fields are filled depends on its kind (see `table_file.SCHEMAS`).

    `row` counts from 1 (a line of the file) and is for messages alone; `split` is empty where the source has none.
    """

    row: int
    item_ids: tuple[str, ...]
    text: str = ""
    label: int = 0
    category: str = ""
    split: str = ""
    source: str = ""
    evidence: int = 0
    where: str = ""


def read_task_rows(source: Path, kind: Kind) -> Iterator[TaskRow]:
    """Yield the rows of a task table from a TSV, or from JSONL or Parquet whose rows name the items by id.

    JSONL and Parquet columns (in brackets: optional): pairs `text item_id label [source evidence split]`; attributes
    `text item_id label [where split]`; alignment `item_id_a item_id_b label [split]`; categories
    `item_id category [split]`.

    Raises:
        UserError: at the first row that cannot be read or belongs to another kind, naming file and row.
    """
    if format_of(source) == "tsv":
        for line, fields in tsv_rows(source, TSV_COLUMNS_OF_KIND[kind]):
            ids = tuple(item.item_id for item in tsv_items(fields))
            label = tsv_label(source, line, fields)
            if kind == "categories":
                if not fields[2]:
                    raise UserError(f"{source}, line {line}: the category is empty; expected its name")
                yield TaskRow(line, ids, category=fields[2])
            else:
                yield TaskRow(line, ids, text="" if kind == "alignment" else fields[0], label=label)
        return
    id_columns = ("item_id_a", "item_id_b") if kind == "alignment" else ("item_id",)
    needed = {"pairs": ("text", "label"), "attributes": ("text", "label"), "alignment": ("label",)}.get(
        kind, ("category",)
    )
    optional = {"pairs": ("source", "evidence", "split"), "attributes": ("where", "split")}.get(kind, ("split",))
    for row, record in read_records(source, (*id_columns, *needed, *optional)):
        for name in (*id_columns, *needed):
            if record.get(name) in (None, ""):
                raise UserError(
                    f"{source}, row {row}: no {name!r}; a {kind} row needs {', '.join(id_columns + needed)}"
                )
        evidence = record.get("evidence") or 0
        if not isinstance(evidence, int) or evidence < 0:
            raise UserError(f"{source}, row {row}: 'evidence' is {evidence!r}; expected a count of buyers (0, 1, 2 …)")
        yield TaskRow(
            row=row,
            item_ids=tuple(text_of(source, row, record, name) for name in id_columns),
            text=text_of(source, row, record, "text"),
            label=label_of(source, row, record["label"]) if "label" in needed else 0,
            category=text_of(source, row, record, "category"),
            split=text_of(source, row, record, "split"),
            source=text_of(source, row, record, "source"),
            evidence=evidence,
            where=text_of(source, row, record, "where"),
        )
