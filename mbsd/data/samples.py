"""Catalogue → batches: what a sample is, over the items of a catalogue or the rows of a task table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mbsd.errors import UserError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """One sample before its title and picture are read: an item, with a query or tag and a label where it has them."""

    item: int
    text: str | None = None
    label: float | int | None = None


class Samples(Protocol):
    """A sequence of samples that can be pickled for a worker."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class ItemSource(Protocol):
    """What is read of a catalogue (`mbsd.catalog.reader.Catalog`); it can be pickled and survives fork."""

    def title(self, item: int, /) -> str:
        """The title; "" where it is missing."""
        ...

    def image(self, item: int, /) -> bytes | None:
        """The JPEG (RGB, upright), or None where the item has none."""
        ...


class SplitCatalog(ItemSource, Protocol):
    """A catalogue whose items are divided into splits."""

    def indices(self, split: str | None = None) -> Int64:
        """The item numbers of a split, int64; all of them for None."""
        ...


class SplitTable(Protocol):
    """What is read of a task table (`mbsd.catalog.tables.Table`)."""

    @property
    def kind(self) -> str:
        """Pairs, attributes, alignment or categories."""
        ...

    def rows(self, split: str | None = None) -> Int64:
        """The row numbers of a split, int64; all of them for None."""
        ...

    def column(self, name: str) -> Any:
        """A column over all rows: int64 for numbers, a list of str for text."""
        ...


class CatalogSamples:
    """The items of a split, without query and label: stage 1, embedding."""

    def __init__(self, catalog: SplitCatalog, split: str | None = "train") -> None:
        self.items = catalog.indices(split)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(int(self.items[index]))


class TableSamples:
    """The rows of a split of a table with one item a row: pairs (query), attributes (tag), categories (no text).

    Raises:
        UserError: a row of the table has two items (alignment).
    """

    def __init__(self, table: SplitTable, split: str | None = "train") -> None:
        if table.kind == "alignment":
            raise UserError("data.table: holds alignment, two items a row; expected pairs, attributes or categories")
        self.table = table
        self.rows = table.rows(split)
        self.has_text = table.kind != "categories"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        row = int(self.rows[index])
        text = str(self.table.column("text")[row]) if self.has_text else None
        return Sample(int(self.table.column("item")[row]), text, int(self.table.column("label")[row]))
