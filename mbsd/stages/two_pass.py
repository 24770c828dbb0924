"""Two passes over the micro-batches of a step: the full batch's gradient with one micro-batch's memory.

The first pass encodes without graph and remembers the random state before each micro-batch; the second encodes each
again from that state, so that dropout draws the same masks, and its vectors are those of the first bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.errors import UserError
from mbsd.model.heads import EmbedsOutput
from mbsd.stages.global_batch import Solved, Vectors


@dataclass(frozen=True)
class RandomState:
    """What dropout draws from: torch's generator, and the device's on a GPU. Neither is read from the device."""

    cpu: Tensor
    gpu: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """The state of this moment."""
        gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), gpu, device)

    def restore(self) -> None:
        """Draw from here."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)


@dataclass(frozen=True)
class Share:
    """What the second pass knows of one micro-batch.

    Attributes:
        solved: of the global batch, with the gradient of this micro-batch's rows alone.
        first: their vectors in the first pass.
        start: the random state before them.
        end: the random state to leave behind: after the last micro-batch that of the end of the first pass.
        num_shares: ranks x micro-steps, whose mean the engine takes.
    """

    solved: Solved
    first: Vectors
    start: RandomState
    end: RandomState | None
    num_shares: int

    def require_same(self, second: EmbedsOutput) -> None:
        """Raise UserError, on every rank, where the second pass did not give the vectors of the first (collective)."""
        pairs = (self.first.text_nE, second.text_embeds), (self.first.image_nE, second.image_embeds)
        differences = torch.stack([_difference(once, again.detach()) for once, again in pairs]).max()
        dist.all_reduce(differences, op=dist.ReduceOp.MAX)
        if differences > 0:
            raise UserError(
                f"contrastive.check_passes: the second pass differs from the first by up to {float(differences):.3g} "
                "in a number of a vector; expected the same bits: something in the model draws or computes otherwise "
                "when it is run again",
                shared=True,
            )


def shares(solved: Solved, parts: Sequence[Vectors], states: Sequence[RandomState], num_ranks: int) -> list[Share]:
    """One for each micro-batch.

    Args:
        parts: the micro-batches' vectors in the first pass.
        states: before each of them, and after the last.
    """
    counts = [len(part.image_nE) for part in parts]
    gradients = zip(solved.image_nE.split(counts), solved.text_nE.split(counts), strict=True)
    ends = [None] * (len(parts) - 1) + [states[-1]]
    whole = num_ranks * len(parts)
    return [
        Share(Solved(image, text, solved.log_scale, solved.bias, solved.values), part, state, end, whole)
        for (image, text), part, state, end in zip(gradients, parts, states[:-1], ends, strict=True)
    ]


def _difference(once: Tensor, again: Tensor) -> Tensor:
    """The largest one, []; infinite where one is no number and the other is."""
    same = (once == again) | (once.isnan() & again.isnan())
    return torch.where(same, 0, (once - again).abs().nan_to_num(torch.inf)).max()
