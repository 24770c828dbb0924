"""All titles of a catalogue: which words each has, which titles hold a word, and which words are of one kind."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from mbsd.catalog.derived.settings import DeriveSettings
from mbsd.catalog.derived.words import Withheld, Word, keys_of, words_of
from mbsd.catalog.groups import Groups
from mbsd.catalog.layout import draw
from mbsd.catalog.mining.gazetteer import Gazetteer, gazetteer
from mbsd.catalog.mining.lexicon import read_lexicon
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError

EXCLUSIVE = 0.1  # words of one kind share at most this share of the rarer one's titles: a title has one brand
KEPT = 1 << 13  # intersections: those of frequent words, which are large, are asked for again and again
PLACES = ("first", "middle", "last")  # of a word among a title's


@dataclass(frozen=True, slots=True)
class Title:
    """One item's.

    Attributes:
        item: its number in the catalogue.
        words: that may be in a query, in their order.
    """

    item: int
    item_id: str
    category: str
    split: str
    group: int
    attributes: str
    words: tuple[Word, ...]


class Titles:
    """The titles of a catalogue in an order drawn by the items' ids; a title's number is its position in it.

    Everything that is drawn or walked through follows that order, so the catalogue's own does not matter.

    Attributes:
        titles: those that have a word.
        of_split: (category, split) -> numbers of titles, rising; the category None holds all.
        of_category: category -> its numbers.
        of_group: group -> its numbers.
    """

    def __init__(self, catalog: Catalog, groups: Groups, settings: DeriveSettings) -> None:
        self.settings = settings
        withheld = Withheld(_withheld_names(catalog, settings))
        columns = catalog.table().select(["item_id", "title", "category", "attributes"]).to_pydict()
        splits = groups.splits()
        rows = list(zip(*columns.values(), splits, groups.number.tolist(), strict=True))
        order = sorted(range(len(rows)), key=lambda item: (draw(settings.seed, rows[item][0]), rows[item][0]))
        self.titles: list[Title] = []
        self._holding: defaultdict[str, set[int]] = defaultdict(set)
        for item in order:
            item_id, text, category, attributes, split, group = rows[item]
            words = words_of(text)
            if not words:
                continue
            number = len(self.titles)
            for key in {key for word in words for key in keys_of(word.text).all()}:
                self._holding[key].add(number)
            allowed = tuple(withheld.allowed(text))
            self.titles.append(Title(item, item_id, category, split, group, attributes, allowed))
        self._postings: dict[str, set[int]] = {}
        self._in_category: dict[tuple[str, str], set[int]] = {}
        self._all_of = lru_cache(maxsize=KEPT)(self._intersection)
        self._rising_of = lru_cache(maxsize=KEPT)(self._sorted_in_category)
        self._rising_without = lru_cache(maxsize=KEPT)(self._sorted_without)
        self._keep_known_words()
        self.of_split: defaultdict[tuple[str | None, str], list[int]] = defaultdict(list)
        self.of_category: defaultdict[str, set[int]] = defaultdict(set)
        self.of_group: defaultdict[int, list[int]] = defaultdict(list)
        for number, title in enumerate(self.titles):
            self.of_split[title.category, title.split].append(number)
            self.of_split[None, title.split].append(number)
            self.of_category[title.category].add(number)
            self.of_group[title.group].append(number)

    def holding(self, word: str) -> set[int]:
        """Return the numbers of the titles that hold a word: as a whole, or all of its parts ("t shirt")."""
        found = self._postings.get(word)
        if found is None:
            keys = keys_of(word)
            found = self._with_one_of(keys.whole)
            if len(keys.parts) > 1:
                found |= set.intersection(*map(self._with_one_of, keys.parts))
            self._postings[word] = found
        return found

    def in_category(self, category: str, word: str) -> set[int]:
        """Return the numbers of the titles of a category that hold a word."""
        found = self._in_category.get((category, word))
        if found is None:
            found = self._in_category[category, word] = self.holding(word) & self.of_category[category]
        return found

    def holding_all(self, words: Iterable[str]) -> set[int]:
        """Return the numbers of the titles that hold all of one or more words; do not change the set."""
        return self._all_of(frozenset(words))

    def some_without(self, category: str, words: Sequence[str], lacking: str, start: int, most: int) -> Iterator[int]:
        """Yield up to `most` titles of a category that hold all of `words` and not the word `lacking`.

        They are those from place `start` on, counted round and round, of all these titles in rising order. To list
        these for each query would take a time that is quadratic in the category's size.
        """
        whole = self._rising_of(category, frozenset(words))
        without = self._rising_of(category, frozenset([*words, lacking]))
        count = len(whole) - len(without)
        if 2 * len(without) > len(whole):  # so frequent are few words, and their titles are not to be walked through
            whole, without = self._rising_without(category, frozenset(words), lacking), []
        # Of the places before and at `at`, at + 1 in all, these are of titles that count.
        place = bisect_left(range(len(whole)), start % max(1, count) + 1,
                            key=lambda at: at + 1 - bisect_right(without, whole[at]))  # fmt: skip
        holding, wanted = self.holding(lacking), min(most, count)
        numbers = (whole[(place + step) % len(whole)] for step in range(len(whole)))
        yield from islice((number for number in numbers if number not in holding), wanted)

    def _intersection(self, words: frozenset[str]) -> set[int]:
        first, *others = sorted(map(self.holding, words), key=len)
        return first.intersection(*others) if others else first

    def _sorted_in_category(self, category: str, words: frozenset[str]) -> list[int]:
        of_category = self.of_category[category]
        return sorted(self.holding_all(words) & of_category if words else of_category)

    def _sorted_without(self, category: str, words: frozenset[str], lacking: str) -> list[int]:
        holding = self.holding(lacking)
        return [number for number in self._rising_of(category, words) if number not in holding]

    def _with_one_of(self, forms: frozenset[str]) -> set[int]:
        return set().union(*(self._holding.get(form, ()) for form in forms))

    def _keep_known_words(self) -> None:
        """Leave out the words of too few titles, or of too large a share of all."""
        most = self.settings.max_titles * len(self.titles)
        kept = {
            word: self.settings.min_titles <= len(self.holding(word)) <= most
            for word in {word.text for title in self.titles for word in title.words}
        }
        self.titles = [
            Title(t.item, t.item_id, t.category, t.split, t.group, t.attributes,
                  tuple(word for word in t.words if kept[word.text]))
            for t in self.titles
        ]  # fmt: skip


class Kinds:
    """Which words may replace each other: of one type for the gazetteer, or of one place in a category's titles.

    Args:
        titles: of the catalogue.
        tagger: of its attributes and the lexicon's types, without those that are withheld.
    """

    def __init__(self, titles: Titles, tagger: Gazetteer) -> None:
        self._titles, self._tagger = titles, tagger
        places: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for title in titles.titles:
            for position, word in enumerate(title.words):
                at_end = position == len(title.words) - 1
                places[title.category, word.text][PLACES[0 if position == 0 else 2 if at_end else 1]] += 1
        self._place = {
            key: max(PLACES, key=lambda place, counts=counts: counts[place])  # type: ignore[misc]
            for key, counts in places.items()
        }
        self._type: dict[str, tuple[str, str]] = {}
        texts = sorted({text for _, text in places})
        for text, spans in zip(texts, tagger.tag(texts), strict=True):
            if len(spans) == 1 and (spans[0].start, spans[0].end) == (0, len(text)):
                self._type[text] = (spans[0].type, spans[0].value)
        self._own: dict[str, dict[str, str]] = {}
        self._are_exclusive = lru_cache(maxsize=KEPT)(self._exclude_each_other)

    def of(self, category: str, word: str) -> str:
        """Return a word's kind in a category: the name of a type, or a place; "" where no title has it."""
        known = self._type.get(word)
        return known[0] if known else self._place.get((category, word), "")

    def may_replace(self, title: Title, old: str, new: str) -> bool:
        """Return whether `new`, of the same kind, says something else of an item than `old`."""
        if keys_of(old).all() & keys_of(new).all():
            return False
        if old in self._type and new in self._type:
            name, value = self._type[new]
            others = {self._type[old][1], *self._own_values(title.attributes, name)}
            return not any(value in other or other in value for other in others)
        return self._are_exclusive(title.category, *sorted((old, new)))

    def _exclude_each_other(self, category: str, first: str, second: str) -> bool:
        one, other = (self._titles.in_category(category, word) for word in (first, second))
        return len(one & other) <= EXCLUSIVE * min(len(one), len(other))

    def _own_values(self, attributes: str, name: str) -> list[str]:
        """The canonical value that an item has of an attribute; none where it has none."""
        own = self._own.get(attributes)
        if own is None:
            own = {name: self._tagger.canonical(name, value) for name, value in json.loads(attributes).items()}
            self._own[attributes] = own
        return [own[name]] if name in own else []


def kinds_of(catalog: Catalog, titles: Titles) -> Kinds:
    """Return the kinds of a catalogue's words, by the gazetteer of `pairs mine` and by their places."""
    settings = titles.settings
    whole = gazetteer(catalog, settings.lexicon)
    known = {text: meaning for text, meaning in whole.terms.items() if meaning[0] not in settings.withhold}
    return Kinds(titles, Gazetteer(known, whole.synonyms, whole.values))


def _withheld_names(catalog: Catalog, settings: DeriveSettings) -> list[str]:
    values: dict[str, Any] = catalog.attribute_values()
    for name in settings.withhold:
        if name not in values:
            known = ", ".join(values) or "none at all"
            raise UserError(f"catalogue {catalog.path}: no attribute {name!r} to withhold; found {known}")
    names = [value for name in settings.withhold for value in values[name]]
    if settings.lexicon is not None:
        names += [entry.surface for entry in read_lexicon(settings.lexicon) if entry.type in settings.withhold]
    if settings.withhold_categories:
        names += sorted(set(catalog.table()["category"].to_pylist()) - {""})
    return names
