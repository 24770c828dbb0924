"""Hard negatives of image-text matching: each title beside the picture of the most similar other sample.

ALBEF (Li et al. 2021) draws negatives by the similarity of title and picture in a space that they share; here no loss
makes such a space, so that samples are compared, title with title and picture with picture. "In-batch" is the
micro-batch: N ranks with a micro-batch of m see what one rank sees in N micro-steps of m. All of it is index arithmetic
on the device, whose host waits for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_KEY, NO_MATCH, Batch, Views

SHOWN = ("full", "text", "image")  # the views of a batch that negatives are made of: trained on, and compared by


def negatives_of(batch: Batch) -> Tensor:
    """bool [B, B]: whose picture (the column's) may stand beside a title (the row's) as one of another product.

    Both samples have title and picture, are of two items and share no key.
    """
    assert batch.has_text is not None and batch.keys_BK is not None, "hard negatives are of batches with keys"
    complete_B = batch.has_text & batch.has_image
    keys_BK = batch.keys_BK
    same_BB = batch.items_B[:, None] == batch.items_B
    same_BB = same_BB | ((keys_BK[:, None] == keys_BK) & (keys_BK != NO_KEY)).any(-1)
    return complete_B[:, None] & complete_B & ~same_BB


def labels_of(batch: Batch) -> Tensor:
    """float32 [V, B]: what `Batch.labels_B` says; where it says nothing, of each sample with its own picture (1) and
    with a hard negative (0), `NO_MATCH` where it has no title, no picture or no negative."""
    if batch.labels_B is not None:
        return batch.labels_B[None]
    assert batch.has_text is not None
    has_B = torch.stack([batch.has_text & batch.has_image, negatives_of(batch).any(1)])
    answers = torch.stack([torch.ones_like(has_B[0]), torch.zeros_like(has_B[0])])
    return torch.where(has_B, answers.float(), NO_MATCH)


def alikeness(h_VBD: Tensor) -> Tensor:
    """[B, B]: the cosines of samples in each view, summed; of vectors less their mean, which all samples share."""
    h_VBD = h_VBD.to(torch.promote_types(h_VBD.dtype, torch.float32))
    units_VBD = F.normalize(h_VBD - h_VBD.mean(1, keepdim=True), dim=-1, eps=1e-6)
    return (units_VBD @ units_VBD.transpose(1, 2)).sum(0)


def compared_by(batch: Batch) -> Batch:
    """The batch, of views `SHOWN`, in the views text and image."""
    return _in(batch, [batch.views.alone(1), batch.views.alone(2)])


def with_negatives(batch: Batch, alike_BB: Tensor, image_tokens: int) -> Batch:
    """The batch in the view full, and in it again with each title beside the picture of its hardest negative.

    Args:
        batch: of views `SHOWN`, with a picture or more.
        alike_BB: how alike samples are.
        image_tokens: of one picture.
    """
    full = batch.views.alone(0)
    other_B = alike_BB.masked_fill(~negatives_of(batch), -torch.inf).argmax(1)
    # A sequence ends with its patches. That of a sample without a picture, which nobody is shown, ends anywhere.
    first_B = full.source_T[(full.cu_seqlens[1:].long() - image_tokens).clamp_min(0)]
    return _in(batch, [full, _beside(batch.views.alone(1), first_B[other_B], image_tokens)])


def _beside(text: Views, first_B: Tensor, image_tokens: int) -> Views:
    """The view full of the texts in `text`, each before the picture whose patches begin at row first_B."""
    device, lengths = text.source_T.device, tuple(length + image_tokens for length in text.lengths)
    samples = torch.arange(len(lengths), device=device)
    text_cu = text.cu_seqlens.long()
    cu_seqlens = text_cu + image_tokens * torch.arange(len(lengths) + 1, device=device)
    # With the number of rows known, nobody has to ask the device for it.
    sample_T = samples.repeat_interleave(cu_seqlens.diff(), output_size=sum(lengths))
    place_T = torch.arange(sum(lengths), device=device) - cu_seqlens[sample_T]
    patch_T = place_T - text_cu.diff()[sample_T]
    words_T = text.source_T[(text_cu[sample_T] + place_T).clamp_max(sum(text.lengths) - 1)]
    return Views(
        names=("full",),
        source_T=torch.where(patch_T < 0, words_T, first_B[sample_T] + patch_T),
        cu_seqlens=cu_seqlens.to(text.cu_seqlens.dtype),
        lengths=lengths,
    )


def _in(batch: Batch, plans: Sequence[Views]) -> Batch:
    return dataclasses.replace(batch, views=Views.joined(plans))
