"""Tags of items from their own attributes: the right ones, and wrong ones that are surely wrong.

A wrong tag shares no value with the item's own text ("Red" is none for "Black/Red"), none with what another item of the
same product says, and is ambiguous with neither (see `ambiguity`).
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mbsd.catalog.ambiguity import (
    Ambiguity,
    Group,
    ambiguity_file,
    find_ambiguity,
    group_of_picture,
    groups_of_title,
    read_ambiguity,
    without_variants,
    write_ambiguity,
)
from mbsd.catalog.attribute_values import value_keys
from mbsd.catalog.groups import GroupOptions, Groups
from mbsd.catalog.identity.find import picture_keys, title_keys
from mbsd.catalog.identity.report import groups_of, without_placeholders
from mbsd.catalog.layout import draw
from mbsd.catalog.row_count import RowCount
from mbsd.catalog.several import Items
from mbsd.errors import UserError
from mbsd.io.console import say

SHOWN = 40  # characters of a value that is too long
NO_OTHER = "value beside which every other may be true"
NO_PARTNER = "value without a partner of another value"
TOO_LONG = "tag that is too long"
RARE = "value that is none of the commonest of its attribute"


@dataclass(frozen=True)
class TagLimits:
    """Which values are asked, right or wrong.

    Attributes:
        max_values: of an attribute with more of them (brands, product numbers), its commonest so many that two items
            or more have; None = all.
        max_characters: of the whole tag "name:value"; None = any number.

    Raises:
        UserError: a number below 2.
    """

    max_values: int | None = None
    max_characters: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_values", "max_characters"):
            if (found := getattr(self, name)) is not None and found < 2:
                raise UserError(f"{name} is {found}; expected 2 or more")

    def asked(self, facts: Iterable[Fact], count: RowCount) -> list[Fact]:
        """Those whose tags are asked; the others are counted."""
        short: list[Fact] = []
        for fact in facts:
            if self.max_characters is not None and len(fact.name) + 1 + len(fact.text) > self.max_characters:
                count.leave_out(TOO_LONG, f"item {fact.item_id}: {fact.name} {fact.text[:SHOWN]!r}…")
            else:
                short.append(fact)
        kept = self._kept(short)
        asked = []
        for fact in short:
            if fact.name in kept and fact.text not in kept[fact.name]:
                count.leave_out(RARE, f"item {fact.item_id}: {fact.name} {fact.text!r}")
            else:
                asked.append(fact)
        return asked

    def _kept(self, facts: Iterable[Fact]) -> dict[str, set[str]]:
        """Attribute with too many values -> those that are asked."""
        if self.max_values is None:
            return {}
        numbers: dict[str, Counter[str]] = defaultdict(Counter)
        for fact in facts:
            numbers[fact.name][fact.text] += 1
        kept = {}
        for name, of_value in numbers.items():
            if len(of_value) > self.max_values:
                ordered = sorted(of_value, key=lambda text: (-of_value[text], text))
                kept[name] = {text for text in ordered[: self.max_values] if of_value[text] > 1}
        return kept


@dataclass(frozen=True)
class NegativeOptions:
    """Which wrong tags an attribute table has.

    Attributes:
        per_positive: wrong tags for each right one.
        ambiguous: a file of values that may both be true of one item (see `ambiguity.read_ambiguity`); None = what
            the catalogue says.
        balance: value = each tag is as often wrong as right in each split, so that the tag alone tells nothing;
            none = wrong tags are drawn as often as they occur in the item's category.

    Raises:
        UserError: a number out of range, or balance with another number of wrong tags than one.
    """

    per_positive: int = 1
    ambiguous: Path | None = None
    balance: Literal["none", "value"] = "none"

    def __post_init__(self) -> None:
        if self.per_positive < 0:
            raise UserError(f"negatives_per_positive is {self.per_positive}; expected 0 or more")
        if self.balance not in ("none", "value"):
            raise UserError(f"balance {self.balance!r}; expected none or value")
        if self.balance == "value" and self.per_positive != 1:
            raise UserError(
                f"negatives_per_positive is {self.per_positive}; expected 1 with --balance value, where each right tag "
                "has one wrong one"
            )


@dataclass(frozen=True, slots=True)
class Fact:
    """An attribute of an item.

    Attributes:
        item, item_id, category, split: the item's.
        name, text: of the attribute.
        blocked: keys of all values that may be true of it: its own, those of items of the same product, and those
            that are ambiguous with either.
    """

    item: int
    item_id: str
    category: str
    split: str
    name: str
    text: str
    blocked: frozenset[str]

    def refuses(self, text: str) -> bool:
        """Whether a text is surely wrong of the item."""
        return self.blocked.isdisjoint(value_keys(text))


@dataclass
class Tags:
    """The attributes of a catalogue's items, and which values may be true of them.

    Attributes:
        notes: what was found about values, a line each.
    """

    catalog: Items
    options: NegativeOptions
    limits: TagLimits
    ambiguity: Ambiguity
    facts: list[Fact]
    notes: list[str] = field(default_factory=list)

    def rows(self, seed: int, count: RowCount) -> list[dict[str, Any]]:
        """Return the table's rows by item and attribute, the right tag first; the same in any order of the items."""
        asked = []
        found = self.limits.asked(self.facts, count)
        texts: dict[str, set[str]] = defaultdict(set)
        for fact in found:
            texts[fact.name].add(fact.text)
        values = {name: sorted(of_name) for name, of_name in texts.items()}
        for fact in found:
            if len(values[fact.name]) > 1:
                asked.append(fact)
            else:
                where = f"item {fact.item_id}: {fact.name!r} has no value but {fact.text!r}"
                count.leave_out("attribute with one value in this catalogue", where)
        if self.options.balance == "value":
            wrong = _paired(asked, seed, count)
        else:
            wrong = _drawn(asked, values, self.options.per_positive, seed, count)
        rows = []
        for fact, others in sorted(wrong, key=lambda pair: (pair[0].item, pair[0].name)):
            for label, text in ((1, fact.text), *((0, other) for other in others)):
                where = self.catalog.attribute_where.get(fact.name, "unknown")
                rows.append(
                    {
                        "text": f"{fact.name}:{text}",
                        "item": fact.item,
                        "label": label,
                        "attribute": fact.name,
                        "where": where,
                        "split": fact.split,
                    }
                )
        return rows

    def write_ambiguity(self, out: Path) -> Path:
        """Write beside the table `out` which values may both be true; the user's own file stays as it is."""
        path = ambiguity_file(out)
        if self.options.ambiguous is None or path.resolve() != self.options.ambiguous.resolve():
            write_ambiguity(self.ambiguity, path)
        return path


def read_tags(groups: Groups, same: GroupOptions, options: NegativeOptions, limits: TagLimits) -> Tags:
    """Return the attributes of all items, each with the values that may be true of it.

    Args:
        groups: the items and their splits.
        same: where titles are compared, and how many items of one title or picture are a placeholder's.
        options: of the wrong tags.
        limits: which values are asked.

    Raises:
        UserError: the file of ambiguous values cannot be read, or names an attribute that no item has.
    """
    catalog, splits = groups.catalog, groups.splits()
    records = [catalog.record(item) for item in range(len(catalog))]
    attributes = [record.attributes for record in records]
    of_title, of_picture = (
        groups_of(without_placeholders(keys, same.max_same)[0])
        for keys in (
            groups.keys["title"] if "title" in groups.keys else title_keys(catalog, same.titles),
            groups.keys["picture"] if "picture" in groups.keys else picture_keys(catalog, say),
        )
    )
    titles, variants = without_variants([group for items in of_title for group in groups_of_title(records, items)])
    products = [*titles, *(group_of_picture(records, items) for items in of_picture)]
    ambiguity = find_ambiguity(attributes, products)
    notes: list[str] = []
    if options.ambiguous is not None:
        ambiguity, notes = read_ambiguity(options.ambiguous, attributes, ambiguity)
    if variants:
        notes.append(f"{', '.join(variants)}: variants, most items that are else alike differ in it")
    twins = _said_by_twins(products)
    facts = []
    for item, record in enumerate(records):
        for name, text in sorted(record.attributes.items()):
            own = value_keys(text) | twins.get((item, name), frozenset())
            blocked = ambiguity.blocked(name, own)
            facts.append(Fact(item, record.item_id, record.category, splits[item], name, text, blocked))
    return Tags(catalog, options, limits, ambiguity, facts, notes + ambiguity.describe())


def _said_by_twins(groups: Sequence[Group]) -> dict[tuple[int, str], frozenset[str]]:
    """(item, attribute) -> keys of values that items of the same product hold, where these differ."""
    said: dict[tuple[int, str], frozenset[str]] = {}
    for group in groups:
        for name, keys in group.said.items():
            if len(keys) > 1:
                for item in group.items:
                    said[item, name] = said.get((item, name), frozenset()) | keys
    return said


def _drawn(
    facts: Sequence[Fact], anywhere: dict[str, list[str]], num: int, seed: int, count: RowCount
) -> Iterator[tuple[Fact, list[str]]]:
    """Wrong tags drawn as often as they occur in the item's category; of any category where that has none.

    With uniform draws a rare value would nearly always be a wrong one, and a model could guess labels from the tag.
    """
    in_category: dict[tuple[str, str], list[str]] = defaultdict(list)
    for fact in sorted(facts, key=lambda fact: fact.item_id):  # the draw does not depend on the items' order
        in_category[fact.category, fact.name].append(fact.text)
    distinct = {key: sorted(set(texts)) for key, texts in in_category.items()}
    hopeless: set[tuple[str | None, str, frozenset[str]]] = set()  # no need to look through all values again
    for fact in facts:
        key = (fact.category, fact.name)
        others: list[str] = []
        places: tuple[tuple[str | None, list[str]], ...] = (
            (fact.category, distinct[key]), (None, anywhere[fact.name]),
        )  # fmt: skip
        for place, values in places:
            if num and not others and (place, fact.name, fact.blocked) not in hopeless:
                others = _other_values(fact, in_category[key], values, num, f"{seed}\t{fact.item_id}\t{fact.name}")
                if not others:
                    hopeless.add((place, fact.name, fact.blocked))
        if others or num == 0:
            yield fact, others
        else:
            count.leave_out(NO_OTHER, f"item {fact.item_id}: {fact.name} {fact.text!r}")


def _other_values(fact: Fact, occurrences: list[str], distinct: list[str], num: int, key: str) -> list[str]:
    """Return up to `num` texts that are wrong of an item: of hash-drawn occurrences, then of `distinct` in rotation."""
    drawn: list[str] = []
    for attempt in range(8 * num):
        other = occurrences[draw(key, attempt) % len(occurrences)]
        if fact.refuses(other) and other not in drawn:
            drawn.append(other)
        if len(drawn) == num:
            return drawn
    start = draw(key)
    for j in range(len(distinct)):
        other = distinct[(start + j) % len(distinct)]
        if fact.refuses(other) and other not in drawn:
            drawn.append(other)
        if len(drawn) == num:
            break
    return drawn


def _paired(facts: Sequence[Fact], seed: int, count: RowCount) -> Iterator[tuple[Fact, list[str]]]:
    """Items in pairs, each with the other's value as its wrong tag: first of one category, then of any, in a split."""
    pools: dict[tuple[str, str], dict[str, list[Fact]]] = defaultdict(lambda: defaultdict(list))
    for fact in facts:
        pools[fact.name, fact.split][fact.category].append(fact)
    for (name, _), of_category in pools.items():
        left: list[Fact] = []
        for pool in of_category.values():
            yield from _pairs(pool, seed, left)
        alone: list[Fact] = []
        yield from _pairs(left, seed, alone)
        for fact in sorted(alone, key=lambda fact: fact.item):
            count.leave_out(NO_PARTNER, f"item {fact.item_id}: {name} {fact.text!r}")


def _pairs(pool: Sequence[Fact], seed: int, left: list[Fact]) -> Iterator[tuple[Fact, list[str]]]:
    """Pair up items of an attribute; those without a partner go to `left`.

    Always one of the kind with most items left, which would else be alone at the end, with the next, in an order drawn
    by hash, that has another value. Items are of one kind where they have the same text and twins.
    """
    kinds: dict[tuple[str, frozenset[str]], list[tuple[int, str, Fact]]] = defaultdict(list)
    for fact in pool:
        drawn = draw(seed, fact.item_id, fact.name)
        kinds[fact.text, fact.blocked].append((drawn, fact.item_id, fact))
    waiting = [sorted(of_kind, key=lambda one: one[:2], reverse=True) for of_kind in kinds.values()]  # the next is last
    waiting.sort(key=lambda of_kind: of_kind[-1][:2])
    most = [(-len(of_kind), n) for n, of_kind in enumerate(waiting)]
    soonest = [(of_kind[-1][:2], n) for n, of_kind in enumerate(waiting)]
    heapq.heapify(most)
    heapq.heapify(soonest)
    while most:
        size, one = heapq.heappop(most)
        if not waiting[one] or -size != len(waiting[one]):  # an entry from before
            continue
        fact = waiting[one][-1][2]
        passed = []
        other = None
        while soonest:
            entry = heapq.heappop(soonest)
            at, n = entry
            if not waiting[n] or waiting[n][-1][:2] != at:  # an entry from before
                continue
            passed.append(entry)
            candidate = waiting[n][-1][2]
            if n != one and fact.refuses(candidate.text) and candidate.refuses(fact.text):
                other = n
                break
        for entry in passed:
            heapq.heappush(soonest, entry)
        if other is None:
            left.extend(one_left for _, _, one_left in waiting[one])
            waiting[one] = []
            continue
        partner = waiting[other][-1][2]
        yield fact, [partner.text]
        yield partner, [fact.text]
        for n in (one, other):
            waiting[n].pop()
            if waiting[n]:
                heapq.heappush(most, (-len(waiting[n]), n))
                heapq.heappush(soonest, (waiting[n][-1][:2], n))
