"""Catalogue → batches: what stage 1 hides and asks for (MBSD Eq. 1 and 2), drawn from an explicit generator."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

MASKED, SWAPPED = 0.8, 0.9  # BERT's 80 / 10 / 10: masked below the first, exchanged below the second, else kept


@dataclass(frozen=True)
class Vocabulary:
    """What of a tokenizer masking asks for.

    Attributes:
        size: random words come from range(size) without special_ids.
        mask_id: of [MASK].
        special_ids: never put in as a random word.
    """

    size: int
    mask_id: int
    special_ids: Collection[int]


def mask_text(
    rng: np.random.Generator,
    input_ids: Int64,
    special_mask: npt.NDArray[np.bool_],
    vocabulary: Vocabulary,
    probability: float,
) -> tuple[Int64, Int64, Int64]:
    """Masked language modelling (Eq. 1): each token is chosen on its own; 80% [MASK], 10% a random word, 10% kept.

    Args:
        rng: of this sample.
        input_ids: int64 [L].
        special_mask: bool [L], True where a token is never chosen.
        vocabulary: whose words these are.
        probability: of being chosen.

    Returns:
        The corrupted ids, int64 [L]; the chosen positions, int64 [K]; their words before, int64 [K].
    """
    length = len(input_ids)
    # The number of draws does not depend on what is chosen.
    choice, action, word = rng.random((3, length))
    positions = np.flatnonzero((choice < probability) & ~special_mask)
    specials = sorted({i for i in vocabulary.special_ids if 0 <= i < vocabulary.size})
    words = (word[positions] * (vocabulary.size - len(specials))).astype(np.int64)
    for special in specials:  # ascending: step over each special word
        words += words >= special
    labels = input_ids[positions]
    corrupted = input_ids.copy()
    corrupted[positions] = np.select(
        [action[positions] < MASKED, action[positions] < SWAPPED], [np.int64(vocabulary.mask_id), words], labels
    )
    return corrupted, positions, labels


def num_masked(num_patches: int, probability: float) -> int:
    """Patches of each image that are asked for."""
    return round(probability * num_patches)


def mask_patches(
    rng: np.random.Generator, num_patches: int, probability: float, corruption: Literal["replace", "bert"]
) -> tuple[Int64, Int64]:
    """Masked patch modelling (Eq. 2) of one image: exactly round(probability * num_patches) patches are asked for.

    Args:
        rng: of this sample.
        num_patches: P, without the image [CLS].
        probability: share of the patches.
        corruption: replace: each becomes the mask vector; bert: 80% the mask vector, 10% another patch of the same
            image (so that a sample does not depend on its neighbours in the batch), 10% itself.

    Returns:
        The patches, int64 [Q] ascending; what each is replaced by, int64 [Q]: a patch of this image, or P for the mask
        vector.
    """
    positions = np.sort(rng.permutation(num_patches)[: num_masked(num_patches, probability)]).astype(np.int64)
    if corruption == "replace":
        return positions, np.full_like(positions, num_patches)
    action, other = rng.random((2, len(positions)))
    others = (other * (num_patches - 1)).astype(np.int64)
    others += others >= positions  # another one: step over itself
    if num_patches == 1:
        others = positions
    sources = np.select([action < MASKED, action < SWAPPED], [np.int64(num_patches), others], positions)
    return positions, sources
