"""First step of the picture: what a shop has (TSV, JSONL, Parquet) -> `Item`s."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbsd.catalog.record_files import Place, Records, Row, format_of, some, text_at
from mbsd.catalog.tsv import TsvRows
from mbsd.catalog.values import NotTextError, as_text
from mbsd.errors import UserError

ITEM_COLUMNS = ("item_id", "title", "image", "category", "attributes")
# What shops call their ids, without case and separators. Ids made of title and image, where the shop's own are there
# under another name, would match no log.
OTHER_IDS = {"id", "itemid", "productid", "goodsid", "spuid", "skuid", "sku", "asin", "gtin", "pid"}
MADE_ID = "[0-9a-f]{16}"  # what `item_id_of` makes


@dataclass(frozen=True)
class Item:
    """One product as the shop describes it; an empty string is a missing title, image or category.

    Attributes:
        item_id: unique in a catalogue.
        title: free text.
        image: a path or URL below the image root.
        category: a leaf category's name.
        attributes: name -> value, such as {"colour": "red"}; several values as `attribute_values` takes them apart:
            {"colour": "red; blue"}.
        place: where it was read; None for one that was made in another way. No part of what it is.
    """

    item_id: str
    title: str = ""
    image: str = ""
    category: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    place: Place | None = field(default=None, compare=False, repr=False)


def item_id_of(title: str, image: str) -> str:
    """16 hex digits that name an item without an id of its own: one product in two rows or files is one item."""
    return hashlib.sha1(f"{title}\t{image}".encode()).hexdigest()[:16]


class Items:
    """The items of TSV, JSONL or Parquet files in the order of their rows; repeated items are not removed.

    Attributes:
        source: the file, folder or pattern.
        without_id: number of items whose id was made of title and image, though their rows may have one.
    """

    def __init__(self, source: Path, columns: Mapping[str, str] | None = None) -> None:
        """Find the files.

        Args:
            source: a file, a folder or a pattern; a column of Parquet may also be in the folders' names
                (`category=shoes/`).
            columns: our name of a column -> the source's, where it is another.

        Raises:
            UserError: there are no such files, or a TSV is given names of columns.
        """
        self._theirs = {name: name for name in ITEM_COLUMNS} | dict(columns or {})
        unknown = next((name for name in self._theirs if name not in ITEM_COLUMNS), None)
        if unknown is not None:
            raise UserError(f"column {unknown!r}; items have {', '.join(ITEM_COLUMNS)}: give --column item_id=sku")
        self.source, self._is_tsv, self.without_id = source, format_of(source) == "tsv", 0
        if self._is_tsv and columns:
            raise UserError(f"{source}: a TSV has no names of columns; leave out --column")
        one_of = (self._theirs["title"], self._theirs["image"])
        self._rows: TsvRows | Records
        self._rows = TsvRows(source) if self._is_tsv else Records(source, self._theirs.values(), one_of)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items.

        Raises:
            UserError: at the first row that cannot be read, naming file and row; or at the first row without an id,
                where it has one under another name.
        """
        self.without_id = 0
        if isinstance(self._rows, TsvRows):
            for place, fields in self._rows:
                tsv_label(place, fields)  # raises where it is none
                yield from tsv_items(fields, place)
            return
        for row in self._rows:
            texts = {name: row.text(self._theirs[name]) for name in ("item_id", "title", "image", "category")}
            if not texts["item_id"]:
                self._check_id(row)
                self.without_id += 1
                texts["item_id"] = item_id_of(texts["title"], texts["image"])
            attributes = _attributes(row.place, row.record.get(self._theirs["attributes"]))
            yield Item(**texts, attributes=attributes, place=row.place)

    def notes(self) -> list[str]:
        """Return in words what was not read, when all rows have been; each is one line."""
        notes = self._rows.notes()
        if self.without_id:
            name = self._theirs["item_id"]
            notes.insert(0, f"{self.without_id} rows without {name!r}: their ids are made of title and image")
        return notes

    def real_paths(self) -> set[str]:
        """Return the paths of the files, with no links in them."""
        return {os.path.realpath(file.path) for file in self._rows.files}

    def _check_id(self, row: Row) -> None:
        names = [*row.record, *(self._rows.unread if isinstance(self._rows, Records) else ())]
        other = next((name for name in names if _is_other_id(name) and name not in self._theirs.values()), None)
        if other is not None and self._theirs["item_id"] not in row.record:
            raise UserError(
                f"{row.place}: no column {self._theirs['item_id']!r}, and {other!r} would not be read (found "
                f"{some(dict.fromkeys(names))}); give --column item_id={other}, or rename it: without an id, one "
                "is made of title and image, and no log's ids will match"
            )


def read_items(source: Path, columns: Mapping[str, str] | None = None) -> Items:
    """Return the items of a source, to be iterated; see `Items`."""
    return Items(source, columns)


def tsv_items(fields: list[str], place: Place | None = None) -> list[Item]:
    """Return the one or two items in a line of a TSV (see `tsv.COLUMNS`)."""

    def item(title: str, image: str, category: str = "") -> Item:
        return Item(item_id_of(title, image), title, image, category, place=place)

    if len(fields) == 2:
        return [item(fields[0], fields[1])]
    if len(fields) == 3:
        return [item(fields[0], fields[1], fields[2])]
    if len(fields) == 4:
        return [item(fields[1], fields[2])]
    return [item(fields[0], fields[1]), item(fields[2], fields[3])]


def tsv_label(place: Place, fields: list[str]) -> int:
    """Return the label of a line of a TSV, 0 where its kind has none (see `label_of`)."""
    return label_of(place, fields[-1]) if len(fields) >= 4 else 0


def label_of(place: Place, value: Any) -> int:
    """Return 0 or 1.

    Raises:
        UserError: the value is neither.
    """
    if isinstance(value, bool):
        return int(value)
    try:
        text = (as_text(value) or "").strip()
    except NotTextError:
        text = ""
    if text in ("0", "1"):
        return int(text)
    raise UserError(f"{place}: the label is {value!r}; expected 0 (no match) or 1 (match)")


def _is_other_id(name: str) -> bool:
    return "".join(filter(str.isalnum, name.casefold())) in OTHER_IDS


def _attributes(place: Place, value: Any) -> dict[str, str]:
    """Return name -> value, none of them missing; of a JSON object, JSON text, or Parquet's map (pairs) or struct."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value else {}
        except ValueError as error:
            raise UserError(f"{place}: 'attributes' is text but not JSON ({error})") from None
    if value is None or value != value:
        return {}
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = _once(place, value)
    if not isinstance(value, dict):
        raise UserError(f"{place}: 'attributes' is a {type(value).__name__}; expected name: value")
    texts = {str(name): _values_at(place, f"attributes.{name}", text) for name, text in value.items()}
    return {name: text for name, text in texts.items() if name and text}


def _values_at(place: Place, name: str, value: Any) -> str:
    """An attribute's value; of a list its values, one behind the other."""
    if not isinstance(value, list):
        return text_at(place, name, value)
    return "; ".join(dict.fromkeys(text for each in value if (text := text_at(place, name, each).strip())))


def _once(place: Place, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return the pairs of a Parquet map, in which nothing forbids a name to be there twice."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise UserError(f"{place}: the attribute {name!r} is both {found[name]!r} and {value!r}; keep one of them")
        found[name] = value
    return found
