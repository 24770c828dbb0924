"""Queries of an item from its own title, and the same with one word replaced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mbsd.catalog.derived.titles import Kinds, Titles
from mbsd.catalog.derived.words import Word, query_text
from mbsd.catalog.layout import draw
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS

TRIES = 4  # draws for each query that is wanted: of a short title many are the same
NEIGHBOURS = 48  # titles that a rewrite's word is taken from
CANDIDATES = 8  # words of these that are compared


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the words it is made of, in their order."""

    text: str
    words: tuple[Word, ...]

    def texts(self) -> list[str]:
        """Return its words."""
        return [word.text for word in self.words]


def queries_of(titles: Titles, number: int) -> list[Query]:
    """Return the queries of a title, different from each other.

    A length is drawn, and a word to begin with: one time the rarer, one time the more frequent of two drawn words, for
    a title's words alone would make frequent queries of frequent words only. The other words are its neighbours (a
    span), or any words of the title in their order (a skip-gram).
    """
    title, settings = titles.titles[number], titles.settings
    first_of: dict[str, Word] = {}
    for word in title.words:
        first_of.setdefault(word.text, word)  # the first of equal ones: words stay in the order of their characters
    words = list(first_of.values())
    found: dict[str, Query] = {}
    for attempt in range(TRIES * settings.queries_per_item if words else 0):
        drawn = _draws(titles, title.item_id, attempt)
        length = min(1 + next(drawn) % settings.max_words, len(words))
        pair = sorted((next(drawn) % len(words) for _ in range(2)), key=lambda at: len(titles.holding(words[at].text)))
        begin = pair[next(drawn) % 2]
        if next(drawn) % 2:
            first = max(0, min(begin - next(drawn) % length, len(words) - length))
            places = list(range(first, first + length))
        else:
            others = sorted((place for place in range(len(words)) if place != begin), key=lambda _: next(drawn))
            places = sorted([begin, *others[: length - 1]])
        query = Query(query_text(words[place] for place in places), tuple(words[place] for place in places))
        if len(query.text) <= MAX_QUERY_CHARACTERS:
            found.setdefault(query.text, query)
        if len(found) == settings.queries_per_item:
            break
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A query, by its words, that does not hold for an item; `replaced` is "kind:old>new"."""

    text: str
    words: tuple[str, ...]
    replaced: str


def rewrites_of(titles: Titles, kinds: Kinds, number: int, query: Query, open_to: Mapping[str, int]) -> list[Rewrite]:
    """Return the rewrites of an item's query, the best first: of each word at most one.

    The new word comes from titles of the category that hold the query's other words, so that some item is what the
    rewritten query asks for; it is of the old word's kind and in no title of the item's group. Of such words one is
    taken whose query has been asked of other items, so that the query alone does not tell that it is a rewrite; then
    one whose query holds for as many titles as the old query does, as nearly as possible.

    Args:
        titles: of the catalogue.
        kinds: of their words.
        number: of the item's title.
        query: of the item.
        open_to: query -> positives of the item's split that have no rewrite to the same text beside them yet.
    """
    of_item = _OfItem(titles, kinds, number, query, open_to)
    found = [best for place in range(len(query.words)) if (best := of_item.best(place)) is not None]
    return [rewrite for _, rewrite in sorted(found, key=lambda one: one[0])]


class _OfItem:
    """What the places of one query have in common."""

    def __init__(self, titles: Titles, kinds: Kinds, number: int, query: Query, open_to: Mapping[str, int]) -> None:
        self.titles, self.kinds, self.query, self.open_to = titles, kinds, query, open_to
        self.title = titles.titles[number]
        self.of_group = titles.of_group[self.title.group]
        self.frequency = len(titles.holding_all(query.texts()))

    def best(self, place: int) -> tuple[tuple[bool, float, int], Rewrite] | None:
        """The best rewrite of the word at a place, and what it is ordered by."""
        if _overlaps(self.query.words, place):
            return None
        old = self.query.words[place].text
        others = [word.text for other, word in enumerate(self.query.words) if other != place]
        kind = self.kinds.of(self.title.category, old)
        seen: set[str] = set()
        found = []
        for new in self._words(place, old, others):
            if new in seen or self.kinds.of(self.title.category, new) != kind:
                continue
            seen.add(new)
            if not self.kinds.may_replace(self.title, old, new):
                continue
            holding = self.titles.holding_all([new, *others])
            if holding and holding.isdisjoint(self.of_group):
                found.append(self._ordered(place, f"{kind}:{old}>{new}", new, len(holding)))
            if len(found) == CANDIDATES:
                break
        return min(found, key=lambda one: one[0], default=None)

    def _words(self, place: int, old: str, others: list[str]) -> Iterator[str]:
        """The words of up to `NEIGHBOURS` titles of the category with the other words, without the old; some repeat."""
        start = draw(self.titles.settings.seed, self.title.item_id, self.query.text, place)
        for number in self.titles.some_without(self.title.category, others, old, start, NEIGHBOURS):
            for word in self.titles.titles[number].words:
                yield word.text

    def _ordered(self, place: int, replaced: str, new: str, holding: int) -> tuple[tuple[bool, float, int], Rewrite]:
        words = list(self.query.words)
        words[place] = Word(new, words[place].start, words[place].end)
        text = query_text(words)
        rewrite = Rewrite(text, tuple(word.text for word in words), replaced)
        far = abs(math.log2(holding) - math.log2(self.frequency))
        order = (self.open_to.get(text, 0) <= 0, far, draw(self.titles.settings.seed, self.title.item_id, text))
        return order, rewrite


def _overlaps(words: tuple[Word, ...], place: int) -> bool:
    """Whether a word shares characters with a neighbour in the query, as in scripts whose words touch each other."""
    before = place > 0 and words[place - 1].end > words[place].start
    return before or (place + 1 < len(words) and words[place].end > words[place + 1].start)


def _draws(titles: Titles, *of: object) -> Iterator[int]:
    count = 0
    while True:
        yield draw(titles.settings.seed, *of, count)
        count += 1
