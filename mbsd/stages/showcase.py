"""A few held-out samples to look at, the same at every validation: for rebuilt pictures, product cards, vectors.

Rank 0 alone uses them, in eval mode and without any random number: a run with them is bitwise a run without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import Batch
from mbsd.catalog.several import Items
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.loader import one_batch
from mbsd.data.samples import Sample, Samples
from mbsd.metrics.board import Board

NUM_CARDS = 8
NUM_VECTORS, THUMBNAIL = 256, 48  # TensorBoard's browser page holds all of them at once
AT_ONCE = 32


@dataclass(frozen=True)
class HeldOut:
    """Where the samples come from.

    Attributes:
        samples: of the validation split; a few, evenly spread over them, are shown.
        builder: as validation has it.
        catalog: of the samples.
        limit: samples at most (run.validate_samples).
        device: of the model.
    """

    samples: Samples
    builder: BatchBuilder
    catalog: Items
    limit: int
    device: torch.device

    def spread(self, most: int) -> list[Sample]:
        """At most so many samples, evenly spread: neighbours in a table are pairs of one item."""
        count = min(most, self.limit, len(self.samples))
        return [self.samples[n * len(self.samples) // count] for n in range(count)]

    def with_image(self, most: int) -> list[Sample]:
        """Those of `NUM_CARDS` samples that have a picture, at most so many."""
        return [sample for sample in self.spread(NUM_CARDS) if self.catalog.has_image(sample.item)][:most]

    def batch(self, samples: list[Sample]) -> Batch:
        """A batch of these samples on the model's device, built as in validation."""
        return one_batch(self.builder, samples, self.device)

    def show_vectors(self, board: Board, step: int, vectors: Callable[[Batch], Tensor]) -> None:
        """Write vectors [B, D] of up to `NUM_VECTORS` samples, with their titles and thumbnails, for the projector."""
        # Of an alignment row the first item alone: a vector is of an item.
        samples = [dataclasses.replace(sample, other=None) for sample in self.spread(NUM_VECTORS)]
        found, thumbnails = [], []
        for start in range(0, len(samples), AT_ONCE):
            part = samples[start : start + AT_ONCE]
            batch = self.batch(part)
            found.append(vectors(batch).float().cpu())
            shown = torch.ones(len(part), 3, THUMBNAIL, THUMBNAIL)
            if len(batch.images):
                small = F.interpolate(batch.images.float().cpu() / 255, (THUMBNAIL, THUMBNAIL), mode="area")
                shown[batch.has_image.cpu()] = small
            thumbnails.append(shown)
        categories = self.catalog.table()["category"]
        rows = [
            (self.catalog.title(s.item), str(categories[s.item]), s.text or "", "" if s.label is None else str(s.label))
            for s in samples
        ]
        header = ("title", "category", "query", "label")
        board.vectors(step, "held_out", torch.cat(found), rows, header, torch.cat(thumbnails))
