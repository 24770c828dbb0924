"""A user's lexicon for the tagger: which words of a query mean which attribute value ("tee" -> "t-shirt")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.record_files import format_of, read_records, text_lines, text_of
from mbsd.errors import UserError

COLUMNS = ("type", "surface", "value")


@dataclass(frozen=True)
class Entry:
    """One row of a lexicon: in a query, `surface` means `value` of the attribute `type`; both texts are normalised."""

    row: int
    type: str
    surface: str
    value: str


def read_lexicon(source: Path) -> list[Entry]:
    """Return the rows of a TSV without header, or of JSONL or Parquet with columns `type`, `surface` and `value`.

    An empty or missing value means that the surface form is canonical. Where a surface form has two types, the earlier
    row has precedence.

    Raises:
        UserError: the file cannot be read; a row lacks type or surface form, gives a form another value than an
            earlier row of its type, or names as canonical what its type calls a synonym. It names file and row.
    """
    entries: list[Entry] = []
    value_of: dict[tuple[str, str], Entry] = {}
    for row, fields in _rows(source):
        kind, surface, value = fields[0].strip(), normalise_query(fields[1]), normalise_query(fields[2])
        for name, text in (("type", kind), ("surface", surface)):
            if not text:
                raise UserError(f"lexicon {source}, row {row}: the {name} is empty; expected {', '.join(COLUMNS)}")
        entry = Entry(row, kind, surface, value or surface)
        earlier = value_of.setdefault((kind, surface), entry)
        if earlier.value != entry.value:
            raise UserError(
                f"lexicon {source}, row {row}: {kind} {surface!r} means {entry.value!r} here and {earlier.value!r} in "
                f"row {earlier.row}; keep one of them"
            )
        entries.append(entry)
    if not entries:
        raise UserError(f"lexicon {source}: no rows; expected {', '.join(COLUMNS)}")
    for entry in entries:
        further = value_of.get((entry.type, entry.value), entry)
        if further.value != entry.value:
            raise UserError(
                f"lexicon {source}, row {entry.row}: the value {entry.value!r} is itself a synonym of "
                f"{further.value!r} in row {further.row}; give {further.value!r} in both rows"
            )
    return entries


def _rows(source: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    if format_of(source) == "tsv":
        for row, line in text_lines(source):
            fields = line.split("\t")
            if len(fields) != len(COLUMNS):
                raise UserError(
                    f"lexicon {source}, row {row}: {len(fields)} columns; expected {len(COLUMNS)} separated by tabs: "
                    "type, surface form, canonical value (empty where the surface form is canonical)"
                )
            yield row, (fields[0], fields[1], fields[2])
        return
    for row, record in read_records(source, COLUMNS):
        kind, surface, value = (text_of(source, row, record, name) for name in COLUMNS)
        yield row, (kind, surface, value)
