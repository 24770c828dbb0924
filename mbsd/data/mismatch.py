"""Catalogue → batches: which samples are shown another item's picture, for image-text matching, or a crop of it.

Whether a sample is, and whose picture it is shown, follows from (seed, epoch, position) alone: neither ranks nor
workers change it. The other item is that of any sample of the same split, of several catalogues of all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mbsd.batch import NO_KEY
from mbsd.catalog.keys import ItemKeys, JointKeys
from mbsd.catalog.queries import normalise_query
from mbsd.data.order import sample_rng
from mbsd.data.samples import ItemSource, Sample, Samples

Int64 = npt.NDArray[np.int64]

TRIES = 32  # a sample that finds no other item in so many draws keeps its own picture


class Mismatch:
    """Shows some samples another item's picture: one of another product, with another title.

    A sample without a title or a picture keeps what it has: nobody can tell whether the two belong together. `crops`
    lends every picture a crop of another product's.

    Args:
        samples: of the split, from which the other items are drawn.
        source: of their titles and pictures.
        keys: the other item shares no key of these with the sample's own.
        share: probability of each sample; 0: all are left as they are.
        seed: of the run.
        crops: samples with a picture get `crop_of`.
    """

    def __init__(
        self,
        samples: Samples,
        source: ItemSource,
        keys: ItemKeys | JointKeys | None,
        share: float,
        seed: int,
        crops: bool = False,
    ) -> None:
        self.samples, self.source, self.keys = samples, source, keys
        self.share, self.seed, self.crops = share, seed, crops

    def of(self, samples: Sequence[Sample], positions: Int64, epochs: Int64) -> list[Sample]:
        """The samples, some of them with `picture_of`, and with `crop_of`.

        Args:
            positions, epochs: int64; of each of `samples`, as `BatchBuilder.prepare` takes them.
        """
        shown, keys = list(samples), list(zip(epochs.tolist(), positions.tolist(), strict=True))
        if self.share:
            rngs = [sample_rng(self.seed, *key, "mismatch") for key in keys]
            shown = [self._shown(sample, rng) for sample, rng in zip(shown, rngs, strict=True)]
        if self.crops:
            rngs = [sample_rng(self.seed, *key, "camouflage") for key in keys]
            shown = [self._lent(sample, rng) for sample, rng in zip(shown, rngs, strict=True)]
        return shown

    def _shown(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.share or sample.hidden or not self.source.has_image(sample.item):
            return sample
        title = normalise_query(self.source.title(sample.item))
        if not title:
            return sample
        return dataclasses.replace(sample, picture_of=self._other(sample.item, title, rng))

    def _lent(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "image" in sample.hidden or not self.source.has_image(sample.pictured):
            return sample
        title = normalise_query(self.source.title(sample.pictured))
        return dataclasses.replace(sample, crop_of=self._other(sample.pictured, title, rng))

    def _other(self, item: int, title: str, rng: np.random.Generator) -> int | None:
        """An item of another product, which has a picture; None: none was found."""
        for _ in range(TRIES):
            other = self.samples[int(rng.integers(len(self.samples)))].item
            if self.source.has_image(other) and not self._same(item, title, other):
                return other
        return None

    def _same(self, item: int, title: str, other: int) -> bool:
        """Whether two items are one product, as far as anybody knows."""
        if item == other or (title and normalise_query(self.source.title(other)) == title):
            return True
        if self.keys is None:
            return False
        own_K, other_K = self.keys.of(np.array([item, other], dtype=np.int64))
        return bool(((own_K == other_K) & (own_K != NO_KEY)).any())
