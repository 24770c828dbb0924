"""The items that a row of labels names: by their ids, and of several catalogues by the name of theirs."""

from __future__ import annotations

import dataclasses
from functools import cache

from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Items
from mbsd.catalog.task_rows import TaskRow
from mbsd.errors import UserError

Numbers = tuple[int | None, ...]


class RowItems:
    """Finds them.

    Args:
        catalog: one, or several. Of several a row names its catalogue, or its ids are in one of them alone.
    """

    def __init__(self, catalog: Items) -> None:
        self._catalog = catalog
        members = (
            {"": catalog} if isinstance(catalog, Catalog) else dict(zip(catalog.names, catalog.members, strict=True))
        )
        self._find = {name: cache(one.item_number) for name, one in members.items()}

    def of(self, row: TaskRow) -> tuple[TaskRow, Numbers]:
        """Return the row, with the name of its catalogue where there are several, and its items' numbers.

        A number is None where no catalogue has the item, or the one that the row names has not.

        Raises:
            UserError: a name that no catalogue has, an id that two catalogues have in a row that names none, or two
                items of two catalogues.
        """
        if isinstance(self._catalog, Catalog):
            return row, tuple(self._find[""](item_id) for item_id in row.item_ids)
        if row.catalog and row.catalog not in self._find:
            raise UserError(f"{row.place}: catalog is {row.catalog!r}; expected one of {', '.join(self._find)}")
        names = [row.catalog or self._only(row, item_id) for item_id in row.item_ids]
        if None in names:
            return row, tuple(None if name is None else 0 for name in names)
        first = str(names[0])
        if len(set(names)) > 1:
            raise UserError(
                f"{row.place}: {row.item_ids[0]!r} is of the catalogue {first} and {row.item_ids[1]!r} of {names[1]}; "
                "a row of alignment names two items of one catalogue"
            )
        own = [self._find[first](item_id) for item_id in row.item_ids]
        numbers = (None if number is None else self._catalog.number(first, number) for number in own)
        return dataclasses.replace(row, catalog=first), tuple(numbers)

    def _only(self, row: TaskRow, item_id: str) -> str | None:
        """The catalogue that has an item of this id; None: none has."""
        having = [name for name, find in self._find.items() if find(item_id) is not None]
        if len(having) > 1:
            raise UserError(
                f"{row.place}: {item_id!r} is an item of {' and of '.join(having)}; name the row's catalogue in a "
                "column `catalog`"
            )
        return having[0] if having else None
