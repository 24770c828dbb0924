"""Mining in plain Python, by brute force over the words of the queries: what may be drawn, and what must be."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mbsd.catalog.reader import Catalog

Event = tuple[str, str, str, str]  # user, query, item id, kind
Pair = tuple[str, int]
Row = tuple[int, str, int, str, str]  # label, source, evidence, replaced, split


@dataclass
class Expected:
    """What a log holds.

    Attributes:
        behaviour: every (query, item) that anything happened to.
        positives: pair -> distinct buyers.
        sold: category -> queries that led to a purchase of one of its items.
        rewrites: pair of a positive -> replaced term ("type:old>new") -> texts that may stand for it.
    """

    behaviour: set[Pair] = field(default_factory=set)
    positives: dict[Pair, int] = field(default_factory=dict)
    sold: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    rewrites: dict[Pair, dict[str, set[str]]] = field(default_factory=dict)


def normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def expected_of(events: Iterable[Event], catalog: Catalog, min_buyers: int) -> Expected:
    """Only for values and queries of single words: a term is a word that some item has as a value."""
    found = Expected()
    number = {catalog.record(item).item_id: item for item in range(len(catalog))}
    buyers: dict[Pair, set[str]] = defaultdict(set)
    for user, query, item_id, kind in events:
        if item_id not in number or not normal(query):
            continue
        pair = (normal(query), number[item_id])
        found.behaviour.add(pair)
        if kind == "purchase":
            buyers[pair].add(user)
            found.sold[catalog.record(pair[1]).category].add(pair[0])
    found.positives = {pair: len(users) for pair, users in buyers.items() if len(users) >= min_buyers}
    type_of: dict[str, str] = {}
    for name, values in catalog.attribute_values().items():
        for value in values:
            type_of.setdefault(normal(value), name)
    for query, item in found.positives:
        own = {name: normal(value) for name, value in catalog.record(item).attributes.items()}
        words = query.split(" ")
        allowed: dict[str, set[str]] = defaultdict(set)
        for place, word in enumerate(words):
            if type_of.get(word) not in own:
                continue
            name = type_of[word]
            rest = [*words[:place], *words[place + 1 :]]
            for value in (normal(value) for value in catalog.attribute_values()[name]):
                holds = value in own.values() or value in own[name] or own[name] in value
                if value != word and not holds and not any(value in other for other in rest):
                    text = " ".join([*words[:place], value, *words[place + 1 :]])
                    if (text, item) not in found.behaviour:
                        allowed[f"{name}:{word}>{value}"].add(text)
        found.rewrites[query, item] = allowed
    return found


def check(  # noqa: PLR0913
    rows: dict[Pair, Row], found: Expected, catalog: Catalog, negatives: int, rewrites: int, cap: int = 0,
    replacing: bool = False,
) -> None:  # fmt: skip
    """Assert that a pair table is one that may be drawn, and that nothing is missing that could have been.

    Args:
        rows: of the table.
        found: what the log holds.
        catalog: of the items.
        negatives: same-category negatives of each positive.
        rewrites: of each positive.
        cap: most positives of an item; 0 = all.
        replacing: queries of the category may stand for rewrites.
    """
    of_item: dict[int, list[str]] = defaultdict(list)
    for query, item in found.positives:
        of_item[item].append(query)
    by_source: dict[str, dict[int, set[str]]] = {
        source: defaultdict(set) for source in ("purchase", "same-category", "rewrite")
    }
    for (query, item), (label, source, evidence, replaced, split) in rows.items():
        by_source[source][item].add(query)
        assert label == (source == "purchase") and (replaced == "") == (source != "rewrite")
        assert evidence == (found.positives[query, item] if label else 0)
        assert label or (query, item) not in found.behaviour
        assert split == catalog.record(item).split
    assert set(by_source["purchase"]) == set(of_item)
    for item, queries in of_item.items():
        kept = by_source["purchase"][item]
        assert kept <= set(queries) and len(kept) == (min(cap, len(queries)) if cap else len(queries))
        left_out = set(queries) - kept
        least = min(found.positives[query, item] for query in kept)
        assert all(found.positives[query, item] <= least for query in left_out)

        rewritten, same = by_source["rewrite"][item], by_source["same-category"][item]
        assert not rewritten & same
        may_be: dict[str, set[str]] = defaultdict(set)
        for query in kept:
            for term, texts in found.rewrites[query, item].items():
                may_be[term] |= texts
        for text in rewritten:
            assert text in may_be[rows[text, item][3]]
        every = set().union(*may_be.values())
        stand_ins = max(0, len(same) - negatives * len(kept)) if replacing else 0
        assert len(rewritten) + stand_ins <= rewrites * len(kept)
        if len(rewritten) + stand_ins < rewrites * len(kept):
            assert every <= rewritten | same
        category = catalog.record(item).category
        free = {query for query in found.sold[category] if (query, item) not in found.behaviour} if category else set()
        assert same <= free and len(same) - stand_ins <= negatives * len(kept)
        if len(same) < negatives * len(kept):
            assert free <= rewritten | same
    assert not (set(by_source["rewrite"]) | set(by_source["same-category"])) - set(of_item)
