"""The contrastive stage's one sum over ranks: vectors of the whole global batch, its loss, and that loss's gradient.

Four collective calls a step, none of them in the backward: vectors; keys and flags; the statistics of rows; the shares
of the loss. Letters beside those of batch.py: W ranks, n rows of a rank, N = W * n of the global batch, E numbers of a
vector, K keys of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.batch import Batch
from mbsd.model.heads import EmbedsOutput
from mbsd.objectives.contrastive import Kept, Rows, Rule, loss_and_gradients, row_statistics, watched
from mbsd.parallel.world import gather_objects


@dataclass(frozen=True)
class Vectors:
    """What the loss reads of some rows, without graph: see `mbsd.objectives.contrastive.Rows`."""

    image_nE: Tensor
    text_nE: Tensor
    keys_nK: Tensor
    has_image_n: Tensor
    has_text_n: Tensor

    @classmethod
    def of(cls, output: EmbedsOutput, batch: Batch) -> Vectors:
        """Of one micro-batch."""
        assert batch.keys_BK is not None and batch.has_text is not None, "the contrastive stage asks for both"
        images, texts = output.image_embeds.detach(), output.text_embeds.detach()
        return cls(images, texts, batch.keys_BK, batch.has_image, batch.has_text)

    @classmethod
    def joined(cls, parts: Sequence[Vectors]) -> Vectors:
        """The rows of all parts, one after the other; of one part no copy."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat(column) for column in zip(*(part.columns for part in parts), strict=True)))

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The fields, in their order."""
        return self.image_nE, self.text_nE, self.keys_nK, self.has_image_n, self.has_text_n

    def alone(self) -> Rows:
        """These rows as the whole global batch."""
        flags = self.has_image_n, self.has_text_n
        return Rows(self.image_nE, self.text_nE, self.keys_nK, *flags, own=(0, len(self.image_nE)))

    def of_all_ranks(self, rank: int, num_ranks: int) -> Rows:
        """The rows of all ranks, of which each has as many (collective)."""
        num, width = self.image_nE.shape
        image_NE, text_NE = _gathered(torch.cat([self.image_nE, self.text_nE], 1), num_ranks).split(width, 1)
        flags_n2 = torch.stack([self.has_image_n, self.has_text_n], 1)
        codes = _gathered(torch.cat([self.keys_nK, flags_n2.long()], 1), num_ranks)
        keys_NK, has_image_N, has_text_N = codes[:, :-2], codes[:, -2] > 0, codes[:, -1] > 0
        first = rank * num
        return Rows(image_NE, text_NE, keys_NK, has_image_N, has_text_N, (first, first + num))


@dataclass(frozen=True)
class Solved:
    """The loss of the whole global batch.

    Attributes:
        image_nE, text_nE: its gradient with respect to this rank's vectors.
        log_scale, bias: [] its gradient with respect to the logarithm of the scale, and to the bias (softmax: 0).
        values: what is logged, each [] and the same on every rank.
    """

    image_nE: Tensor
    text_nE: Tensor
    log_scale: Tensor
    bias: Tensor
    values: dict[str, Tensor]


def solve(rows: Rows, scale: Tensor, bias: Tensor | None, rule: Rule) -> Solved:
    """The loss and its gradient (collective, unless all rows are this rank's own).

    Args:
        scale, bias: [1], as `loss_and_gradients` takes them.
    """
    whole = rows.own == (0, len(rows.image_NE))
    kept = Kept()
    statistics = row_statistics(rows, scale, rule, kept)
    if not whole:
        num_ranks = len(rows.image_NE) // statistics.shape[1]
        statistics = _gathered(statistics.transpose(0, 1), num_ranks).transpose(0, 1)
    found = loss_and_gradients(rows, statistics, scale, bias, rule, kept)
    shares = {**found.sums, **watched(rows)}
    sums = torch.stack(list(shares.values()))
    if not whole and not sums.is_meta:
        dist.all_reduce(sums)
    values = dict(zip(shares, sums.unbind(), strict=True))
    log_scale, bias_gradient, empty = (values.pop(name) for name in ("log_scale", "bias", "empty"))
    loss = (values["loss_image"] + values["loss_text"]) / 2
    values = {"loss": loss, **values, "temperature": scale.detach()[0], "empty_steps": empty}
    return Solved(found.image_nE, found.text_nE, log_scale, bias_gradient, values)


def in_order(mine: Sequence[Vectors], device: torch.device) -> Vectors:
    """All ranks' held-out rows in the order of the samples, on every rank (collective).

    Args:
        mine: this rank's batches, of samples rank, rank + W, rank + 2W and so on; none where it has no sample.
    """
    own = [column.cpu().numpy() for column in Vectors.joined(mine).columns] if mine else None
    parts = gather_objects(own)
    filled = [part for part in parts if part is not None]
    num = sum(len(part[0]) for part in filled)
    columns = [np.empty((num, *column.shape[1:]), dtype=column.dtype) for column in filled[0]]
    for rank, part in enumerate(parts):
        for column, of_rank in zip(columns, part or (), strict=part is not None):
            column[rank :: len(parts)] = of_rank
    return Vectors(*(torch.from_numpy(column).to(device) for column in columns))


def _gathered(rows_n: Tensor, num_ranks: int) -> Tensor:
    """[N, …]: the rows of all ranks, rank after rank; on the meta device, where a plan is made, their shape alone."""
    rows_N = rows_n.new_empty((num_ranks * len(rows_n), *rows_n.shape[1:]))
    rows_n = rows_n.contiguous()
    if not rows_n.is_meta:
        dist.all_gather_into_tensor(rows_N, rows_n)
    return rows_N
