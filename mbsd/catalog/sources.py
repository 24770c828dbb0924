"""First step of the picture: what a shop has (TSV, JSONL, Parquet) -> `Item`s.

A TSV has neither header nor quoting: its number of columns decides what it holds (see `TSV_COLUMNS`), only a tab
separates, and every other character belongs to the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbsd.catalog.record_files import as_text, format_of, read_records, text_lines, text_of
from mbsd.errors import UserError

TSV_COLUMNS: dict[int, str] = {
    2: "title, image",
    3: "title, image, category",
    4: "query or tag, title, image, label",
    5: "title, image, title, image, label",
}
ITEM_COLUMNS = ("item_id", "title", "image", "category", "attributes")


@dataclass(frozen=True)
class Item:
    """One product as the shop describes it; an empty string is a missing title, image or category.

    Attributes:
        item_id: unique in a catalogue.
        title: free text.
        image: a path or URL below the image root.
        category: a leaf category's name.
        attributes: name -> value, such as {"colour": "red"}.
    """

    item_id: str
    title: str = ""
    image: str = ""
    category: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


def item_id_of(title: str, image: str) -> str:
    """16 hex digits that name an item without an id of its own: one product in two rows or files is one item."""
    return hashlib.sha1(f"{title}\t{image}".encode()).hexdigest()[:16]


def read_items(source: Path) -> Iterator[Item]:
    """Yield the items of a TSV, JSONL or Parquet file in the order of its rows; repeated items are not removed.

    Raises:
        UserError: at the first row that cannot be read, naming file and row.
    """
    if format_of(source) == "tsv":
        for line, fields in tsv_rows(source):
            tsv_label(source, line, fields)  # raises where it is none
            yield from tsv_items(fields)
        return
    for row, record in read_records(source, ITEM_COLUMNS, one_of=("title", "image")):
        title, image = text_of(source, row, record, "title"), text_of(source, row, record, "image")
        item_id = text_of(source, row, record, "item_id")
        yield Item(
            item_id=item_id or item_id_of(title, image),
            title=title,
            image=image,
            category=text_of(source, row, record, "category"),
            attributes=_attributes(source, row, record.get("attributes")),
        )


def tsv_rows(source: Path, num_columns: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of a TSV; all lines have as many columns as the first, or `num_columns`.

    Raises:
        UserError: at the first line with another number of columns, naming file and line.
    """
    for number, line in text_lines(source):
        fields = line.split("\t")
        if num_columns is None:
            if len(fields) not in TSV_COLUMNS:
                known = "; ".join(f"{n} = {names}" for n, names in TSV_COLUMNS.items())
                raise UserError(f"{source}, line {number}: {len(fields)} columns; expected {known}")
            num_columns = len(fields)
        if len(fields) != num_columns:
            expected = f"{num_columns} ({TSV_COLUMNS[num_columns]})"
            raise UserError(f"{source}, line {number}: {len(fields)} columns; expected {expected}, separated by tabs")
        yield number, fields


def tsv_items(fields: list[str]) -> list[Item]:
    """Return the one or two items in a line of a TSV (see `TSV_COLUMNS`)."""

    def item(title: str, image: str, category: str = "") -> Item:
        return Item(item_id_of(title, image), title, image, category)

    if len(fields) == 2:
        return [item(fields[0], fields[1])]
    if len(fields) == 3:
        return [item(fields[0], fields[1], fields[2])]
    if len(fields) == 4:
        return [item(fields[1], fields[2])]
    return [item(fields[0], fields[1]), item(fields[2], fields[3])]


def tsv_label(source: Path, line: int, fields: list[str]) -> int:
    """Return the label of a line of a TSV, 0 where its kind has none (see `label_of`)."""
    return label_of(source, line, fields[-1]) if len(fields) >= 4 else 0


def label_of(source: Path, row: int, value: Any) -> int:
    """Return 0 or 1.

    Raises:
        UserError: the value is neither.
    """
    if isinstance(value, str) and value.strip() in ("0", "1"):
        return int(value)
    if isinstance(value, int) and value in (0, 1):
        return int(value)
    raise UserError(f"{source}, row {row}: the label is {value!r}; expected 0 (no match) or 1 (match)")


def _attributes(source: Path, row: int, value: Any) -> dict[str, str]:
    """Return name -> value, without empty values; from a JSON object, JSON text, or Parquet's map (pairs) or struct."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value else {}
        except ValueError as error:
            raise UserError(f"{source}, row {row}: 'attributes' is text but not JSON ({error})") from None
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = dict(value)
    if not isinstance(value, dict):
        raise UserError(f"{source}, row {row}: 'attributes' is a {type(value).__name__}; expected name: value")
    texts = {str(name): as_text(source, row, f"attributes.{name}", text) for name, text in value.items()}
    return {name: text for name, text in texts.items() if name and text}
