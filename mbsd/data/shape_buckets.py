"""Catalogue → batches: micro-batches filled up to few sizes, so that compiled code and CUDA graphs see few shapes.

What is filled in reaches no loss: rows of text that only a trailing sequence of its own shows, black pictures that no
sequence shows, masked words and patches that ask for nothing. Without dropout a filled batch has the same losses and
gradients as before.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_PATCH, NO_WORD, Batch, Masks, Views
from mbsd.data.cross_modal import fill_cross_modal
from mbsd.data.puzzles import fill_puzzles

WORDS_SHARE = 8  # masked words are filled up to a multiple of the bucket's eighth: about one in seven tokens is masked


def fill_up(
    batch: Batch,
    bucket: int,
    *,
    num_images: int,
    fill_images: int,
    patches_per_image: int,
    masked_per_image: int | None = None,
) -> Batch:
    """`batch` with its text rows and packed tokens filled up to multiples of `bucket`, its masks for more images.

    Args:
        batch: as `mbsd.data.batch_builder` makes it, on the CPU; its pixels are left to `black_images`.
        bucket: tokens.
        num_images: I.
        fill_images: pictures that follow them.
        patches_per_image: P, without the image [CLS].
        masked_per_image: patches that are asked for of an image that any are of; None: each has as many here.
    """
    rows = batch.input_ids_N.shape[0]
    more_rows = -rows % bucket
    masks = batch.masks
    if masks is not None:
        masks = _fill_masks(masks, bucket)
        if masks.patch_source is not None:
            more = 0  # without an image that number is unknown
            if num_images:
                asked = masks.num_patches
                each = asked // num_images if masked_per_image is None else masked_per_image
                more = each * (num_images + fill_images) - asked
            masks = _fill_patches(masks, num_images * patches_per_image, fill_images * patches_per_image, more)
    return dataclasses.replace(
        batch,
        input_ids_N=F.pad(batch.input_ids_N, (0, more_rows)),
        position_ids_N=F.pad(batch.position_ids_N, (0, more_rows)),
        token_type_ids_N=F.pad(batch.token_type_ids_N, (0, more_rows)),
        views=_fill_views(batch.views, bucket, rows, more_rows),
        masks=masks,
        puzzles=None if batch.puzzles is None else fill_puzzles(batch.puzzles, fill_images),
        cross_modal=None if batch.cross_modal is None else fill_cross_modal(batch.cross_modal, bucket),
    )


def black_images(images: Tensor, count: int) -> Tensor:
    """The images [I, 3, h, w] with black ones behind them, `count` in all."""
    return torch.cat([images, images.new_zeros(count - images.shape[0], *images.shape[1:])])


def _fill_views(views: Views, bucket: int, rows: int, more_rows: int) -> Views:
    """One more sequence, of 1 to `bucket` tokens, which shows the first row of text again and again."""
    tokens = views.source_T.shape[0]
    fill = bucket - tokens % bucket
    source_T = torch.where(views.source_T >= rows, views.source_T + more_rows, views.source_T)
    return Views(
        views.names,
        F.pad(source_T, (0, fill)),
        torch.cat([views.cu_seqlens, torch.tensor([tokens + fill], dtype=views.cu_seqlens.dtype)]),
        (*views.lengths, fill),
        num_fill=1,
        image_lengths=views.image_lengths,
    )


def _fill_masks(masks: Masks, bucket: int) -> Masks:
    more_words = -masks.mlm_index_K.shape[0] % max(1, bucket // WORDS_SHARE)
    return dataclasses.replace(
        masks,
        mlm_index_K=F.pad(masks.mlm_index_K, (0, more_words)),
        mlm_labels_K=F.pad(masks.mlm_labels_K, (0, more_words), value=NO_WORD),
        num_fill_words=more_words,
    )


def _fill_patches(masks: Masks, all_patches: int, more_patches: int, more_masked: int) -> Masks:
    assert masks.patch_source is not None
    # The mask vector stands behind the last patch: it moves on by those that are filled in, which stay as they are.
    moved = torch.where(masks.patch_source == all_patches, all_patches + more_patches, masks.patch_source)
    return dataclasses.replace(
        masks,
        patch_source=torch.cat([moved, torch.arange(all_patches, all_patches + more_patches)]),
        mpm_index_Q=F.pad(masks.mpm_index_Q, (0, more_masked)),
        mpm_patch_Q=F.pad(masks.mpm_patch_Q, (0, more_masked), value=NO_PATCH),
        num_fill_patches=more_masked,
    )
