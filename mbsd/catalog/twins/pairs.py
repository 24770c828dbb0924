"""A catalogue with twins -> the rows of an alignment table: are two items the same product?

An item and its twin are one: label 1. For the negatives items are paired up, both of one split and, as far as there are
such, of one category: each stands beside the other's twin, so that every item and every twin is as often right as
wrong. Of some items that are still free, an item is paired with the one whose title has most words in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mbsd.catalog.derived.words import words_of
from mbsd.catalog.groups import GroupOptions, Groups
from mbsd.catalog.identity.files import NO_KEY
from mbsd.catalog.identity.find import picture_keys, title_keys
from mbsd.catalog.identity.report import without_placeholders
from mbsd.catalog.layout import draw
from mbsd.catalog.queries import normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.catalog.row_count import RowCount
from mbsd.catalog.twins.ids import SUFFIX, twins_of
from mbsd.errors import UserError
from mbsd.io.console import say

CANDIDATES = 256  # free items that are compared with one
ALONE = "item without a twin"
NO_PARTNER = "negative without a free item of the split that is surely another product"


@dataclass(frozen=True, slots=True)
class Twins:
    """An item and its twin.

    Attributes:
        item, twin: their numbers.
        item_id, category: the item's.
        split, group: of both.
        title, twin_title: normalised.
        words, twin_words: of these titles.
        keys: of the item's title and picture; an item with one of them may be the same product.
    """

    item: int
    twin: int
    item_id: str
    category: str
    split: str
    group: int
    title: str
    twin_title: str
    words: frozenset[str]
    twin_words: frozenset[str]
    keys: frozenset[tuple[str, int]]

    def is_other(self, other: Twins) -> bool:
        """Whether another item is surely another product, as far as titles and pictures tell."""
        same_title = {self.title, self.twin_title} & {other.title, other.twin_title} - {""}
        return self.group != other.group and not same_title and self.keys.isdisjoint(other.keys)

    def common(self, other: Twins) -> float:
        """How like two rows are that name these items and each other's twins: shares of the twins' words in common."""
        return share_in_common(self.words, other.twin_words) + share_in_common(other.words, self.twin_words)


def title_words(title: str) -> frozenset[str]:
    """Return the words of a title, as `mbsd pairs derive` finds them."""
    return frozenset(word.text for word in words_of(title))


def share_in_common(words: frozenset[str], of: frozenset[str]) -> float:
    """Return the share of the words `of` a title that another one has too; 0 where it has none."""
    return len(words & of) / len(of) if of else 0.0


def alignment_rows(
    groups: Groups, options: GroupOptions, seed: int, per_positive: int, count: RowCount
) -> list[dict[str, Any]]:
    """Return the table's rows by item, the positive first; the same for the same items in any order.

    Args:
        groups: the items, and their splits.
        options: where titles are compared, and how many items of one title or picture are a placeholder's.
        seed: of the draw of which items are compared.
        per_positive: negatives of each item, each with another item's twin.
        count: is told of items without a twin, and of negatives that are not there.

    Raises:
        UserError: no item has a twin.
    """
    pairs = _pairs(groups, options, count)
    wrong: defaultdict[int, list[Twins]] = defaultdict(list)  # place in `pairs` -> those whose twin is another product
    for turn in range(per_positive):
        for one, other in _partners(pairs, wrong, (seed, turn), count):
            wrong[one].append(pairs[other])
            wrong[other].append(pairs[one])
    return [
        {"item_a": pair.item, "item_b": twins.twin, "label": int(twins is pair), "split": pair.split}
        for place, pair in enumerate(pairs)
        for twins in (pair, *wrong[place])
    ]


def _pairs(groups: Groups, options: GroupOptions, count: RowCount) -> list[Twins]:
    """Each item with its twin, by the item's number."""
    catalog = groups.catalog
    items, twins = twins_of(catalog)
    if not len(items):
        where = catalog.path if isinstance(catalog, Catalog) else "DIR"
        raise UserError(
            f"catalogue {catalog.path}: no item has a twin (an item with its id and {SUFFIX!r} behind it), so there "
            f"are no two of one product; make them: `mbsd catalog twins --catalog {where} --out SOURCE`, then build "
            "a catalogue of SOURCE and derive the table of that one"
        )
    groups = groups.joined(items, twins)  # with --group none they are not yet
    columns = catalog.table().select(["item_id", "category"]).to_pydict()
    splits = groups.splits()
    for item in np.setdiff1d(np.arange(len(catalog)), np.concatenate([items, twins])).tolist():
        count.leave_out(ALONE, f"item {columns['item_id'][item]}")
    found = {
        "title": groups.keys["title"] if "title" in groups.keys else title_keys(catalog, options.titles),
        "picture": groups.keys["picture"] if "picture" in groups.keys else picture_keys(catalog, say),
    }
    keys = {kind: without_placeholders(of_kind, options.max_same)[0] for kind, of_kind in found.items()}
    pairs = []
    for item, twin in zip(items.tolist(), twins.tolist(), strict=True):
        title, twin_title = normalise_query(catalog.title(item)), normalise_query(catalog.title(twin))
        pairs.append(
            Twins(
                item, twin, columns["item_id"][item], columns["category"][item], splits[item], int(groups.number[item]),
                title, twin_title, title_words(title), title_words(twin_title),
                frozenset((kind, int(of_kind[item])) for kind, of_kind in keys.items() if of_kind[item] != NO_KEY),
            )
        )  # fmt: skip
    return pairs


def _partners(
    pairs: Sequence[Twins], wrong: dict[int, list[Twins]], drawn_for: tuple[int, int], count: RowCount
) -> Iterator[tuple[int, int]]:
    """Yield places of two that are paired up, each place once: of one split and category, then of one split alone."""
    pools: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    order = sorted(range(len(pairs)), key=lambda place: (draw(*drawn_for, pairs[place].item_id), pairs[place].item_id))
    rank = {place: number for number, place in enumerate(order)}
    for place in order:
        pools[pairs[place].split][pairs[place].category].append(place)
    for split in sorted(pools):
        left: list[int] = []
        for category in sorted(pools[split]):
            yield from _paired_up(pairs, wrong, pools[split][category], left)
        alone: list[int] = []
        yield from _paired_up(pairs, wrong, sorted(left, key=rank.__getitem__), alone)
        for place in alone:
            count.leave_out(NO_PARTNER, f"item {pairs[place].item_id}")


def _paired_up(
    pairs: Sequence[Twins], wrong: dict[int, list[Twins]], pool: Sequence[int], left: list[int]
) -> Iterator[tuple[int, int]]:
    """Pair up the places of a pool, the first with the likest of the next `CANDIDATES`; the others go to `left`."""
    waiting = list(reversed(pool))  # the next is last
    while waiting:
        one = waiting.pop()
        own, before = pairs[one], {id(twins) for twins in wrong[one]}
        free = (
            at
            for at in range(len(waiting) - 1, -1, -1)
            if id(pairs[waiting[at]]) not in before and own.is_other(pairs[waiting[at]])
        )
        # Of equally like ones the first: it is at the largest place.
        at = max(islice(free, CANDIDATES), key=lambda at: (own.common(pairs[waiting[at]]), at), default=None)
        if at is None:
            left.append(one)
        else:
            yield one, waiting.pop(at)
