"""Items and texts -> vectors, encoded once by all ranks and held by rank 0, which measures them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mbsd.batch import Batch
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.damaged import DamagedPictures
from mbsd.data.inputs import Builders
from mbsd.data.loader import eval_batches
from mbsd.data.samples import Chosen, Sample, Samples
from mbsd.errors import UserError
from mbsd.metrics.table_scores import whole_batches
from mbsd.model.embedder import Embedder, shown_for
from mbsd.parallel.world import World, gather_objects
from mbsd.tasks.task import shortened
from mbsd.tasks.vector_task import Encode, Int64, ItemVectors

ROUND = 64  # micro-batches of each rank between two exchanges: what travels at once stays small


@dataclass(frozen=True)
class _Texts:
    """Texts as a catalogue of titles without pictures."""

    texts: Sequence[str]

    def title(self, item: int, /) -> str:
        return self.texts[item]

    def has_image(self, item: int, /) -> bool:
        return False

    def image(self, item: int, /) -> None:
        return None


def require_whole(texts: Sequence[str], builders: Builders) -> None:
    """Refuse texts that would be cut, and could become another one.

    Raises:
        UserError: naming the first.
    """
    room = builders.data.max_text_tokens - 2
    for text in texts:
        length = len(builders.tokenizer.tokenize(text))
        if length > room:
            raise UserError(
                f"the text {shortened(text)!r} has {length} tokens, and data.max_text_tokens="
                f"{builders.data.max_text_tokens} leaves room for {room}; raise it, or shorten the name or its template"
            )


@dataclass(frozen=True)
class VectorEncoder:
    """A model that encodes items on all ranks.

    Whole micro-batches are dealt out, so that a vector is the same to the last bit on any number of ranks.

    Attributes:
        embedder: on the rank's device.
        builders: of the catalogue.
        world: of this process.
        damaged: counts damaged pictures.
    """

    embedder: Embedder
    builders: Builders
    world: World
    damaged: DamagedPictures

    def items(self, samples: Samples, items: Int64, views: tuple[str, ...]) -> ItemVectors:
        """The vectors of these items (collective). All of them on rank 0; other ranks have none.

        Args:
            samples: one an item, in their order.
            items: int64, rising.
            views: some of text, image, mean and full.
        """
        return self._run(self.builders.build(shown_for(views), None, self.world), samples, items, views)

    def texts(self, texts: Sequence[str]) -> Encode:
        """An encoder of these texts, as the titles of items without a picture (collective; of use on rank 0)."""
        distinct = sorted(set(texts))
        of_items = self.builders.build(("text",), None, self.world)
        builder = BatchBuilder(_Texts(distinct), of_items.tokenizer, of_items.data, of_items.spec, of_items.decoder)
        samples = [Sample(number) for number in range(len(distinct))]
        found = (
            self._run(builder, samples, np.arange(len(distinct)), ("text",)).vectors.get("text") if distinct else None
        )
        number = {text: k for k, text in enumerate(distinct)}

        def encode(asked: Sequence[str]) -> Any:
            assert found is not None, "a task says first which texts it needs"
            return found[[number[text] for text in asked]]

        return encode

    def _run(self, builder: BatchBuilder, samples: Samples, items: Int64, views: tuple[str, ...]) -> ItemVectors:
        mine = whole_batches(len(items), self._micro_batch, self.world.rank, self.world.size)
        batches: Iterator[Batch] = iter(())
        if len(mine):
            chosen = Chosen(samples, mine)
            batches = eval_batches(chosen, builder, self.world.alone(), self._micro_batch, damaged=self.damaged)
        return self._gathered(batches, mine, items, views)

    @property
    def _micro_batch(self) -> int:
        return self.builders.max_batch

    @torch.inference_mode()
    def _gathered(
        self, batches: Iterator[Batch], positions: Int64, items: Int64, views: tuple[str, ...]
    ) -> ItemVectors:
        """Encode, a round after the other, and put all ranks' vectors together on rank 0."""
        vectors: dict[str, NDArray[np.float32]] = {}
        present = {view: np.zeros(len(items), dtype=bool) for view in views}
        of_all = -(-len(items) // self._micro_batch)
        taken = 0
        for _ in range(-(-of_all // (ROUND * self.world.size))):
            encoded = [self._encoded(batch, views) for batch in itertools.islice(batches, ROUND)]
            rows = sum(len(of_batch[views[0]][1]) for of_batch in encoded)
            joined = {
                view: tuple(np.concatenate([of_batch[view][part] for of_batch in encoded]) for part in (0, 1))
                for view in (views if encoded else ())
            }
            for at, of_rank in gather_objects((positions[taken : taken + rows], joined)):
                for view, (found, shown) in of_rank.items() if self.world.is_first else ():
                    if view not in vectors:
                        vectors[view] = np.zeros((len(items), found.shape[1]), dtype=np.float32)
                    vectors[view][at], present[view][at] = found, shown
            taken += rows
        return ItemVectors(items, vectors, present)

    def _encoded(self, batch: Batch, views: tuple[str, ...]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        found = self.embedder.of_views(batch, views)
        return {
            view: (
                F.normalize(of_view.vectors_BE.float(), dim=-1, eps=1e-6).cpu().numpy(),
                of_view.present_B.cpu().numpy(),
            )
            for view, of_view in found.items()
        }
