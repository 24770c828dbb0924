"""Scores of a whole table from all ranks, in the table's order, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mbsd.batch import Batch
from mbsd.distributed import gather_objects


@dataclass
class Scores:
    """One rank's scores while they are collected: its samples are rows rank, rank + world size, … of the table."""

    views: tuple[str, ...] = ()
    logits: list[NDArray[np.float64]] = field(default_factory=list)
    labels: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, batch: Batch, logits_VB: Tensor) -> None:
        """The logits of one more micro-batch."""
        assert batch.labels_B is not None
        self.views = batch.views.names
        self.logits.append(logits_VB.double().cpu().numpy())
        self.labels.append(batch.labels_B.long().cpu().numpy())


@dataclass(frozen=True)
class TableScores:
    """Logits [V, n] and labels [n] of all n samples in the table's order, and sums over all ranks."""

    views: tuple[str, ...]
    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    totals: dict[str, float]

    def probabilities(self) -> dict[str, NDArray[np.float64]]:
        """View -> the n probabilities of 1."""
        return dict(zip(self.views, torch.from_numpy(self.logits).sigmoid().numpy(), strict=True))


def gather_scores(mine: Scores, totals: Mapping[str, float]) -> TableScores:
    """Put all ranks' scores together on every rank (collective). A rank may have none: more ranks than samples."""
    joined = (
        (mine.views, np.concatenate(mine.logits, axis=1), np.concatenate(mine.labels), dict(totals))
        if mine.logits
        else None
    )
    parts = gather_objects(joined)
    filled = [part for part in parts if part is not None]
    assert filled, "no rank had a sample; an empty table is refused before"
    views, count = filled[0][0], sum(part[2].shape[0] for part in filled)
    logits, labels = np.empty((len(views), count)), np.empty(count, dtype=np.int64)
    for rank, part in enumerate(parts):
        if part is not None:
            logits[:, rank :: len(parts)], labels[rank :: len(parts)] = part[1], part[2]
    sums = {name: sum(part[3][name] for part in filled) for name in filled[0][3]}
    return TableScores(views, logits, labels, sums)


@torch.no_grad()
def score(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> TableScores:
    """Score every sample of every rank's batches (collective)."""
    mine = Scores()
    for batch in batches:
        batch = batch.to(device)
        mine.add(batch, model(batch).logits)
    return gather_scores(mine, {})
