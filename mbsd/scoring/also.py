"""A further table whose training rows floors learn from too, as a model that was trained on it before has done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbsd.catalog.attribute_values import value_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.errors import UserError
from mbsd.io.console import say
from mbsd.scoring.floor_features import Int64


class Joined:
    """The items of two catalogues: those of the second have the numbers behind the first's."""

    def __init__(self, first: Catalog, second: Catalog) -> None:
        self.path = first.path
        self._first, self._second = first, second

    def title(self, item: int) -> str:
        """Return an item's title; empty = missing."""
        catalog, own = self._place(item)
        return catalog.title(own)

    def whole_image(self, item: int, say: Callable[[str], None]) -> bytes | None:
        """Return the item's JPEG bytes; None where it has no picture, or a damaged one, which `say` then names."""
        catalog, own = self._place(item)
        return catalog.whole_image(own, say)

    def _place(self, item: int) -> tuple[Catalog, int]:
        behind = item - len(self._first)
        return (self._first, item) if behind < 0 else (self._second, behind)


@dataclass(frozen=True)
class Also:
    """The training rows of a table, as rows of another.

    Attributes:
        items: their numbers in `Joined`.
        labels: those of the other table: of categories, the one of the same name.
        texts: tags as the other table writes them; "" for categories.
    """

    items: Int64
    labels: Int64
    texts: list[str]


def read_also(also: Path, its_catalog: Catalog, table: Table, catalog: Catalog) -> Also:
    """Read the training rows of `also` whose category or tag occurs in `table`, compared without case and punctuation.

    Prints how many others there are, and warns where an item is one that `table` scores.

    Raises:
        UserError: it is of another kind, or no row has a category or tag of `table`.
    """
    found = Table(also, its_catalog, table.kind)
    rows = found.rows("train")
    column = "category" if table.kind == "categories" else "text"
    ours = sorted(set(table.column(column)), reverse=True)
    known = {_key(name): name for name in ours}  # of several spellings in this table the first
    theirs = [found.column(column)[row] for row in rows]
    exact = set(ours)
    names = [name if name in exact else known.get(_key(name)) for name in theirs]
    used = [n for n, name in enumerate(names) if name is not None]
    if not used:
        raise UserError(
            f"table {also}: none of its {len(rows)} training rows has a {'category' if column == 'category' else 'tag'}"
            f" of {table.path}, whose first is {table.column(column)[0]!r}; give a table with the same names"
        )
    say(f"{also}: {len(used)} of its {len(rows)} training rows have a name of {table.path} and are learned from")
    kept, shown = rows[used], [str(names[n]) for n in used]
    items, labels = found.column("item")[kept], found.column("label")[kept]
    scored = table.column("item")[np.concatenate([table.rows("validation"), table.rows("test")])]
    held_out = {catalog.record(int(item)).item_id for item in np.unique(scored)}
    if seen := sum(its_catalog.record(int(item)).item_id in held_out for item in items):
        say(f"WARNING: {seen} of these rows are of items that {table.path} holds out: floors have seen their answers")
    if table.kind == "categories":
        label_of = {name: label for label, name in enumerate(table.class_names)}
        labels, shown = np.array([label_of[name] for name in shown], dtype=np.int64), [""] * len(shown)
    return Also(items + len(catalog), labels, shown)


def _key(name: str) -> tuple[str, ...]:
    """What two spellings of a category, or of a tag "name:value", have in common."""
    attribute, _, value = name.partition(":")
    return (*sorted(value_keys(attribute)), ":", *sorted(value_keys(value)))
