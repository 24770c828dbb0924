"""First step of a build: a source's items become numbered rows with a running digest; repeated item ids are marked."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mbsd.catalog.sources import Item
from mbsd.errors import UserError


@dataclass(frozen=True)
class SourceRow:
    """One row of a source.

    Attributes:
        number: counts from 1.
        item: the row's content.
        same_as: number of the first row with this item id; None where this is the first.
        digest: sha256 over all rows up to this one; by it an interrupted build recognises its source.
    """

    number: int
    item: Item
    same_as: int | None
    digest: bytes

    @property
    def place(self) -> str:
        """File and row, or for an item that no file holds, its number."""
        return self.item.place.short if self.item.place is not None else f"row {self.number}"


class SourceRows:
    """Iterates over a source's rows in order, once.

    Attributes:
        number: of the last row that was read; 0 before the first.
    """

    def __init__(self, items: Iterable[Item]):
        self._items = iter(items)
        self._sha = hashlib.sha256()
        self.number = 0
        # A private database, which moves to a temporary file when it outgrows its cache: a dict of ten million ids
        # takes more than a gigabyte.
        self._seen = sqlite3.connect("")
        self._seen.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID")

    @property
    def digest(self) -> str:
        """sha256 of the rows read so far, in hex; see `SourceRow.digest`."""
        return self._sha.hexdigest()

    def skip(self, count: int, digest: str) -> None:
        """Skip the first `count` rows, which an unfinished build has already processed.

        Raises:
            UserError: their digest is not `digest`, so they are not the rows that it processed.
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

    def __iter__(self) -> Iterator[SourceRow]:
        while (row := self._next()) is not None:
            yield row

    def _next(self) -> SourceRow | None:
        item = next(self._items, None)
        if item is None:
            return None
        self.number += 1
        fields = (item.item_id, item.title, item.image, item.category, *item.attributes.items())
        self._sha.update(repr(fields).encode("utf-8", "surrogatepass"))
        added = self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (item.item_id, self.number))
        same_as = None
        if added.rowcount == 0:
            (same_as,) = self._seen.execute("SELECT row FROM seen WHERE id = ?", (item.item_id,)).fetchone()
        return SourceRow(self.number, item, same_as, self._sha.digest())
