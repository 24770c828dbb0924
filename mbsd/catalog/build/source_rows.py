"""The rows of a source on their way into a catalogue: numbered, digested, repeated item ids found."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mbsd.catalog.sources import Item
from mbsd.errors import UserError


@dataclass(frozen=True)
class Row:
    """An item of a source.

    Attributes:
        number: its row, from 1.
        item: what the row says.
        same_as: the first row with the same item id, where that is an earlier one.
        digest: sha256 over all rows up to this one.
    """

    number: int
    item: Item
    same_as: int | None
    digest: bytes


class Rows:
    """A source's rows in order."""

    def __init__(self, items: Iterable[Item]):
        self._items = iter(items)
        self._sha = hashlib.sha256()
        self._number = 0
        # A private database, which moves to a temporary file when it outgrows its cache: a dict of ten million ids
        # takes more than a gigabyte.
        self._seen = sqlite3.connect("")
        self._seen.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID")

    def skip(self, count: int, digest: str) -> None:
        """Pass over the rows that an unfinished build has already taken in.

        Raises:
            UserError: they are not the rows that it took in.
        """
        found = ""
        for _ in range(count):
            row = self._next()
            found = row.digest.hex() if row else ""
            if row is None:
                break
        if count and found != digest:
            raise UserError(
                f"the first {count} rows of the source are not those that the unfinished build has taken in; give the "
                "same source to go on with it, or --restart to begin anew"
            )

    def __iter__(self) -> Iterator[Row]:
        while (row := self._next()) is not None:
            yield row

    def _next(self) -> Row | None:
        item = next(self._items, None)
        if item is None:
            return None
        self._number += 1
        fields = (item.item_id, item.title, item.image, item.category, *item.attributes.items())
        self._sha.update(repr(fields).encode("utf-8", "surrogatepass"))
        added = self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (item.item_id, self._number))
        same_as = None
        if added.rowcount == 0:
            (same_as,) = self._seen.execute("SELECT row FROM seen WHERE id = ?", (item.item_id,)).fetchone()
        return Row(self._number, item, same_as, self._sha.digest())
