"""Catalogue → batches: pictures whose bytes on disk are not those that were written, counted and named.

One bad sector must not end a night's run: such a picture is left out, which is a legal input, its item is shown by its
title, and a line names shard and item. A disk that rots must end it: above a share of those read, all ranks stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mbsd.errors import UserError
from mbsd.parallel.world import gather_objects

NAMED = 20  # pictures that each rank names; further ones are counted
AT_LEAST = 10_000  # pictures: the share is of these until so many have been read


class DamagedPictures:
    """What this rank has read, and what of it was damaged.

    Args:
        limit: the largest share of the pictures read, over all ranks, that may be damaged.
        say: prints a line.

    Attributes:
        read: pictures of this rank, damaged ones included.
        damaged: of these; a picture that is read again in the next epoch counts again.
    """

    def __init__(self, limit: float, say: Callable[[str], None]) -> None:
        self.limit, self._say = limit, say
        self.read = self.damaged = 0

    def count(self, read: int, damaged: Sequence[str]) -> None:
        """Take in a micro-batch: pictures it asked for, and a line for each that was damaged."""
        self.read += read
        for what in damaged:
            self.damaged += 1
            if self.damaged <= NAMED:
                last = "; further ones are only counted" if self.damaged == NAMED else ""
                self._say(f"WARNING: {what}; shown without its picture, {self.damaged} so far on this rank{last}")

    def check(self) -> int:
        """The number of damaged pictures of all ranks (collective).

        Raises:
            UserError: on every rank, where they are more than `limit` of all that were read.
        """
        counts = gather_objects((self.read, self.damaged))
        read, damaged = sum(count[0] for count in counts), sum(count[1] for count in counts)
        if damaged > self.limit * max(read, AT_LEAST):
            worst = max(range(len(counts)), key=lambda rank: counts[rank][1])
            raise UserError(
                f"{damaged} of {read} pictures read are damaged on disk (most of them on rank {worst}), above "
                f"data.max_corrupt={self.limit:g}; restore the shards named above or build the catalogue again",
                shared=True,
            )
        return damaged
