"""How many samples each step of a run has: all the same, or fewer at the beginning (`contrastive.batch_schedule`).

A plan goes by the global position alone: which batch a step has follows from how many samples came before it. So it is
the same on every number of ranks, and a resumed run needs to know nothing but where it stands. A larger batch has more
micro-steps of the same size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from mbsd.config.deepspeed import BatchSizes
from mbsd.errors import UserError

BatchSchedule = Sequence[tuple[float, int]]


@dataclass(frozen=True)
class Place:
    """Of a micro-batch: the global position at which its step begins, its number in the step, the step's sizes."""

    position: int
    micro_step: int
    sizes: BatchSizes


@dataclass(frozen=True)
class BatchPlan:
    """The batch of each step.

    Attributes:
        phases: (position, sizes), rising: steps that begin there or later have these sizes, up to the next phase. The
            first begins at 0.
    """

    phases: tuple[tuple[int, BatchSizes], ...]

    @classmethod
    def constant(cls, sizes: BatchSizes) -> BatchPlan:
        """Every step has these sizes."""
        return cls(((0, sizes),))

    @property
    def changes(self) -> bool:
        """Whether steps have several sizes."""
        return len(self.phases) > 1

    @property
    def identity(self) -> int | list[list[int]]:
        """As JSON, what must be the same on resume: the global batch, or from which position on which."""
        if not self.changes:
            return self.phases[0][1].global_batch
        return [[position, sizes.global_batch] for position, sizes in self.phases]

    @property
    def most_micro_steps(self) -> int:
        """Of any step."""
        return max(sizes.accumulation for _, sizes in self.phases)

    def place(self, first: int, number: int) -> Place:
        """Of micro-batch `number` (from 0) of a rank, counted from the step that begins at position `first`."""
        for position, sizes, steps in self._runs(first):
            step, micro_step = divmod(number, sizes.accumulation)
            if steps is None or step < steps:
                return Place(position + step * sizes.global_batch, micro_step, sizes)
            number -= steps * sizes.accumulation
        raise AssertionError("the last phase has no end")

    def samples_after(self, steps: int) -> int:
        """How many samples the first `steps` steps have."""
        for position, sizes, available in self._runs(0):
            if available is None or steps <= available:
                return position + steps * sizes.global_batch
            steps -= available
        raise AssertionError("the last phase has no end")

    def steps_for(self, samples: float) -> int:
        """How many steps it takes to see so many samples."""
        done = 0
        for position, sizes, available in self._runs(0):
            missing = max(0, math.ceil((samples - position) / sizes.global_batch))
            if available is None or missing <= available:
                return done + missing
            done += available
        raise AssertionError("the last phase has no end")

    def _runs(self, first: int) -> list[tuple[int, BatchSizes, int | None]]:
        """From position `first` on: where steps of the same sizes begin, and how many follow; None: without end."""
        found: list[tuple[int, BatchSizes, int | None]] = []
        ends = [position for position, _ in self.phases[1:]]
        for (_, sizes), end in itertools.zip_longest(self.phases, ends):
            if end is None:
                found.append((first, sizes, None))
            elif first < end:
                steps = -(-(end - first) // sizes.global_batch)
                found.append((first, sizes, steps))
                first += steps * sizes.global_batch
        return found


def plan_batches(
    schedule: BatchSchedule | None, last: BatchSizes, world_size: int, *, samples: float | None, steps: int | None
) -> BatchPlan:
    """The plan of a run.

    Args:
        schedule: (share of the run's samples, global batch); None: every step is as `last`.
        last: of DeepSpeed's JSON.
        samples, steps: of the whole run, one of them: what is not given follows.

    Raises:
        UserError: a batch that the ranks cannot share, or the last one is not that of DeepSpeed's JSON.
    """
    if schedule is None:
        return BatchPlan.constant(last)
    name = "contrastive.batch_schedule"
    if schedule[-1][1] != last.global_batch:
        raise UserError(
            f"{name}: its last batch is {schedule[-1][1]}, but train_batch_size={last.global_batch} in DeepSpeed's "
            "JSON; set both to the same"
        )
    sizes = []
    for _, batch in schedule:
        accumulation, rest = divmod(batch, last.micro_batch * world_size)
        if rest or not accumulation:
            raise UserError(
                f"{name}: a batch of {batch} is no multiple of train_micro_batch_size_per_gpu={last.micro_batch} x "
                f"{world_size} ranks; choose multiples of {last.micro_batch * world_size}"
            )
        sizes.append(BatchSizes(batch, last.micro_batch, accumulation))
    # In fractions: the same positions on every machine.
    shares = [Fraction(share) for share, _ in schedule]
    if samples is None:
        assert steps is not None, "a run has steps or samples"
        lengths = (end - share for share, end in itertools.pairwise([*shares, Fraction(1)]))
        whole = steps / sum(length / size.global_batch for length, size in zip(lengths, sizes, strict=True))
    else:
        whole = Fraction(samples)
    return BatchPlan(tuple((round(share * whole), size) for share, size in zip(shares, sizes, strict=True)))
