"""What identity keys join, in numbers and by name: placeholders are found and dropped here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Column, Table

from mbsd.catalog.identity.files import NO_KEY
from mbsd.catalog.reader import Catalog
from mbsd.io.console import markdown_of

Int64 = NDArray[np.int64]
SHOWN = 5  # groups that are named
IDS = 3  # items of a group that are named
COLUMNS = ("items with a key", "groups", "items in groups", "largest group", "placeholders")


@dataclass(frozen=True)
class Group:
    """Items that share a key.

    Attributes:
        items: how many.
        title: of the first of them.
        item_ids: of the first few.
    """

    items: int
    title: str
    item_ids: tuple[str, ...]

    def describe(self) -> str:
        """Return it in words, such as "12 items: 'red dress' (a1, a2, a3, …)"."""
        more = ", …" if self.items > len(self.item_ids) else ""
        return f"{self.items} items: {self.title!r} ({', '.join(self.item_ids)}{more})"


@dataclass(frozen=True)
class KindReport:
    """The keys of one kind, without those of placeholders.

    Attributes:
        items: how many have a key.
        groups: keys that two items or more share.
        grouped_items: items that share theirs.
        largest: the largest groups.
        placeholders: groups that were dropped for their size, the largest first.
    """

    items: int
    groups: int
    grouped_items: int
    largest: tuple[Group, ...]
    placeholders: tuple[Group, ...]


@dataclass(frozen=True)
class KeysReport:
    """All kinds.

    Attributes:
        items: of the catalogue.
        with_another: how many share a key of any kind with another item.
        kinds: kind -> its report.
        damaged: lines about pictures whose bytes are not those that were written; they have no key.
    """

    items: int
    with_another: int
    kinds: dict[str, KindReport]
    damaged: tuple[str, ...]

    def describe(self) -> str:
        """Return a table in Markdown with a line for each kind, then the largest groups and placeholders by name."""
        table = Table("kind", *(Column(name, justify="right") for name in COLUMNS))
        for kind, it in self.kinds.items():
            largest = it.largest[0].items if it.largest else 0
            numbers = (it.items, it.groups, it.grouped_items, largest, len(it.placeholders))
            table.add_row(kind, *map(str, numbers))
        lines = [markdown_of(table)]
        for kind, it in self.kinds.items():
            lines += [f"{kind}: {group.describe()}" for group in it.largest]
            lines += [f"{kind}: placeholder, dropped: {group.describe()}" for group in it.placeholders]
        return "\n".join(lines)


def without_placeholders(keys: Int64, max_same: int) -> tuple[Int64, list[Int64]]:
    """Return the keys with NO_KEY for those of more than `max_same` items, and the items of each that was dropped."""
    large = [items for items in groups_of(keys) if len(items) > max_same]
    kept = keys.copy()
    for items in large:
        kept[items] = NO_KEY
    return kept, large


def groups_of(keys: Int64) -> list[Int64]:
    """Return the item numbers, rising, of each key that two or more share; the largest group first, then by item."""
    shared = np.flatnonzero(is_shared(keys))
    order = shared[np.argsort(keys[shared], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(order) else []
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def is_shared(keys: Int64) -> NDArray[np.bool_]:
    """Return for each item whether another has its key."""
    _, place, count = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray((keys != NO_KEY) & (count[place] > 1))


def kind_report(catalog: Catalog, keys: Int64, dropped: list[Int64]) -> KindReport:
    """Return the report of the keys of one kind, and of the groups that were dropped from them."""
    groups = groups_of(keys)
    return KindReport(
        items=int((keys != NO_KEY).sum()),
        groups=len(groups),
        grouped_items=sum(map(len, groups)),
        largest=tuple(_named(catalog, group) for group in groups[:SHOWN]),
        placeholders=tuple(_named(catalog, group) for group in dropped),
    )


def with_another(keys: Mapping[str, Int64]) -> int:
    """Return how many items share a key of any kind with another."""
    return int(np.logical_or.reduce([is_shared(array) for array in keys.values()]).sum())


def as_json(report: KeysReport) -> dict[str, object]:
    """Return the report as it is written to `report.json`."""
    return dataclasses.asdict(report)


def _named(catalog: Catalog, group: Int64) -> Group:
    records = [catalog.record(int(item)) for item in group[:IDS]]
    return Group(len(group), records[0].title, tuple(record.item_id for record in records))
