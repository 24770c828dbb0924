"""Catalogue → batches: what a sample is, over the items of a catalogue or the rows of any task table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mbsd.data.order import sample_rng

Int64 = npt.NDArray[np.int64]


# Kind of table -> the columns a sample is made of, and what a sample calls them.
COLUMNS = {
    "pairs": ("text", "item", "label"),
    "attributes": ("text", "item", "label"),
    "categories": ("item", "label"),
    "alignment": ("item_a", "item_b", "label"),
}
FIELDS = {"item_a": "item", "item_b": "other"}


@dataclass(frozen=True)
class Sample:
    """One sample before its title and picture are read: an item, with a query or tag and a label where it has them."""

    item: int
    text: str | None = None
    label: float | int | None = None
    other: int | None = None
    """The second item of an alignment row; in a micro-batch all samples have one, or none has."""
    hidden: frozenset[str] = frozenset()
    """What is not shown of the item though it is there: title, image."""
    other_hidden: frozenset[str] = frozenset()
    """The same of the second item."""
    picture_of: int | None = None
    """Another item, whose picture is shown in place of the item's own (`mbsd.data.mismatch`)."""
    crop_of: int | None = None
    """Another item than that whose picture is shown; a crop of its picture is put into it (`mbsd.data.puzzles`)."""

    @property
    def pictured(self) -> int:
        """The item whose picture is shown."""
        return self.item if self.picture_of is None else self.picture_of


class Samples(Protocol):
    """A sequence of samples that can be pickled for a worker."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class ItemSource(Protocol):
    """What is read of a catalogue (`mbsd.catalog.reader.Catalog`); it can be pickled and survives fork."""

    def title(self, item: int, /) -> str:
        """The title; "" where it is missing."""
        ...

    def has_image(self, item: int, /) -> bool:
        """Whether the item has a picture, which may be a damaged one."""
        ...

    def image(self, item: int, /) -> bytes | None:
        """The JPEG (RGB, upright), or None where the item has none."""
        ...


class SplitCatalog(ItemSource, Protocol):
    """A catalogue whose items are divided into splits."""

    def indices(self, split: str | None = None) -> Int64:
        """The item numbers of a split, int64; all of them for None."""
        ...

    def is_complete(self) -> npt.NDArray[np.bool_]:
        """Whether each item has a title and a picture, bool [items]."""
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

    def column(self, name: str, /) -> Any:
        """A column over all rows; of numbers int64."""
        ...

    def row(self, row: int, columns: tuple[str, ...], /) -> dict[str, Any]:
        """Some columns of one row."""
        ...


class CatalogSamples:
    """The items of a split, without query and label: stage 1, contrastive, embedding.

    Args:
        catalog: whose items they are.
        split: None: all.
        complete: leave out items without title or picture.
        without: items to leave out, int64.
    """

    def __init__(
        self,
        catalog: SplitCatalog,
        split: str | None = "train",
        *,
        complete: bool = False,
        without: Int64 | None = None,
    ) -> None:
        items = catalog.indices(split)
        if without is not None:
            items = items[~np.isin(items, without)]
        self.items = items[catalog.is_complete()[items]] if complete else items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(int(self.items[index]))


class TableSamples:
    """The rows of a split of a task table: pairs (query), attributes (tag), categories (no text), alignment (2 items).

    Only the numbers of the split's rows are held; a row is read when it is asked for.
    """

    def __init__(self, table: SplitTable, split: str | None = "train") -> None:
        self.table = table
        self.rows = table.rows(split)
        self.columns = COLUMNS[table.kind]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        values = self.table.row(int(self.rows[index]), self.columns)
        return Sample(**{FIELDS.get(name, name): value for name, value in values.items()})


class Chosen:
    """Some of other samples, in this order."""

    def __init__(self, samples: Samples, indices: Int64) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.samples[int(self.indices[index])]


class Relabelled:
    """Samples whose label k has become labels[k]."""

    def __init__(self, samples: Samples, labels: Int64) -> None:
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.samples[index]
        return dataclasses.replace(sample, label=int(self.labels[int(sample.label or 0)]))


def first_items(samples: Samples) -> Int64:
    """The item of each sample, of an alignment row the first one: int64 [samples]."""
    if isinstance(samples, CatalogSamples):
        return samples.items
    if isinstance(samples, Relabelled):
        return first_items(samples.samples)
    if isinstance(samples, TableSamples):
        items: Int64 = samples.table.column("item_a" if samples.table.kind == "alignment" else "item")[samples.rows]
        return items
    return np.array([samples[index].item for index in range(len(samples))], dtype=np.int64)


class WithMissing:
    """Samples of which a share `rate` loses a title or a picture, whether or not the catalogue has one.

    Whether sample number i does is drawn from (seed, i) alone, so it is the same on any number of ranks, and one that
    loses something at a rate loses the same at every higher one. The two items of an alignment row are drawn each by
    itself.

    Args:
        modality: title, image, or either: one of the two.
        rate: 0 to 1.
    """

    def __init__(self, samples: Samples, modality: str, rate: float, seed: int) -> None:
        self.samples, self.modality, self.rate, self.seed = samples, modality, rate, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        return dataclasses.replace(
            self.samples[index],
            hidden=self._hidden(index, "missing"),
            other_hidden=self._hidden(index, "missing.other"),
        )

    def _hidden(self, index: int, purpose: str) -> frozenset[str]:
        chance, which = sample_rng(self.seed, 0, index, purpose).random(2)
        if chance >= self.rate:
            return frozenset()
        one_of_two = "title" if which < 0.5 else "image"
        return frozenset({one_of_two if self.modality == "either" else self.modality})
