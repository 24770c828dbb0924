"""Catalogue → batches: which sample of which of several catalogues comes when.

Positions are cut into periods of 10,000 slots. Each source, the samples of one catalogue, has the slots of its weight,
spread evenly over the period, so that ANY 10,000 positions in a row hold exactly so many samples of each. The slots of
a source, counted through all periods, are the positions of its own order with its own epochs: which sample comes at a
global position is a function of that position alone, as with one catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mbsd.catalog.several import Catalogs, Items
from mbsd.config.catalogs import PERIOD, slots_of
from mbsd.config.data import DataConfig
from mbsd.data.order import Int64, Order, derived_seed
from mbsd.data.samples import Chosen, Samples, first_items
from mbsd.errors import UserError


@dataclass(frozen=True)
class Source:
    """The samples of one catalogue: its name, its slots in a period, and the order of its own samples."""

    name: str
    slots: int
    order: Order


@dataclass(frozen=True)
class MixedOrder:
    """The order of training over several sources; samples are numbered source after source.

    An epoch of the mixture is as many positions as the sources have samples together. In it a source whose share of the
    slots is larger than its share of the samples is seen more than once.

    Attributes:
        sources: one or more; their slots make up the period.
    """

    sources: tuple[Source, ...]

    @property
    def num_samples(self) -> int:
        """Of all sources."""
        return int(self._starts[-1])

    def samples_at(self, positions: Int64) -> Int64:
        """The sample at each global position.

        Args:
            positions: int64, any shape, >= 0.

        Returns:
            int64 of the same shape, each in range(N).
        """
        places, own = self._own_positions(positions)
        samples = np.empty_like(own)
        for place, source in enumerate(self.sources):
            chosen = places == place
            samples[chosen] = self._starts[place] + source.order.samples_at(own[chosen])
        return samples

    def draws_at(self, positions: Int64) -> tuple[Int64, Int64]:
        """What the random numbers of the sample at each position are drawn from (`sample_rng`): epoch and position.

        The epoch is its source's own; positions in the epochs of different sources are numbered source after source, so
        that no two samples draw from the same.
        """
        places, own = self._own_positions(positions)
        sizes = np.array([source.order.num_samples for source in self.sources], dtype=np.int64)
        epochs, at = np.divmod(own, sizes[places])
        return epochs, self._starts[places] + at

    def sources_at(self, positions: Int64) -> Int64:
        """Which source comes at each position, counted from 0: int64 of the same shape."""
        return self._own_positions(positions)[0]

    def epochs_after(self, positions: int) -> dict[str, float]:
        """Name -> the epochs that a source has had in the first so many positions."""
        periods, slots = divmod(positions, PERIOD)
        begun = np.bincount(self._pattern[0][:slots], minlength=len(self.sources)).tolist()
        return {
            source.name: (periods * source.slots + more) / source.order.num_samples
            for source, more in zip(self.sources, begun, strict=True)
        }

    def identity(self) -> dict[str, Any]:
        """As JSON, what must be the same where a run resumes."""
        first = asdict(self.sources[0].order)
        each = [[source.order.num_samples, source.slots] for source in self.sources]
        return first | {"num_samples": self.num_samples, "sources": each}

    def _own_positions(self, positions: Int64) -> tuple[Int64, Int64]:
        """The source of each position, and the position in its own order."""
        periods, slots = np.divmod(np.asarray(positions, dtype=np.int64), PERIOD)
        of_slot, rank = self._pattern
        places = of_slot[slots]
        of_source = np.array([source.slots for source in self.sources], dtype=np.int64)
        return places, periods * of_source[places] + rank[slots]

    @cached_property
    def _starts(self) -> Int64:
        return np.cumsum([0, *(source.order.num_samples for source in self.sources)], dtype=np.int64)

    @cached_property
    def _pattern(self) -> tuple[Int64, Int64]:
        """Of each slot of a period: its source, and how many slots of that source come before it; int64 [PERIOD]."""
        slots = [source.slots for source in self.sources]
        assert sum(slots) == PERIOD, f"slots {slots}: expected {PERIOD} in all"
        # Where each slot would stand if a source had the whole period for itself: in the middle of its part.
        wanted = np.concatenate([(np.arange(count) + 0.5) / count for count in slots])
        sources = np.repeat(np.arange(len(slots)), slots)
        of_slot = sources[np.lexsort((sources, wanted))]
        rank = np.empty(PERIOD, dtype=np.int64)
        for place, count in enumerate(slots):
            rank[of_slot == place] = np.arange(count)
        return of_slot, rank


AnyOrder = Order | MixedOrder


def order_of(samples: Samples, catalog: Items, data: DataConfig, seed: int) -> tuple[Samples, AnyOrder]:
    """The order of a run's training samples, and the samples as it numbers them.

    Args:
        samples: of the training split.
        catalog: what they are of; of several catalogues, a row of a table is of the one that its (first) item is in.
        data: with the catalogues' weights, blocks and windows.
        seed: of the run. Each source has one of its own, the first the run's.

    Raises:
        UserError: a catalogue has no training sample.
    """
    if not isinstance(catalog, Catalogs):
        return samples, Order(seed, len(samples), data.shuffle_block, data.shuffle_window)
    assert data.catalogs is not None, "several catalogues are those of data.catalogs"
    places, _ = catalog.members_of(first_items(samples))
    counts = np.bincount(places, minlength=len(catalog.names)).tolist()
    _refuse_empty(counts, catalog, data)
    if (np.diff(places) < 0).any():
        samples = Chosen(samples, np.argsort(places, kind="stable"))
    sources = [
        Source(name, slots, Order(derived_seed(seed, place), counts[place], data.shuffle_block, data.shuffle_window))
        for place, (name, slots) in enumerate(zip(catalog.names, slots_of(data.catalogs), strict=True))
    ]
    return samples, MixedOrder(tuple(sources))


def _refuse_empty(counts: Sequence[int], catalog: Catalogs, data: DataConfig) -> None:
    for name, count, one in zip(catalog.names, counts, catalog.members, strict=True):
        if not count:
            where = f"table {data.table} has no training row of it" if data.table else "it has no item to train on"
            raise UserError(
                f"data.catalogs: {name!r} ({one.path}) has a weight, and {where}; add some, or remove the catalogue"
            )
