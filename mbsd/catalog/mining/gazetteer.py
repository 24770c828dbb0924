"""Finds the terms of a query: which of its words are a colour, a sleeve, a material. By default from a gazetteer.

A tagger is anything with `values`, `tag` and `canonical`; `model_tagger` has the other one.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute as pc
from ahocorasick_rs import AhoCorasick

from mbsd.catalog.mining.lexicon import Entry, read_lexicon
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS, normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError

# Latin letters, those of Vietnamese included, and digits: the scripts of a query whose words do not touch.
LATIN = frozenset(character for code in (*range(0x250), *range(0x1E00, 0x1F00)) if (character := chr(code)).isalnum())


@dataclass(frozen=True, slots=True)
class Span:
    """query[start:end] means `value`, the canonical one, of the attribute `type`."""

    start: int
    end: int
    type: str
    value: str


class Tagger(Protocol):
    """Finds terms in normalised queries; it can be pickled.

    Attributes:
        values: type -> its canonical values, sorted: what a term of the type can be replaced by.
    """

    values: Mapping[str, tuple[str, ...]]

    def tag(self, queries: Sequence[str]) -> list[list[Span]]:
        """Return the terms of each normalised query in rising order, without overlaps."""
        ...

    def canonical(self, type: str, value: str) -> str:
        """Return the canonical form of a value in any spelling, such as an item's own; if unknown, its normal form."""
        ...


class Gazetteer:
    """Finds the terms of a list: Aho-Corasick over all of them, and of the matches the longest, from left to right.

    A match inside a Latin word or number does not count ("red" in "credit"), and is dropped before the longest match is
    chosen, so that it hides no other. Chinese words touch each other and Latin ones: there a term begins and ends
    anywhere.

    Args:
        terms: normalised surface form -> (type, canonical value).
        synonyms: (type, normalised surface form) -> canonical value, where it is another; also of forms that `terms`
            gives to another type.
        values: type -> its canonical values, sorted.
    """

    def __init__(
        self,
        terms: Mapping[str, tuple[str, str]],
        synonyms: Mapping[tuple[str, str], str],
        values: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.terms, self.synonyms = dict(terms), dict(synonyms)
        self.values: Mapping[str, tuple[str, ...]] = dict(values)
        self._meanings = list(self.terms.values())
        self._find = AhoCorasick(self.terms, store_patterns=False).find_matches_as_indexes

    def __reduce__(self) -> tuple[Any, ...]:
        return (Gazetteer, (self.terms, self.synonyms, self.values))

    def tag(self, queries: Sequence[str]) -> list[list[Span]]:
        """As in `Tagger`; from left to right, the longest term that begins at a position, then behind it."""
        return [self._tag(query) for query in queries]

    def canonical(self, type: str, value: str) -> str:
        """As in `Tagger`."""
        text = normalise_query(value)
        return self.synonyms.get((type, text), text)

    def _tag(self, query: str) -> list[Span]:
        matches = [(start, -end, term) for term, start, end in self._find(query, overlapping=True)]
        matches.sort()
        spans: list[Span] = []
        behind = 0
        for start, minus_end, term in matches:
            # A match inside a word is dropped here, before it could hide a shorter one with the same start.
            if start >= behind and not cuts_word(query, start) and not cuts_word(query, -minus_end):
                behind = -minus_end
                spans.append(Span(start, behind, *self._meanings[term]))
        return spans


def cuts_word(text: str, position: int) -> bool:
    """Return whether a cut before text[position] falls between two Latin letters or digits."""
    return 0 < position < len(text) and text[position] in LATIN and text[position - 1] in LATIN


def gazetteer(catalog: Catalog, lexicon: Path | None = None) -> Gazetteer:
    """Return the gazetteer of a catalogue's attribute values and, where there is one, a user's lexicon.

    A surface form has one meaning. The lexicon's meanings have precedence over the catalogue's: surface forms before
    canonical values, earlier rows before later ones. Of the catalogue's types, the one with the most such items counts,
    then the first by name. A value longer than any query is no term.

    Raises:
        UserError: the lexicon cannot be read (see `lexicon.read_lexicon`), or none of its types is an attribute.
    """
    in_items = _catalogue_values(catalog)
    entries = read_lexicon(lexicon) if lexicon is not None else []
    types = sorted({name for name, _ in in_items})
    if entries and not {entry.type for entry in entries} & set(types):
        found = ", ".join(sorted({entry.type for entry in entries})[:10])
        raise UserError(
            f"lexicon {lexicon}: types {found}; expected names of the catalogue's attributes ({', '.join(types)})"
        )
    synonyms = {(entry.type, entry.surface): entry.value for entry in entries if entry.surface != entry.value}
    values: defaultdict[str, set[str]] = defaultdict(set)
    for name, value in [*in_items, *((entry.type, entry.value) for entry in entries)]:
        values[name].add(synonyms.get((name, value), value))
    return Gazetteer(
        _terms(entries, in_items, synonyms), synonyms, {name: tuple(sorted(values[name])) for name in sorted(values)}
    )


def _catalogue_values(catalog: Catalog) -> Counter[tuple[str, str]]:
    """Return (attribute, normalised value) -> number of items."""
    counts: Counter[tuple[str, str]] = Counter()
    for distinct in pc.value_counts(catalog.table()["attributes"]).to_pylist():
        for name, value in json.loads(distinct["values"]).items():
            counts[name, value] += distinct["counts"]
    normalised: Counter[tuple[str, str]] = Counter()
    for (name, value), count in counts.items():
        normalised[name, normalise_query(value)] += count
    return Counter({key: n for key, n in normalised.items() if 0 < len(key[1]) <= MAX_QUERY_CHARACTERS})


def _terms(
    entries: Sequence[Entry], in_items: Counter[tuple[str, str]], synonyms: Mapping[tuple[str, str], str]
) -> dict[str, tuple[str, str]]:
    terms: dict[str, tuple[str, str]] = {}
    for entry in entries:
        terms.setdefault(entry.surface, (entry.type, entry.value))
    for entry in entries:
        terms.setdefault(entry.value, (entry.type, entry.value))
    for name, value in sorted(in_items, key=lambda key: (-in_items[key], key)):
        terms.setdefault(value, (name, synonyms.get((name, value), value)))
    return terms
