"""A user's lexicon for the tagger: which words of a query mean which attribute value ("tee" -> "t-shirt")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.record_files import SUFFIXES, Place, Records, text_lines
from mbsd.catalog.source_files import find_files
from mbsd.errors import UserError

COLUMNS = ("type", "surface", "value")


@dataclass(frozen=True)
class Entry:
    """One row of a lexicon: in a query, `surface` means `value` of the attribute `type`; both texts are normalised."""

    place: Place
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
    for place, fields in _rows(source):
        kind, surface, value = fields[0].strip(), normalise_query(fields[1]), normalise_query(fields[2])
        for name, text in (("type", kind), ("surface", surface)):
            if not text:
                raise UserError(f"lexicon {place}: the {name} is empty; expected {', '.join(COLUMNS)}")
        entry = Entry(place, kind, surface, value or surface)
        earlier = value_of.setdefault((kind, surface), entry)
        if earlier.value != entry.value:
            raise UserError(
                f"lexicon {place}: {kind} {surface!r} means {entry.value!r} here and {earlier.value!r} in "
                f"row {earlier.place.row}; keep one of them"
            )
        entries.append(entry)
    if not entries:
        raise UserError(f"lexicon {source}: no rows; expected {', '.join(COLUMNS)}")
    for entry in entries:
        further = value_of.get((entry.type, entry.value), entry)
        if further.value != entry.value:
            raise UserError(
                f"lexicon {entry.place}: the value {entry.value!r} is itself a synonym of "
                f"{further.value!r} in row {further.place.row}; give {further.value!r} in both rows"
            )
    return entries


def _rows(source: Path) -> Iterator[tuple[Place, tuple[str, str, str]]]:
    files = find_files(str(source), SUFFIXES).files
    if files[0].format != "tsv":
        for row in Records(source, COLUMNS):
            yield row.place, (row.text("type"), row.text("surface"), row.text("value"))
        return
    for file in files:
        for number, line in text_lines(file.path):
            fields, place = line.split("\t"), Place(file.path, number)
            if len(fields) != len(COLUMNS):
                raise UserError(
                    f"lexicon {place}: {len(fields)} columns; expected {len(COLUMNS)} separated by tabs: type, surface "
                    "form, canonical value (empty where the surface form is canonical)"
                )
            if number == 1 and tuple(field.strip().casefold() for field in fields) == COLUMNS:
                continue  # a header
            yield place, (fields[0], fields[1], fields[2])
