"""A file of labels (TSV, JSONL, Parquet) -> the rows of a task table, with items named by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mbsd.catalog.layout import SPLITS, WHERE
from mbsd.catalog.record_files import Place, Records, Row, format_of
from mbsd.catalog.sources import label_of, tsv_items, tsv_label
from mbsd.catalog.tsv import TsvRows
from mbsd.errors import UserError

Kind = Literal["pairs", "attributes", "alignment", "categories"]

TSV_COLUMNS_OF_KIND: dict[Kind, int] = {"pairs": 4, "attributes": 4, "alignment": 5, "categories": 3}
# Columns of JSONL and Parquet: those that a row needs, and those that it may have.
NEEDED: dict[Kind, tuple[str, ...]] = {
    "pairs": ("item_id", "text", "label"),
    "attributes": ("item_id", "text", "label"),
    "alignment": ("item_id_a", "item_id_b", "label"),
    "categories": ("item_id", "category"),
}
OPTIONAL: dict[Kind, tuple[str, ...]] = {
    "pairs": ("source", "evidence", "split"),
    "attributes": ("where", "split"),
    "alignment": ("split",),
    "categories": ("split",),
}
MAX_EVIDENCE = 2**31 - 1


@dataclass(frozen=True)
class TaskRow:
    """One row of labels; which fields are filled depends on its kind (see `table_file.SCHEMAS`).

    `split` is empty where the source has none, `catalog` where the row names none.
    """

    place: Place
    item_ids: tuple[str, ...]
    text: str = ""
    label: int = 0
    category: str = ""
    split: str = ""
    source: str = ""
    evidence: int = 0
    where: str = ""
    catalog: str = ""


class TaskRows:
    """The rows of a task table from TSV files, or from JSONL or Parquet whose rows name the items by id.

    Columns of JSONL and Parquet are those of `NEEDED` and, where they are there, `OPTIONAL`; `several`: and `catalog`,
    the name of the catalogue that a row's items are in.

    Attributes:
        is_tsv: whether the items are named by title and image.
    """

    def __init__(self, source: Path, kind: Kind, *, several: bool = False) -> None:
        self._kind: Kind = kind
        self.is_tsv = format_of(source) == "tsv"
        self._rows: TsvRows | Records
        if self.is_tsv:
            self._rows = TsvRows(source, TSV_COLUMNS_OF_KIND[kind])
        else:
            self._rows = Records(source, (*NEEDED[kind], *OPTIONAL[kind], *(("catalog",) if several else ())))

    def __iter__(self) -> Iterator[TaskRow]:
        """Yield the rows.

        Raises:
            UserError: at the first row that cannot be read or belongs to another kind, naming file and row.
        """
        if isinstance(self._rows, TsvRows):
            for place, fields in self._rows:
                yield _of_tsv(place, fields, self._kind)
        else:
            for row in self._rows:
                yield _of_record(row, self._kind)

    def notes(self) -> list[str]:
        """Return in words what was not read, when all rows have been; each is one line."""
        return self._rows.notes()

    @property
    def read(self) -> int:
        """Number of rows read so far."""
        return self._rows.rows


def read_task_rows(source: Path, kind: Kind, *, several: bool = False) -> TaskRows:
    """Return the rows of a source of labels, to be iterated; see `TaskRows`."""
    return TaskRows(source, kind, several=several)


def _of_tsv(place: Place, fields: list[str], kind: Kind) -> TaskRow:
    ids = tuple(item.item_id for item in tsv_items(fields))
    label = tsv_label(place, fields)
    if kind == "categories":
        if not fields[2]:
            raise UserError(f"{place}: the category is empty; expected its name")
        return TaskRow(place, ids, category=fields[2])
    if kind != "alignment" and not fields[0]:
        raise UserError(f"{place}: the {'query' if kind == 'pairs' else 'tag'} is empty; expected text")
    return TaskRow(place, ids, text="" if kind == "alignment" else fields[0], label=label)


def _of_record(row: Row, kind: Kind) -> TaskRow:
    for name in NEEDED[kind]:
        if row.missing(name):
            raise UserError(f"{row.place}: no {name!r}; a row of {kind} needs {', '.join(NEEDED[kind])}")
    ids = ("item_id_a", "item_id_b") if kind == "alignment" else ("item_id",)
    return TaskRow(
        place=row.place,
        item_ids=tuple(row.text(name) for name in ids),
        text=row.text("text"),
        label=label_of(row.place, row.record["label"]) if "label" in NEEDED[kind] else 0,
        category=row.text("category") if kind == "categories" else "",
        split=_one_of(row, "split", SPLITS),
        source=row.text("source"),
        evidence=_evidence(row.place, None if row.missing("evidence") else row.record["evidence"]),
        where=_one_of(row, "where", WHERE) if kind == "attributes" else "",
        catalog=row.text("catalog"),
    )


def _one_of(row: Row, name: str, known: tuple[str, ...]) -> str:
    text = row.text(name)
    if text and text not in known:
        raise UserError(f"{row.place}: {name} is {text!r}; expected {' | '.join(known)}, or nothing")
    return text


def _evidence(place: Place, value: Any) -> int:
    if value is None:
        return 0
    whole = int(value) if isinstance(value, int | float) and value == value // 1 else -1
    if not 0 <= whole <= MAX_EVIDENCE:
        raise UserError(f"{place}: 'evidence' is {value!r}; expected a count of buyers (0, 1, 2 …)")
    return whole
