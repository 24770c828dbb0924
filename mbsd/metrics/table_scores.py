"""Scores of a whole table from all ranks, in the table's order, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbsd.batch import Batch
from mbsd.parallel.world import gather_objects


@dataclass
class Scores:
    """One rank's scores while they are collected: its samples are rows rank, rank + world size, … of the table."""

    views: tuple[str, ...] = ()
    logits: list[NDArray[np.floating[Any]]] = field(default_factory=list)
    labels: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, batch: Batch, logits_VB: Tensor) -> None:
        """The logits of one more micro-batch: [V, B], or [V, B, C] of C classes (or numbers of a vector)."""
        assert batch.labels_B is not None
        self.views = batch.views.names
        self.logits.append((logits_VB.double() if logits_VB.ndim == 2 else logits_VB.float()).cpu().numpy())
        self.labels.append(batch.labels_B.long().cpu().numpy())


@dataclass(frozen=True)
class TableScores:
    """Logits [V, n] (or [V, n, C]) and labels [n] of all n samples in the table's order, and sums over all ranks."""

    views: tuple[str, ...]
    logits: NDArray[np.floating[Any]]
    labels: NDArray[np.int64]
    totals: dict[str, float]

    def probabilities(self) -> dict[str, NDArray[np.float64]]:
        """View -> the n probabilities of 1."""
        return dict(zip(self.views, torch.from_numpy(self.logits).sigmoid().numpy(), strict=True))


def gather_scores(mine: Scores, totals: Mapping[str, float], positions: NDArray[np.int64] | None = None) -> TableScores:
    """Put all ranks' scores together on every rank (collective). A rank may have none: more ranks than samples.

    Args:
        totals: to be summed over the ranks.
        positions: of this rank's samples in the whole; None: rank, rank + world size, …
    """
    joined = (
        (mine.views, np.concatenate(mine.logits, axis=1), np.concatenate(mine.labels), dict(totals), positions)
        if mine.logits
        else None
    )
    parts = gather_objects(joined)
    filled = [part for part in parts if part is not None]
    assert filled, "no rank had a sample; an empty table is refused before"
    views, count = filled[0][0], sum(part[2].shape[0] for part in filled)
    first: NDArray[np.floating[Any]] = filled[0][1]
    logits = np.empty((len(views), count, *first.shape[2:]), dtype=first.dtype)
    labels = np.empty(count, dtype=np.int64)
    for rank, part in enumerate(parts):
        if part is not None:
            at = slice(rank, None, len(parts)) if part[4] is None else part[4]
            logits[:, at], labels[at] = part[1], part[2]
    sums = {name: sum(part[3][name] for part in filled) for name in filled[0][3]}
    return TableScores(views, logits, labels, sums)


@torch.no_grad()
def score(model: Callable[[Batch], Tensor], batches: Iterable[Batch], positions: NDArray[np.int64]) -> TableScores:
    """Score every sample of every rank's batches (collective).

    Args:
        model: gives what `Scores.add` takes.
        batches: on the model's device.
        positions: of this rank's samples in the whole.
    """
    mine = Scores()
    for batch in batches:
        mine.add(batch, model(batch))
    return gather_scores(mine, {}, positions)


def whole_batches(num_samples: int, micro_batch: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """This rank's samples: micro-batches rank, rank + world size, … of all.

    A sample then stands beside the same others on any number of ranks, and its score is the same to the last bit: sums
    of other lengths round otherwise, and where many scores nearly tie a metric of ranks would show it.
    """
    samples = np.arange(num_samples, dtype=np.int64)
    mine: NDArray[np.int64] = samples[samples // micro_batch % world_size == rank]
    return mine
