"""Queries of an item from its own title, and the same with one word replaced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mbsd.catalog.derived.titles import Kinds, Title, Titles, draw
from mbsd.catalog.derived.words import Word, query_text
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS

TRIES = 4  # draws for each query that is wanted: of a short title many are the same
NEIGHBOURS = 48  # titles that a rewrite's word is taken from
CANDIDATES = 12  # words of these that are compared


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
    words = list({word.text: word for word in title.words}.values())
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


def rewrites_of(titles: Titles, kinds: Kinds, number: int, query: Query) -> list[Rewrite]:
    """Return the rewrites of an item's query, the best first: of each word at most one.

    The new word comes from titles of the category that hold the query's other words, so that some item is what the
    rewritten query asks for; it is of the old word's kind and in no title of the item's group. Of such words the one is
    taken whose query holds for as many titles as the old query does, as nearly as possible.
    """
    title = titles.titles[number]
    frequency = len(titles.holding_all(query.texts()))
    found = []
    for place, word in enumerate(query.words):
        if _overlaps(query.words, place):
            continue
        best = _best_word(titles, kinds, number, query, place)
        if best is None:
            continue
        new, held = best
        words = [*query.words[:place], Word(new, word.start, word.end), *query.words[place + 1 :]]
        texts = tuple(word.text for word in words)
        rewrite = Rewrite(query_text(words), texts, f"{kinds.of(title.category, word.text)}:{word.text}>{new}")
        found.append((_far(held, frequency), draw(titles.settings.seed, title.item_id, rewrite.text), rewrite))
    return [rewrite for _, _, rewrite in sorted(found, key=lambda one: one[:2])]


def _best_word(titles: Titles, kinds: Kinds, number: int, query: Query, place: int) -> tuple[str, int] | None:
    """The word that may stand at a place of a query, and how many titles hold the query then."""
    title, old = titles.titles[number], query.words[place].text
    others = [word.text for other, word in enumerate(query.words) if other != place]
    holding_others = titles.holding_all(others) if others else None
    of_category = titles.of_category[title.category]
    near = (of_category if holding_others is None else holding_others & of_category) - titles.holding(old)
    kind, seed = kinds.of(title.category, old), titles.settings.seed
    seen: set[str] = set()
    best: tuple[float, int, str, int] | None = None
    frequency = len(titles.holding_all(query.texts()))
    group = titles.of_group[title.group]
    for other in _rotated(sorted(near), draw(seed, title.item_id, query.text, place), NEIGHBOURS):
        for word in titles.titles[other].words:
            new = word.text
            if new in seen or kinds.of(title.category, new) != kind:
                continue
            seen.add(new)
            if not kinds.may_replace(title, old, new):
                continue
            holding = titles.holding(new) if holding_others is None else titles.holding(new) & holding_others
            if holding.isdisjoint(group) and holding:
                one = (_far(len(holding), frequency), draw(seed, title.item_id, old, new), new, len(holding))
                best = one if best is None else min(best, one)
        if len(seen) >= CANDIDATES:
            break
    return None if best is None else (best[2], best[3])


def _overlaps(words: tuple[Word, ...], place: int) -> bool:
    """Whether a word shares characters with a neighbour in the query, as in scripts whose words touch each other."""
    before = place > 0 and words[place - 1].end > words[place].start
    return before or (place + 1 < len(words) and words[place].end > words[place + 1].start)


def _rotated(numbers: list[int], start: int, most: int) -> Iterator[int]:
    for step in range(min(most, len(numbers))):
        yield numbers[(start + step) % len(numbers)]


def _far(one: int, other: int) -> float:
    """How far two numbers of titles are apart, in doublings."""
    return abs(math.log2(one) - math.log2(other))


def _draws(titles: Titles, *of: object) -> Iterator[int]:
    count = 0
    while True:
        yield draw(titles.settings.seed, *of, count)
        count += 1
