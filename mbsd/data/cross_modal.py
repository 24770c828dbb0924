"""Catalogue → batches: what title and picture are asked of each other, as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mbsd.batch import CrossModal
from mbsd.data.views import TextTokens

Int64 = npt.NDArray[np.int64]


def cross_modal_of(
    texts: Sequence[TextTokens],
    has_image: Sequence[bool],
    image_numbers: Sequence[int],
    is_special: npt.NDArray[np.bool_],
) -> CrossModal:
    """What the B samples are asked that show a word of a title and a picture.

    Args:
        texts: `[CLS] title [SEP]`, nothing masked.
        has_image, image_numbers: of the samples, as `mbsd.data.views.pack` takes them.
        is_special: bool [vocabulary]; words that no title is asked for.
    """
    words_B = [np.unique(text.input_ids[~is_special[text.input_ids]]) for text in texts]
    asked_B = np.array([len(words) > 0 and image for words, image in zip(words_B, has_image, strict=True)], dtype=bool)
    counts_B = np.array([len(words) for words in words_B], dtype=np.int64) * asked_B
    asked_words = [words for words, asked in zip(words_B, asked_B, strict=True) if asked]
    title_U = np.repeat(np.arange(len(texts)), counts_B)
    return CrossModal(
        words_U=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *asked_words])),
        title_U=torch.from_numpy(title_U),
        share_U=torch.from_numpy((1 / counts_B[title_U]).astype(np.float32)),
        picture_B=torch.tensor(image_numbers, dtype=torch.int64),
        asked_B=torch.from_numpy(asked_B.astype(np.float32)),
        num_asked=int(asked_B.sum()),
    )


def fill_cross_modal(asked: CrossModal, bucket: int) -> CrossModal:
    """The same with its words filled up to a multiple of `bucket`, by words of which nothing counts."""
    more = -asked.words_U.shape[0] % bucket
    return dataclasses.replace(
        asked,
        words_U=F.pad(asked.words_U, (0, more)),
        title_U=F.pad(asked.title_U, (0, more)),
        share_U=F.pad(asked.share_U, (0, more)),
    )
