"""The similarities of anchors and candidates, some rows at a time, in buffers that are made once.

Nothing here waits for the device: which pairs count is never asked, it is written into the numbers. A pair that does
not count has the logit `NOTHING`, whose exponential and sigmoid are exactly 0. Letters as in contrastive.py: N rows of
the global batch, n of them this rank's own, R rows of a block, E numbers of a vector, K keys of an item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mbsd.batch import NO_KEY

NOTHING = -1e30  # not -inf, which times 0 is no number
WIDE = 4096  # candidates of a block of `chunk` rows; against more of them a block has fewer rows


@dataclass(frozen=True)
class Block:
    """Some anchors against all candidates.

    Attributes:
        rows: which of the N rows the R anchors are.
        logits_RN: `NOTHING` where a pair does not count.
        same_RN: bool, which pairs that count are one product, but for a row with itself; None: there are none.
        spare_RN: room for as many numbers.
    """

    rows: slice
    logits_RN: Tensor
    same_RN: Tensor | None
    spare_RN: Tensor

    def with_itself(self, x_RN: Tensor) -> Tensor:
        """View [R] of each anchor's number with the candidate of the same row."""
        return x_RN[:, self.rows].diagonal()

    def of_other_products(self) -> Tensor:
        """In the spare room: the logits, `NOTHING` for those of the anchor's own product."""
        others_RN = self.spare_RN.copy_(self.logits_RN)
        self.with_itself(others_RN).fill_(NOTHING)
        return others_RN if self.same_RN is None else others_RN.masked_fill_(self.same_RN, NOTHING)


@dataclass(frozen=True)
class Similarities:
    """One direction: this rank's anchors of one modality against all candidates of the other.

    A logit is scale * anchor . candidate + bias; a pair counts where both vectors are of something.

    Attributes:
        anchor_nE, candidate_NE: unit vectors, without graph.
        has_anchor_n, has_candidate_N: bool; which are of something.
        numbers_KN: `key_numbers`; K may be 0.
        own: first and one past the last row of the anchors.
        scale, bias: [1].
        leave_out_same: pairs of one product do not count, but for a row with itself.
    """

    anchor_nE: Tensor
    candidate_NE: Tensor
    has_anchor_n: Tensor
    has_candidate_N: Tensor
    numbers_KN: Tensor
    own: tuple[int, int]
    scale: Tensor
    bias: Tensor | None
    leave_out_same: bool

    @property
    def is_whole(self) -> bool:
        """Whether the anchors are all rows: then the columns are the anchors of the other direction."""
        return self.own == (0, self.candidate_NE.shape[0])

    def among_own(self, rows: slice) -> slice:
        """Where these of the N rows are among the n anchors."""
        return slice(rows.start - self.own[0], rows.stop - self.own[0])

    def both(self, rows: slice) -> Tensor:
        """[R] bool: which of the rows have both modalities."""
        return self.has_anchor_n[self.among_own(rows)] & self.has_candidate_N[rows]

    def rows_at_once(self, chunk: int) -> int:
        """R: `chunk` rows at most, and no more numbers than `chunk` rows against `WIDE` candidates have.

        So the memory of a block does not grow with the global batch.
        """
        return min(len(self.anchor_nE), chunk, max(1, chunk * WIDE // len(self.candidate_NE)))

    def spare_room(self, chunk: int) -> Tensor:
        """What `blocks` needs; directions that take turns may share it."""
        return self.anchor_nE.new_empty(self.rows_at_once(chunk), len(self.candidate_NE))

    def blocks(self, chunk: int, spare: Tensor) -> Iterator[Block]:
        """Blocks of `rows_at_once` rows; each is overwritten by the next."""
        start, end = self.own
        room = torch.empty_like(spare)
        flags = room.new_empty(min(2, len(self.numbers_KN)), *room.shape, dtype=torch.bool)
        of_anchor_n = spare.new_zeros(len(self.anchor_nE)).masked_fill_(~self.has_anchor_n, NOTHING)
        of_candidate_N = spare.new_zeros(len(self.candidate_NE))
        if self.bias is not None:
            of_candidate_N += self.bias
        of_candidate_N.masked_fill_(~self.has_candidate_N, NOTHING)
        step = self.rows_at_once(chunk)
        for first in range(start, end, step):
            rows = slice(first, min(first + step, end))
            size, own = rows.stop - rows.start, self.among_own(rows)
            logits_RN = torch.add(of_anchor_n[own, None], of_candidate_N, out=room[:size])
            logits_RN.addmm_(self.anchor_nE[own] * self.scale, self.candidate_NE.T)
            same_RN = self._same(rows, flags[:, :size])
            if self.leave_out_same and same_RN is not None:
                logits_RN.masked_fill_(same_RN, NOTHING)
                same_RN = None
            yield Block(rows, logits_RN, same_RN, spare[:size])

    def _same(self, rows: slice, flags: Tensor) -> Tensor | None:
        """`Block.same_RN`, written to the first of flags [min(K, 2), R, N]."""
        if not len(flags):
            return None
        has_anchor_R = self.has_anchor_n[self.among_own(rows)]
        for k, number_N in enumerate(self.numbers_KN):
            # -1 and -2 equal nothing: an anchor and a candidate that are none, or have no key.
            anchor_R = torch.where(has_anchor_R, number_N[rows], -1)
            candidate_N = torch.where(self.has_candidate_N & (number_N >= 0), number_N, -2)
            torch.eq(anchor_R[:, None], candidate_N, out=flags[min(k, 1)])
            if k:
                flags[0].logical_or_(flags[1])
        flags[0][:, rows].fill_diagonal_(False)
        return flags[0]


def key_numbers(keys_NK: Tensor) -> Tensor:
    """[K, N] int32: equal where keys of one kind are equal; -1: none. Half the bytes to compare."""
    keys_KN = keys_NK.T.contiguous()
    if not len(keys_KN):
        return keys_KN.to(torch.int32)
    numbers_KN = torch.searchsorted(keys_KN.sort(1).values, keys_KN, out_int32=True)
    return torch.where(keys_KN == NO_KEY, -1, numbers_KN)
