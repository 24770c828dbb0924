"""A few held-out samples to look at, the same at every validation: rebuilt pictures, product cards, vectors.

Rank 0 alone makes them, in eval mode and from no random number: a run with them is bitwise a run without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mbsd.batch import Batch
from mbsd.catalog.reader import Catalog
from mbsd.data.loader import BatchBuilder, Sample, Samples
from mbsd.metrics.board import Board
from mbsd.metrics.pictures import Card, cards_table, draw_card, grid
from mbsd.model.heads import MbsdForAlignment, MbsdForMaskedModelling
from mbsd.model.patchify import denormalise_pixels, normalise_pixels, patches_to_pixels, pixels_of_patches
from mbsd.stages.stage import MaskedStep

NUM_CARDS, NUM_REBUILT = 8, 6
NUM_VECTORS, THUMBNAIL = 256, 48  # TensorBoard's browser page holds all of them at once
AT_ONCE = 32


@dataclass(frozen=True)
class Showcase:
    """Where the samples come from.

    Attributes:
        samples: held out; a few, evenly spread over them, are shown.
        build: samples, their positions and epochs -> Batch, as validation builds it.
        limit: samples at most (run.validate_samples).
        device: of the model.
    """

    samples: Samples
    builder: BatchBuilder
    catalog: Catalog
    limit: int
    device: torch.device

    @torch.no_grad()
    def show(self, step_module: Any, board: Board, step: int, *, last: bool) -> None:
        """Write the pictures of `step`; at the last step the vectors too."""
        few = self.spread(NUM_CARDS)
        if isinstance(step_module, MaskedStep):
            with_image = [sample for sample in few if self.catalog.has_image(sample.item)]
            rebuilt = rebuild(step_module.model, self._batch(with_image[:NUM_REBUILT])) if with_image else []
            if rebuilt:  # none, where all of them are damaged
                board.picture(step, "masked_patches", grid(rebuilt))
        elif _answers_yes_or_no(step_module.model):
            cards = self.cards(step_module.model, few)
            for n, card in enumerate(cards):
                board.picture(step, f"cards/{n}", draw_card(card))
            board.text(step, "cards", cards_table(cards))
        if last:
            self._show_vectors(step_module, board, step)

    def spread(self, most: int) -> list[Sample]:
        """At most so many samples: neighbours in a table are pairs of one item."""
        count = min(most, self.limit, len(self.samples))
        return [self.samples[n * len(self.samples) // count] for n in range(count)]

    def cards(self, model: Any, samples: list[Sample]) -> list[Card]:
        """What `model` says of the samples, each view by itself."""
        batch = self._batch(samples)
        probabilities_VB = torch.sigmoid(model(batch).logits.double()).cpu().numpy()
        pictures, with_image = iter(batch.images.permute(0, 2, 3, 1).cpu().numpy()), batch.has_image.tolist()
        return [
            Card(
                query=sample.text or "",
                title=self.catalog.title(sample.item),
                label=int(sample.label or 0),
                picture=next(pictures) if with_image[b] else None,
                probabilities={view: float(probabilities_VB[v, b]) for v, view in enumerate(batch.views.names)},
            )
            for b, sample in enumerate(samples)
        ]

    def _batch(self, samples: list[Sample]) -> Batch:
        positions = np.arange(len(samples))
        return self.builder.build(samples, positions, np.zeros_like(positions)).to(self.device)

    def _show_vectors(self, step_module: Any, board: Board, step: int) -> None:
        # Of an alignment row the first item alone: what is shown is a vector an item.
        samples = [dataclasses.replace(sample, other=None) for sample in self.spread(NUM_VECTORS)]
        vectors, thumbnails, masked = [], [], isinstance(step_module, MaskedStep)
        for start in range(0, len(samples), AT_ONCE):
            part = samples[start : start + AT_ONCE]
            batch = self._batch(part)
            vectors.append(_vectors(step_module.model, batch, masked).float().cpu())
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
        board.vectors(step, "held_out", torch.cat(vectors), rows, header, torch.cat(thumbnails))


def _answers_yes_or_no(model: Any) -> bool:
    """Whether one logit a view and sample is what the model says: not of C classes, and of items, not of pairs."""
    return model.config.num_labels_out == 1 and not isinstance(model, MbsdForAlignment)


def rebuild(model: MbsdForMaskedModelling, batch: Batch) -> list[list[NDArray[np.uint8]]]:
    """Return for each image: as the model sees it (masked patches grey), as it rebuilds it, and as it is.

    Each uint8 [h, w, 3]; the rebuilt one keeps the patches that were not masked.
    """
    assert batch.masks is not None
    predicted = model(batch).patch_pixels
    side = model.config.patch_side
    pixels = normalise_pixels(batch.images, torch.float32)
    patches = pixels_of_patches(pixels, side)
    hidden, rebuilt = patches.clone(), patches.clone()
    hidden[batch.masks.mpm_patch_Q] = 0.0  # the mean of all pixels: grey
    rebuilt[batch.masks.mpm_patch_Q] = predicted.float()
    columns = [_as_bytes(patches_to_pixels(rows, side, batch.images.shape[-2:])) for rows in (hidden, rebuilt, patches)]
    return [list(row) for row in zip(*columns, strict=True)]


def _as_bytes(pixels: Tensor) -> Iterator[NDArray[np.uint8]]:
    images = (denormalise_pixels(pixels).clamp(0, 1) * 255).round().to(torch.uint8)
    return iter(images.permute(0, 2, 3, 1).cpu().numpy())


def _vectors(model: Any, batch: Batch, masked: bool) -> Tensor:
    """[B, D]: h of the full view (or of the first there is); in stage 1, which trains no h, the mean over tokens."""
    encoded = model.mbsd.encode(batch)
    if not masked:
        first = batch.views.names.index("full") if "full" in batch.views.names else 0
        return cast(Tensor, encoded.h_VBD[first])
    parts = torch.split(encoded.hidden_TD, list(batch.views.lengths))
    return torch.stack([part.mean(0) for part in parts])
