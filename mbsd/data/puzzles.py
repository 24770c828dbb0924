"""Catalogue → batches: what Kaleido-BERT's pre-training does to the crops of a picture, drawn and not yet done.

Zhuge et al. 2021, section 3.4, a task at each scale: rotation recognition (1 x 1), jigsaw puzzle solving (2 x 2),
camouflage prediction (3 x 3), grey-to-colour (4 x 4) and blank-to-colour modelling (5 x 5). As in the authors' code all
five are done to every picture. Here are whole numbers alone; the device turns, exchanges and blanks by them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_CLASS, Puzzles
from mbsd.data.spec import PuzzleSpec

Int64 = npt.NDArray[np.int64]

ORDERS = tuple(itertools.permutations(range(4)))  # of four crops; their numbers are the classes


@dataclass(frozen=True)
class DrawnPuzzles:
    """Of one picture: quarter turns, number of the order, place of the other product's crop, and places [G] each."""

    rotation: int
    jigsaw: int
    camouflage: int
    grey: Int64
    blank: Int64


def draw_puzzles(rng: np.random.Generator, spec: PuzzleSpec) -> DrawnPuzzles:
    """Every answer is as probable as the others, that nothing was turned or moved among them.

    Args:
        rng: of this sample.
    """
    rotation, jigsaw, camouflage = (int(rng.integers(classes)) for classes in (4, len(ORDERS), 9))
    grey, blank = (np.sort(rng.permutation(n)[:count]) for n, count in ((16, spec.grey), (25, spec.blank)))
    return DrawnPuzzles(rotation, jigsaw, camouflage, grey.astype(np.int64), blank.astype(np.int64))


def puzzles_of(drawn: Sequence[DrawnPuzzles], first_I: Int64, lent: Sequence[bool]) -> Puzzles:
    """Those of I pictures, without `others`, which are still to be decoded (`lend`).

    Args:
        first_I: the packed row of each picture's first crop.
        lent: whether another product lends each picture a crop.
    """
    camouflage = [one.camouflage if other else NO_CLASS for one, other in zip(drawn, lent, strict=True)]
    return Puzzles(
        first_I=torch.from_numpy(first_I),
        rotation_I=_numbers([one.rotation for one in drawn]),
        order_I4=_numbers([ORDERS[one.jigsaw] for one in drawn]).view(-1, 4),
        jigsaw_I=_numbers([one.jigsaw for one in drawn]),
        camouflage_I=_numbers(camouflage),
        others=torch.zeros((0, 3, 1, 1), dtype=torch.uint8),
        grey_IG=_places([one.grey for one in drawn]),
        blank_IG=_places([one.blank for one in drawn]),
        num_camouflaged=sum(lent),
    )


def lend(puzzles: Puzzles, lenders: Tensor) -> Puzzles:
    """With `others`, of which `lenders` (uint8 [J, 3, h, w]) are those that lend a crop, in their order."""
    others = lenders.new_zeros(puzzles.first_I.shape[0], *lenders.shape[1:])
    others[puzzles.camouflage_I != NO_CLASS] = lenders
    return dataclasses.replace(puzzles, others=others)


def fill_puzzles(puzzles: Puzzles, more: int) -> Puzzles:
    """With so many trailing pictures that only fill up: nothing is asked of them. Their `others` are left to `lend`."""
    filled = {
        name: F.pad(getattr(puzzles, name), (0, 0) * (getattr(puzzles, name).ndim - 1) + (0, more))
        for name in ("first_I", "rotation_I", "order_I4", "jigsaw_I", "grey_IG", "blank_IG")
    }
    camouflage_I = F.pad(puzzles.camouflage_I, (0, more), value=NO_CLASS)
    others, lent = puzzles.others, puzzles.num_camouflaged
    return Puzzles(**filled, camouflage_I=camouflage_I, others=others, num_camouflaged=lent, num_fill=more)


def _numbers(values: Sequence[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _places(rows: Sequence[Int64]) -> Tensor:
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros((0, 1), dtype=torch.int64)
