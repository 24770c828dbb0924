"""Splits by group: items that a model cannot tell apart are in one split, so that no test item was seen in training.

Two items with a key in common, of title or picture (see `keys`), are of one group, and so are those that further items
link: a group is a connected component. A key that more than `max_same` items have is a placeholder's and links none.
The split of a group is the one that its first item by id has of its own, so an item alone keeps its split, and the
order of the items does not matter.

A twin that `mbsd catalog twins` made is of its item's group. Its own title and picture link nothing: what is left of
many titles is a brand. So an item is in the split that it has in the catalogue without twins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mbsd.catalog.identity.files import NO_KEY
from mbsd.catalog.identity.find import picture_keys, title_keys
from mbsd.catalog.identity.near import MAX_DISTANCE, components, near_picture_keys
from mbsd.catalog.identity.report import without_placeholders
from mbsd.catalog.layout import SPLITS
from mbsd.catalog.several import Items
from mbsd.catalog.twins.ids import twins_of
from mbsd.errors import UserError
from mbsd.io.console import say

Int64 = NDArray[np.int64]
GROUP_KINDS = ("title", "picture", "near_picture")
DEFAULT_KINDS = ("title", "picture")
NO_ITEMS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class GroupOptions:
    """Which items are one group.

    Attributes:
        by: kinds of keys, of GROUP_KINDS: near_picture is a perceptual hash; () = every item is a group of its own.
        max_same: items that may have a key in common before it is a placeholder's and links none.
        near_distance: of the 64 bits of a perceptual hash, how many may differ between two that are linked.
        titles: a source (JSONL or Parquet) or catalogue of the same items, whose titles are compared. Where titles are
            masked, the unmasked ones: what is left of many is a brand, and those are not one product. None: the
            catalogue's own.
        workers: processes that hash pictures for near_picture; 0 = one per core.

    Raises:
        UserError: an unknown kind, or a number out of range.
    """

    by: tuple[str, ...] = DEFAULT_KINDS
    max_same: int = 100
    near_distance: int = 0
    titles: Path | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        unknown = next((kind for kind in self.by if kind not in GROUP_KINDS), None)
        if unknown is not None:
            raise UserError(f"group {unknown!r}; expected {', '.join(GROUP_KINDS)}, separated by commas, or none")
        if self.max_same < 2:
            raise UserError(f"max_same is {self.max_same}; expected 2 or more, for one item alone shares nothing")
        if not 0 <= self.near_distance <= MAX_DISTANCE:
            raise UserError(f"near_distance is {self.near_distance}; expected 0 to {MAX_DISTANCE} of 64 bits")
        if self.near_distance and "near_picture" not in self.by:
            raise UserError(f"near_distance is {self.near_distance}, but near_picture is not in --group; add it")
        if self.titles is not None and "title" not in self.by:
            raise UserError(f"--group-titles {self.titles}: title is not in --group; add it")

    def described(self) -> dict[str, Any]:
        """Return what a table says of how it was split (see `table_file.Table.split_by`)."""
        if not self.by:
            return {"by": "item"}
        more: dict[str, Any] = {"near_distance": self.near_distance} if "near_picture" in self.by else {}
        more |= {"titles": self.titles.name} if self.titles is not None else {}
        return {"by": "group", "keys": list(self.by), "max_same": self.max_same, **more}


def group_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of keys in a text such as "title,picture"; () of "none"."""
    return () if text == "none" else tuple(dict.fromkeys(word.strip() for word in text.split(",")))


@dataclass(frozen=True)
class Groups:
    """The groups of a catalogue's items.

    Attributes:
        catalog: whose items they are.
        keys: kind -> the key of each item, int64 [items], as it was found (see `keys`); NO_KEY of a twin.
        number: of each item's group, int64 [items], 0 … groups - 1.
        split: of each item's group, the position in SPLITS, int8 [items].
        with_twins: whether some items are in a group as the twin of another one.
    """

    catalog: Items
    keys: Mapping[str, Int64]
    number: Int64
    split: NDArray[np.int8]
    with_twins: bool = False

    @property
    def by(self) -> tuple[str, ...]:
        """The kinds of keys that were compared."""
        return tuple(self.keys)

    def splits(self) -> list[str]:
        """Return the split of each item."""
        names = np.array(SPLITS, dtype=object)[self.split].tolist()
        return list(names)

    def sizes(self) -> Int64:
        """Return the number of items of each group, int64 [groups]."""
        return np.bincount(self.number)

    def joined(self, one: Int64, other: Int64) -> Groups:
        """Return the groups in which the items `one[k]` and `other[k]` are of one group, for each k."""
        number = _linked(len(self.catalog), [(_first_of(self.number), np.arange(len(self.catalog))), (one, other)])
        return Groups(self.catalog, self.keys, number, _splits_of(number, self.catalog), self.with_twins)

    def describe(self) -> str:
        """Return in words how many items are in groups, and how many have another split than their own."""
        if not self.by:
            return "each item has its own split (equal items may be in two)"
        sizes = self.sizes()
        many = sizes[sizes > 1]
        equal = f"equal {' or '.join(self.by)}"
        if not len(many):
            return f"no two items have an {equal}: each has its own split"
        moved = np.count_nonzero(self.split != _own_splits(self.catalog))
        equal += ", or of an item and its twin" if self.with_twins else ""
        return (
            f"{many.sum()} of {len(self.number)} items are in groups with an {equal} ({len(many)} groups, the largest "
            f"of {many.max()}); {moved} have their group's split instead of their own"
        )


def find_groups(catalog: Items, options: GroupOptions | None = None, note: Callable[[str], None] = say) -> Groups:
    """Return the groups of a catalogue's items.

    Args:
        catalog: whose titles and pictures are compared.
        options: None = equal titles or equal pictures.
        note: prints a line, about a damaged picture.

    Raises:
        UserError: the source of titles cannot be read, or lacks items of the catalogue.
    """
    options = options or GroupOptions()
    find: dict[str, Callable[[], Int64]] = {
        "title": lambda: title_keys(catalog, options.titles),
        "picture": lambda: picture_keys(catalog, note),
        "near_picture": lambda: near_picture_keys(catalog, options.near_distance, options.workers, note),
    }
    keys = {kind: find[kind]() for kind in options.by}
    items, twins = twins_of(catalog) if options.by else (NO_ITEMS, NO_ITEMS)
    for of_kind in keys.values():
        of_kind[twins] = NO_KEY
    number = group_numbers(list(keys.values()), len(catalog), options.max_same, [(items, twins)])
    return Groups(catalog, keys, number, _splits_of(number, catalog), len(twins) > 0)


def group_splits(catalog: Items, options: GroupOptions | None = None) -> list[str]:
    """Return the split of each item, that of its group."""
    return find_groups(catalog, options).splits()


def group_numbers(
    keys: Sequence[Int64], num_items: int, max_same: int, also: Sequence[tuple[Int64, Int64]] = ()
) -> Int64:
    """Return the number of each item's group, int64 [items], from any number of keys int64 [items] each.

    `also`: items that are linked with items, whatever their keys.
    """
    links = list(also)
    for of_kind in keys:
        kept, _ = without_placeholders(of_kind, max_same)
        items = np.flatnonzero(kept != NO_KEY)
        links.append((items[_first_of(kept[items])], items))
    return _linked(num_items, links)


def first_by_id(number: Int64, item_ids: Any) -> Int64:
    """Return of each group the item whose id is the smallest by its bytes, int64 [groups]; `item_ids`: pyarrow."""
    order = pc.sort_indices(item_ids).to_numpy().astype(np.int64)
    return np.asarray(order[np.unique(number[order], return_index=True)[1]], dtype=np.int64)


def _splits_of(number: Int64, catalog: Items) -> NDArray[np.int8]:
    return _own_splits(catalog)[first_by_id(number, catalog.table()["item_id"])][number]


def _own_splits(catalog: Items) -> NDArray[np.int8]:
    return np.asarray(pc.index_in(catalog.table()["split"], value_set=pa.array(SPLITS)).to_numpy(), dtype=np.int8)


def _first_of(keys: Int64) -> Int64:
    """Return for each place the first place with the same key."""
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(first[place], dtype=np.int64)


def _linked(num_items: int, links: Sequence[tuple[Int64, Int64]]) -> Int64:
    """Return the number of each item's connected component; `links`: items that are linked with items."""
    one, other = (
        np.concatenate([np.zeros(0, np.int64), *side]) for side in ([a for a, _ in links], [b for _, b in links])
    )
    return components(num_items, one, other)
