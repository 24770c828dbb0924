"""First step of the picture: what a shop has (TSV, JSONL, Parquet) -> `Item`s, and the rows of task tables.

A TSV has no header and no quoting: its number of columns says what it is (see `TSV_COLUMNS`), a tab is the only thing
that separates, and every other character belongs to the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from mbsd.errors import UserError

Kind = Literal["pairs", "attributes", "alignment", "categories"]

TSV_COLUMNS: dict[int, str] = {
    2: "title, image",
    3: "title, image, category",
    4: "query or tag, title, image, label",
    5: "title, image, title, image, label",
}
TSV_COLUMNS_OF_KIND: dict[Kind, int] = {"pairs": 4, "attributes": 4, "alignment": 5, "categories": 3}
SUFFIXES = {".tsv": "tsv", ".txt": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
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


@dataclass(frozen=True)
class SourceRow:
    """One row of a task source; which fields are filled depends on its kind (see `tables.SCHEMAS`).

    `row` counts from 1 (a line of the file) and serves messages only; `split` is empty where the source does not say.
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


def item_id_of(title: str, image: str) -> str:
    """16 hex digits that name an item without an id of its own: one product in two rows or files is one item."""
    return hashlib.sha1(f"{title}\t{image}".encode()).hexdigest()[:16]


def read_items(source: Path) -> Iterator[Item]:
    """Yield the items of a TSV, JSONL or Parquet file in the order of its rows; repeated items are not removed.

    Raises:
        UserError: at the first row that cannot be read, naming file and row.
    """
    if format_of(source) == "tsv":
        for line, fields in _tsv_rows(source):
            _tsv_label(source, line, fields)
            yield from _tsv_items(fields)
        return
    for row, record in read_records(source, ITEM_COLUMNS):
        title, image = text_of(source, row, record, "title"), text_of(source, row, record, "image")
        item_id = text_of(source, row, record, "item_id")
        yield Item(
            item_id=item_id or item_id_of(title, image),
            title=title,
            image=image,
            category=text_of(source, row, record, "category"),
            attributes=_attributes(source, row, record.get("attributes")),
        )


def read_rows(source: Path, kind: Kind) -> Iterator[SourceRow]:
    """Yield the rows of a task table from a TSV, or from JSONL or Parquet with columns that name the items by id.

    JSONL and Parquet columns (in brackets: optional): pairs `text item_id label [source evidence split]`; attributes
    `text item_id label [where split]`; alignment `item_id_a item_id_b label [split]`; categories
    `item_id category [split]`.

    Raises:
        UserError: at the first row that cannot be read or belongs to another kind, naming file and row.
    """
    if format_of(source) == "tsv":
        for line, fields in _tsv_rows(source, TSV_COLUMNS_OF_KIND[kind]):
            ids = tuple(item.item_id for item in _tsv_items(fields))
            label = _tsv_label(source, line, fields)
            if kind == "categories":
                if not fields[2]:
                    raise UserError(f"{source}, line {line}: the category is empty; expected its name")
                yield SourceRow(line, ids, category=fields[2])
            else:
                yield SourceRow(line, ids, text="" if kind == "alignment" else fields[0], label=label)
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
        yield SourceRow(
            row=row,
            item_ids=tuple(text_of(source, row, record, name) for name in id_columns),
            text=text_of(source, row, record, "text"),
            label=_label(source, row, record["label"]) if "label" in needed else 0,
            category=text_of(source, row, record, "category"),
            split=text_of(source, row, record, "split"),
            source=text_of(source, row, record, "source"),
            evidence=evidence,
            where=text_of(source, row, record, "where"),
        )


def format_of(source: Path) -> str:
    """Return tsv, jsonl or parquet, by the file's ending.

    Raises:
        UserError: another ending, or no such file.
    """
    if source.suffix.lower() not in SUFFIXES:
        raise UserError(f"{source}: unknown kind of file {source.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the TSV, JSONL or Parquet file that lists the rows")
    return SUFFIXES[source.suffix.lower()]


def text_lines(source: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line without its end) of every line that is not empty; the number counts from 1.

    Raises:
        UserError: at the first line that is not UTF-8.
    """
    with source.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{source}, line {number}: byte {error.start} is not UTF-8; convert the file to UTF-8"
                ) from None
            line = line.removesuffix("\n").removesuffix("\r")
            if line:
                yield number, line


def _tsv_rows(source: Path, num_columns: int | None = None) -> Iterator[tuple[int, list[str]]]:
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


def _tsv_items(fields: list[str]) -> list[Item]:
    def item(title: str, image: str, category: str = "") -> Item:
        return Item(item_id_of(title, image), title, image, category)

    if len(fields) == 2:
        return [item(fields[0], fields[1])]
    if len(fields) == 3:
        return [item(fields[0], fields[1], fields[2])]
    if len(fields) == 4:
        return [item(fields[1], fields[2])]
    return [item(fields[0], fields[1]), item(fields[2], fields[3])]


def _tsv_label(source: Path, line: int, fields: list[str]) -> int:
    return _label(source, line, fields[-1]) if len(fields) >= 4 else 0


def _label(source: Path, row: int, value: Any) -> int:
    if isinstance(value, str) and value.strip() in ("0", "1"):
        return int(value)
    if isinstance(value, int) and value in (0, 1):
        return int(value)
    raise UserError(f"{source}, row {row}: the label is {value!r}; expected 0 (no match) or 1 (match)")


def read_records(source: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (row, record) of a JSONL or Parquet file, of Parquet only these columns; the row counts from 1.

    Raises:
        UserError: at the first line that is not an object, or the file is not Parquet.
    """
    if format_of(source) == "jsonl":
        for number, line in text_lines(source):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{source}, line {number}: not JSON ({error}); expected one object a line") from None
            if not isinstance(record, dict):
                raise UserError(f"{source}, line {number}: {type(record).__name__}; expected one JSON object a line")
            _check_names(source, number, record, columns)
            yield number, record
        return
    try:
        file = pq.ParquetFile(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: not a Parquet file ({str(error).splitlines()[0]})") from None
    names = file.schema_arrow.names
    _check_names(source, 0, names, columns)
    number = 0
    for batch in file.iter_batches(batch_size=4096, columns=[name for name in columns if name in names]):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def _check_names(source: Path, row: int, names: Any, columns: tuple[str, ...]) -> None:
    """An item may lack anything but title and image together; the needs of task rows are checked row by row."""
    if columns == ITEM_COLUMNS and "title" not in names and "image" not in names:
        where = f"{source}, line {row}" if row else f"{source}"
        found = ", ".join(map(str, names)) or "nothing"
        raise UserError(f"{where}: neither 'title' nor 'image'; found {found}; an item has at least one of them")


def text_of(source: Path, row: int, record: Mapping[str, Any], name: str) -> str:
    """Return a record's field as text: a number as it is printed, "" where it is missing.

    Raises:
        UserError: a list or object, or text that cannot be encoded.
    """
    return _scalar(source, row, name, record.get(name))


def _scalar(source: Path, row: int, name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{source}, row {row}: {name!r} is a {type(value).__name__}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{source}, row {row}: {name!r} holds half a surrogate pair, which is no text") from None
    return value


def _attributes(source: Path, row: int, value: Any) -> dict[str, str]:
    """A JSON object, a JSON string, a Parquet map (pairs) or a Parquet struct -> name: value, without empty values."""
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
    texts = {str(name): _scalar(source, row, f"attributes.{name}", text) for name, text in value.items()}
    return {name: text for name, text in texts.items() if name and text}
