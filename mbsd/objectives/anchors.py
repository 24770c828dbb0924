"""What each anchor finds among its candidates: Eq. (2), its positives, and whether the highest logit is of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbsd.objectives.similarities import Block, Similarities

NUM_STATISTICS = 4  # of an anchor: the last dimension of statistics
LOG_SUM, MASS, POSITIVE, RIGHT = range(NUM_STATISTICS)


@dataclass(frozen=True)
class Found:
    """By some anchors among some of their candidates, one number an anchor each.

    Attributes:
        highest, other: the highest logit, and the highest of other products.
        total: sum of exp(logit - highest).
        mass, positive: number of positives, and the sum of their logits.
    """

    highest: Tensor
    other: Tensor
    total: Tensor
    mass: Tensor
    positive: Tensor

    def joined(self, more: Found) -> Found:
        """With what the same anchors find among more candidates."""
        highest = torch.maximum(self.highest, more.highest)
        total = self.total * torch.exp(self.highest - highest) + more.total * torch.exp(more.highest - highest)
        other = torch.maximum(self.other, more.other)
        return Found(highest, other, total, self.mass + more.mass, self.positive + more.positive)

    def statistics(self) -> Tensor:
        """[anchors, 4], once all candidates have been seen."""
        right = (self.highest > self.other).to(self.highest.dtype)
        return torch.stack([self.highest + self.total.log(), self.mass, self.positive, right], 1)


class Anchors:
    """What the own rows of both directions find, collected from blocks: in a whole side its columns are anchors, too.

    Args:
        sides: both directions, or the first, if it is whole.
        shares: all pairs of one product are positives, not a row with itself alone.
        weighs: sums over logits are wanted, too; else only MASS and RIGHT are found.
    """

    def __init__(self, sides: Sequence[Similarities], *, shares: bool, weighs: bool = True) -> None:
        self._sides, self._shares, self._weighs = sides, shares, weighs
        self._of_rows: list[list[Tensor]] = [[] for _ in sides]
        self._of_columns: Found | None = None

    def see(self, d: int, block: Block) -> None:
        """A block of side d; its logits stay as they are."""
        side = self._sides[d]
        dims = (1, 0) if side.is_whole else (1,)
        of_rows, *of_columns = self._find(block, side.both(block.rows), dims)
        self._of_rows[d].append(of_rows.statistics())
        for found in of_columns:
            self._of_columns = found if self._of_columns is None else self._of_columns.joined(found)

    def statistics(self) -> Tensor:
        """[2, n, 4], once all blocks have been seen: the logarithm of the sum of exp(logit), MASS, POSITIVE, RIGHT."""
        found = [torch.cat(of_rows) for of_rows in self._of_rows]
        if self._of_columns is not None:
            found.append(self._of_columns.statistics())
        return torch.stack(found)

    def _find(self, block: Block, both_R: Tensor, dims: Sequence[int]) -> list[Found]:
        """By the block's rows (dim 1) and by its columns (dim 0). Each call on [R, N] is a pass over memory."""
        logits_RN, spare_RN = block.logits_RN, block.spare_RN
        highest = [logits_RN.amax(dim) for dim in dims]
        others_RN = block.of_other_products()
        other = [others_RN.amax(dim) for dim in dims]
        mass_R = both_R.to(logits_RN.dtype)
        mass = [_of_itself(mass_R, block, dim) for dim in dims]
        positive = [_of_itself(mass_R * block.with_itself(logits_RN), block, dim) for dim in dims]
        if self._shares and block.same_RN is not None:
            spare_RN.copy_(block.same_RN)
            mass = [some + spare_RN.sum(dim) for some, dim in zip(mass, dims, strict=True)]
            if self._weighs:
                spare_RN.mul_(logits_RN)
                positive = [some + spare_RN.sum(dim) for some, dim in zip(positive, dims, strict=True)]
        total = [torch.ones_like(top) for top in highest]
        if self._weighs:
            total = [
                torch.sub(logits_RN, top.unsqueeze(dim), out=spare_RN).exp_().sum(dim)
                for top, dim in zip(highest, dims, strict=True)
            ]
        return [Found(*each) for each in zip(highest, other, total, mass, positive, strict=True)]


def _of_itself(x_R: Tensor, block: Block, dim: int) -> Tensor:
    """What the pairs of a row with itself add, [R] for the block's rows or [N] for its columns."""
    if dim == 1:
        return x_R
    x_N = x_R.new_zeros(block.logits_RN.shape[1])
    x_N[block.rows] = x_R
    return x_N
