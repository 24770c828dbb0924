"""Term types of a query: which of its words are a colour, a sleeve, a material."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError


@dataclass(frozen=True, slots=True)
class Span:
    """query[start:end] means `value`, the canonical one, of the attribute `type`."""

    start: int
    end: int
    type: str
    value: str


class Tagger(Protocol):
    """Finds terms in normalised queries.

    Attributes:
        values: type -> its canonical values, sorted: what a term of the type can be replaced by.
    """

    values: Mapping[str, tuple[str, ...]]

    def tag(self, queries: Sequence[str]) -> list[list[Span]]:
        """The terms of each normalised query: in rising order, none overlaps another."""
        ...

    def canonical(self, type: str, value: str) -> str:
        """The canonical form of a value in any spelling, such as an item's own; itself where nothing else is known."""
        ...


class Gazetteer:
    """The catalogue's own attribute values; at any place the longest that begins there."""

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        self.values = values
        self._type_of = {value: name for name, of_name in reversed(list(values.items())) for value in of_name}
        self._beginning_with: dict[str, list[str]] = {}
        for value in sorted(self._type_of, key=len, reverse=True):
            self._beginning_with.setdefault(value[0], []).append(value)

    def tag(self, queries: Sequence[str]) -> list[list[Span]]:
        """As in `Tagger`."""
        return [self._tag(query) for query in queries]

    def canonical(self, type: str, value: str) -> str:
        """As in `Tagger`."""
        return normalise_query(value)

    def _tag(self, query: str) -> list[Span]:
        spans: list[Span] = []
        start = 0
        while start < len(query):
            for value in self._beginning_with.get(query[start], ()):
                end = start + len(value)
                if query.startswith(value, start) and not _inside_word(query, start) and not _inside_word(query, end):
                    spans.append(Span(start, end, self._type_of[value], value))
                    start = end
                    break
            else:
                start += 1
        return spans


def _inside_word(text: str, place: int) -> bool:
    """Whether the cut before text[place] falls between two Latin letters or digits."""
    return 0 < place < len(text) and all(c.isalnum() and c < "\u0250" for c in text[place - 1 : place + 1])


def make_tagger(name: str, catalog: Catalog, lexicon: Path | None = None) -> Tagger:
    """The tagger of this name."""
    if name != "gazetteer" or lexicon is not None:
        raise UserError(f"tagger {name!r}; expected gazetteer, without a lexicon")
    return Gazetteer(
        {
            name: tuple(sorted({normalise_query(value) for value in values} - {""}))
            for name, values in catalog.attribute_values().items()
        }
    )
