"""Catalogue → batches: the masks of a micro-batch's samples as rows of its packed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbsd.batch import Masks, Views
from mbsd.data.views import TextTokens

Int64 = npt.NDArray[np.int64]

SHOW_WORDS, SHOW_PATCHES = ("full", "text"), ("full", "image")  # views


@dataclass(frozen=True)
class MaskedSample:
    """A sample's corrupted text with the chosen words and their labels, and its chosen patches with their sources.

    asked: whether they are asked for. Where a picture is another item's, title and picture tell nothing of each other;
    they are corrupted like all others, or a [MASK] would give away that the two belong together.
    """

    text: TextTokens
    words: Int64
    labels: Int64
    has_image: bool
    patches: Int64
    sources: Int64
    asked: bool = True


def first_showing(names: Sequence[str], showing: Sequence[str]) -> int | None:
    """Which of the views `names` is the first of those in `showing`; None: none of them."""
    return next((place for place, name in enumerate(names) if name in showing), None)


def masks_of(drawn: Sequence[MaskedSample], views: Views, patches_per_image: int | None) -> Masks:
    """The samples' own masks as rows of the first views that show words and patches.

    Args:
        drawn: of the B samples.
        views: their plan, without what only fills up.
        patches_per_image: P, without the image [CLS]; None: no patches are masked.
    """
    cu_S = views.cu_seqlens.numpy().astype(np.int64)
    mlm_index, mpm_index, mpm_patch = [], [], []
    if (view := first_showing(views.names, SHOW_WORDS)) is not None:
        starts_B = cu_S[view * len(drawn) : (view + 1) * len(drawn)]
        mlm_index = [start + sample.words for sample, start in zip(drawn, starts_B, strict=True) if sample.asked]
    patch_source = None
    if patches_per_image is not None:
        patches, num_images = patches_per_image, sum(sample.has_image for sample in drawn)
        patch_source = np.arange(num_images * patches, dtype=np.int64)
        view = first_showing(views.names, SHOW_PATCHES)
        assert view is not None, "patches are masked only where a view shows them"
        ends_B = cu_S[1:][view * len(drawn) : (view + 1) * len(drawn)]
        image = 0
        for sample, end in zip(drawn, ends_B, strict=True):
            if sample.has_image:
                rows = image * patches + sample.patches
                is_mask = sample.sources == patches
                patch_source[rows] = np.where(is_mask, num_images * patches, image * patches + sample.sources)
                if sample.asked:
                    mpm_index.append(end - patches + sample.patches)  # a sequence ends with its patches
                    mpm_patch.append(rows)
                image += 1
    return Masks(
        mlm_index_K=_joined(mlm_index),
        mlm_labels_K=_joined([sample.labels for sample in drawn if sample.asked]),
        patch_source=None if patch_source is None else torch.from_numpy(patch_source),
        mpm_index_Q=_joined(mpm_index),
        mpm_patch_Q=_joined(mpm_patch),
    )


def _joined(parts: list[Int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))
