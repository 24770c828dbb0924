"""Which catalogues the rows of a task table are of: in its file by name, in memory by the numbers of their items.

A table of several catalogues has a column `catalog` with the name of each row's, and item numbers of that catalogue;
its metadata has the fingerprint and size of each. `mbsd tables concat` writes such a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Items, joint_fingerprint
from mbsd.errors import UserError

CATALOG = "catalog"  # the column, and the last part of the metadata's key
OWNERS = "mbsd.catalogs"
AGAIN = "make it again with `mbsd tables build` or `mbsd tables concat`"


@dataclass(frozen=True)
class Owner:
    """A catalogue that a table's rows are of; the name is "" where the table is of one catalogue and names none."""

    name: str
    fingerprint: str
    num_items: int


@dataclass(frozen=True)
class Owners:
    """All catalogues of a table, in the order in which their items are numbered through."""

    each: tuple[Owner, ...]

    @classmethod
    def of(cls, catalog: Items) -> Owners:
        """The catalogues behind one face."""
        if isinstance(catalog, Catalog):
            return cls((Owner("", catalog.fingerprint, len(catalog)),))
        named = zip(catalog.names, catalog.members, strict=True)
        return cls(tuple(Owner(name, one.fingerprint, len(one)) for name, one in named))

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Owners:
        """Those that a table's metadata names; the opposite of `metadata`."""
        if OWNERS in metadata:
            return cls(tuple(Owner(**each) for each in json.loads(metadata[OWNERS])))
        return cls((Owner("", metadata["mbsd.fingerprint"], int(metadata["mbsd.num_items"])),))

    @property
    def named(self) -> bool:
        """Whether rows name their catalogue."""
        return bool(self.each[0].name)

    @property
    def metadata(self) -> dict[str, str]:
        """What a table's file says of them."""
        one = self.each[0].fingerprint
        fingerprint = joint_fingerprint([owner.fingerprint for owner in self.each]) if self.named else one
        named = {OWNERS: json.dumps([asdict(owner) for owner in self.each], ensure_ascii=False)} if self.named else {}
        return {"mbsd.fingerprint": fingerprint, "mbsd.num_items": str(self.num_items), **named}

    @property
    def num_items(self) -> int:
        """Of all of them."""
        return sum(owner.num_items for owner in self.each)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The number of each one's first item, int64 [catalogues]."""
        return np.cumsum([0, *(owner.num_items for owner in self.each[:-1])], dtype=np.int64)


def as_written(table: Any, owners: Owners) -> Any:
    """A pyarrow Table of items that are numbered through, as its file has it: a column `catalog`, and own numbers."""
    if not owners.named:
        return table
    starts = owners.starts
    names = _item_columns(table)
    place, *others = (np.searchsorted(starts, table[name].to_numpy(), side="right") - 1 for name in names)
    if any((place != other).any() for other in others):
        raise ValueError("a row names items of two catalogues: expected two of one")
    for name in names:
        table = table.set_column(
            table.column_names.index(name), name, pa.array(table[name].to_numpy() - starts[place], pa.int64())
        )
    return table.append_column(CATALOG, pa.array([owner.name for owner in owners.each]).take(pa.array(place)))


def numbered_through(table: Any, own: Owners, read: Items | None, path: Path) -> Any:
    """The rows of a table's file with the item numbers of what a run reads, without the column `catalog`.

    Args:
        table: as its file has it, of the catalogues `own`.
        read: the run's one or several catalogues; None: those of the table, in its own order.
        path: of the file, for messages.

    Raises:
        UserError: a row is of a catalogue that the run does not read, or of one that was built again, or has an item
            number that its catalogue does not have; a table that names no catalogue fits none of them, or two.
    """
    readers = own if read is None else Owners.of(read)
    where = _places(own.each, readers.each, path)
    of_row = np.zeros(len(table), dtype=np.int64)
    if own.named:
        found = pc.index_in(table[CATALOG], value_set=pa.array([owner.name for owner in own.each]))
        of_row = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    known = np.array([*(place in where for place in range(len(own.each))), False])  # the last one: of -1
    if len(unknown := np.flatnonzero(~known[of_row])):
        row = int(unknown[0])
        expected = ", ".join(owner.name for owner in readers.each if owner.name) or f"the one of {_path(read)}"
        raise UserError(
            f"table {path}, row {row + 1}: catalog is {table[CATALOG][row].as_py()!r}; expected one that is read here: "
            f"{expected} (data.catalogs names them)"
        )
    sizes = np.array([owner.num_items for owner in own.each])
    starts = readers.starts
    shift = np.array([starts[where[place]] if place in where else 0 for place in range(len(own.each))], dtype=np.int64)
    for name in _item_columns(table):
        items = _numbers(table[name])
        if len(outside := np.flatnonzero((items < 0) | (items >= sizes[of_row]))):
            row = int(outside[0])
            raise UserError(
                f"table {path}, row {row + 1}: {name} is {table[name][row].as_py()!r}; expected an item number from 0 "
                f"to {sizes[of_row[row]] - 1}"
            )
        table = table.set_column(table.column_names.index(name), name, pa.array(items + shift[of_row], pa.int64()))
    return table.drop_columns([CATALOG]) if own.named else table


def _places(own: Sequence[Owner], readers: Sequence[Owner], path: Path) -> dict[int, int]:
    """Place of a table's catalogue -> its place among those that the run reads; without those that it does not."""
    where: dict[int, int] = {}
    for place, owner in enumerate(own):
        by_name = [at for at, reader in enumerate(readers) if owner.name and reader.name == owner.name]
        same = [at for at, reader in enumerate(readers) if reader.fingerprint == owner.fingerprint]
        if by_name and by_name[0] not in same:
            raise UserError(
                f"table {path} was made for another catalogue {owner.name!r} (fingerprint {owner.fingerprint[:12]}, "
                f"the one that is read has {readers[by_name[0]].fingerprint[:12]}): {AGAIN}"
            )
        if owner.name and readers[0].name:
            where |= {place: by_name[0]} if by_name else {}
        elif len(same) > 1:
            names = " and ".join(repr(readers[at].name) for at in same)
            raise UserError(
                f"table {path}: it names no catalogue, and {names} of data.catalogs are the same one, so that its rows "
                f"could be of either; name it with `mbsd tables concat {path}={readers[same[0]].name}`"
            )
        elif same:
            where[place] = same[0]
        elif not owner.name:
            has = ", ".join(f"{reader.name} {reader.fingerprint[:12]}" for reader in readers)
            raise UserError(
                f"table {path} was made for another catalogue (fingerprint {owner.fingerprint[:12]}; data.catalogs has "
                f"{has}): build it again for one of them"
            )
    return where


def _numbers(column: Any) -> NDArray[np.int64]:
    """A column of item numbers; -1 where there is none."""
    found: NDArray[np.int64] = pc.fill_null(column, -1).to_numpy()
    return found


def _item_columns(table: Any) -> list[str]:
    return [name for name in table.column_names if name.startswith("item")]


def _path(read: Items | None) -> str:
    return str(read.path) if read is not None else "the table"
