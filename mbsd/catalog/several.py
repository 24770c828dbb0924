"""Several catalogues behind one face: their items numbered through, the second's behind the first's and so on.

Inside a process an item is one number. Outside, in tables, vectors and answers, it is the name of its catalogue and its
number or id there.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mbsd.catalog.reader import Catalog, Record
from mbsd.errors import UserError
from mbsd.io.home import expand_home

Int64 = NDArray[np.int64]
NAME = r"[\w.-]+"  # of a catalogue among several, as `mbsd.config.catalogs` has it


class Catalogs:
    """The items of several catalogues, as `Catalog` gives those of one.

    Args:
        catalogs: name -> a catalogue or its folder, in order.

    Attributes:
        names: of the catalogues.
        members: the catalogues.
        starts: int64 [catalogues + 1]; the number of each one's first item, and of all items.
        fingerprint: changes with any of theirs and with their order.

    Raises:
        UserError: as of `Catalog`.
    """

    def __init__(self, catalogs: Mapping[str, Catalog | Path | str]) -> None:
        self.names = tuple(catalogs)
        self.members = tuple(one if isinstance(one, Catalog) else Catalog(one) for one in catalogs.values())
        self.starts: Int64 = np.cumsum([0, *map(len, self.members)], dtype=np.int64)
        self._starts: list[int] = self.starts.tolist()
        self.fingerprint = joint_fingerprint([one.fingerprint for one in self.members])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_table"}

    @property
    def path(self) -> str:
        """Where they lie, for messages."""
        return " + ".join(str(one.path) for one in self.members)

    @property
    def meta(self) -> dict[str, int]:
        """Of what `catalog.json` counts, the sums: items, and those with a picture."""
        return {name: sum(int(one.meta[name]) for one in self.members) for name in ("items", "with_image")}

    @property
    def attribute_where(self) -> dict[str, str]:
        """Attribute name -> where its values can be seen; the first catalogue that says so counts."""
        return {name: where for one in reversed(self.members) for name, where in one.attribute_where.items()}

    def __len__(self) -> int:
        return self._starts[-1]

    def member(self, item: int) -> tuple[int, int]:
        """Return which of the catalogues an item is in, counted from 0, and its number there."""
        if not 0 <= item < self._starts[-1]:
            raise IndexError(f"item {item} of catalogues of {len(self)}")
        place = bisect.bisect_right(self._starts, item) - 1  # numpy's takes ten times as long for a single number
        return place, int(item) - self._starts[place]

    def number(self, name: str, item: int) -> int:
        """Return the number of an item of the catalogue of this name; the opposite of `member`."""
        return self._starts[self.names.index(name)] + item

    def members_of(self, items: Int64) -> tuple[Int64, Int64]:
        """Return the same of many items: int64 of their shape, twice."""
        places = np.searchsorted(self.starts, items, side="right") - 1
        return places, items - self.starts[places]

    def table(self) -> Any:
        """Return all indexes as one pyarrow Table, without a copy; `shard` and `offset` are each catalogue's own."""
        return self._table

    @cached_property
    def _table(self) -> Any:
        return pa.concat_tables([one.table() for one in self.members])

    def record(self, item: int) -> Record:
        """Return an item's id, title, category, attributes and split."""
        place, own = self.member(item)
        return self.members[place].record(own)

    def title(self, item: int) -> str:
        """Return an item's title; empty = missing."""
        place, own = self.member(item)
        return self.members[place].title(own)

    def has_image(self, item: int) -> bool:
        """Return whether an item has a picture."""
        place, own = self.member(item)
        return self.members[place].has_image(own)

    def image(self, item: int) -> bytes | None:
        """Return the item's JPEG bytes, or None where it has no picture; raises as `Catalog.image` does."""
        place, own = self.member(item)
        return self.members[place].image(own)

    def whole_image(self, item: int, say: Callable[[str], None]) -> bytes | None:
        """Return the item's JPEG bytes; None where it has no picture, or a damaged one, which `say` then names."""
        place, own = self.member(item)
        return self.members[place].whole_image(own, say)

    def indices(self, split: str | None = None) -> Int64:
        """Return the item numbers of a split in rising order, int64 [items]; None = all."""
        own = [one.indices(split) for one in self.members]
        return np.concatenate([items + start for items, start in zip(own, self._starts[:-1], strict=True)])

    def shown(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether each item has a title and whether it has a picture, bool [items] each."""
        has_title, has_image = zip(*(one.shown() for one in self.members), strict=True)
        return np.concatenate(has_title), np.concatenate(has_image)

    def is_complete(self) -> NDArray[np.bool_]:
        """Return whether each item has both a title and a picture, bool [items]."""
        has_title, has_image = self.shown()
        return has_title & has_image

    def attribute_values(self) -> dict[str, list[str]]:
        """Return attribute name -> the values that occur; both sorted."""
        values: dict[str, set[str]] = {}
        for one in self.members:
            for name, found in one.attribute_values().items():
                values.setdefault(name, set()).update(found)
        return {name: sorted(values[name]) for name in sorted(values)}


Items = Catalog | Catalogs
"""What a run reads: one catalogue, or several."""


def open_catalogs(folders: Sequence[Path]) -> Items:
    """Return the catalogue in a folder; or several, each given as NAME=FOLDER.

    Raises:
        UserError: of several, one has no name, or another's; or as of `Catalog`.
    """
    if len(folders) == 1 and ("=" not in str(folders[0]) or folders[0].is_dir()):
        return Catalog(folders[0])
    named: dict[str, str] = {}
    for folder in folders:
        name, _, path = str(folder).partition("=")
        if not path or not re.fullmatch(NAME, name) or name in named:
            raise UserError(
                f"--catalog {folder}: expected NAME=FOLDER, each with a name of its own (letters, digits, _, . and -), "
                "where there are several catalogues"
            )
        named[name] = expand_home(path)
    return Catalogs(named)


def joint_fingerprint(fingerprints: Sequence[str]) -> str:
    """Return one of several catalogues, in this order: 64 hex digits."""
    return hashlib.sha256(json.dumps(list(fingerprints)).encode()).hexdigest()


def called(catalog: Items, item: int) -> str:
    """Return an item's number for a reader; of several catalogues, the name of its own and its number there."""
    if isinstance(catalog, Catalog):
        return str(item)
    place, own = catalog.member(item)
    return f"{catalog.names[place]} {own}"


def item_columns(catalog: Items | None, columns: Mapping[str, Int64]) -> dict[str, Any]:
    """Return the columns by which a file names items: as they are of one catalogue; of several `catalog` before them.

    Args:
        catalog: of the items; None: one.
        columns: name -> item numbers, int64 [rows]; of two, the items of a row are in one catalogue.
    """
    if not isinstance(catalog, Catalogs):
        return dict(columns)
    places = catalog.members_of(next(iter(columns.values())))[0]
    named = np.array(catalog.names, dtype=object)[places]
    return {"catalog": named, **{name: catalog.members_of(items)[1] for name, items in columns.items()}}
