"""Batch and Views: the one seam between the data workers and the model.

The dimension letters used as suffixes of tensor names in the whole package:

    B  samples of a micro-batch                     I  images of the batch (I <= B)
    V  views of each sample (full, text, image)     S  sequences = V x B, view after view: s = v * B + b
    N  text tokens, each embedded once              P  patch tokens of one image (49; 50 with the image [CLS])
    T  packed tokens of all sequences               L  tokens of one sequence
    D  hidden size                                  H  attention heads
    K  text tokens to predict (MLM)                 Q  patches to predict (MPM)
    C  classes                                      W  tokens of titles to write, of all samples
    F  features of a crop, of a ResNet              G  crops of a picture that are asked for
    U  words of whole titles that are asked for

A token is embedded once and read by every view that contains it: the text of all samples is one stream of N rows, the
patches of all images another of I*P rows. `Views.source_T` is the row of the two streams, laid one after the
other, that each packed token reads. So three views cost one text embedding, one patchify and one encoder forward, and
no row anywhere is padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

VIEW_NAMES = ("full", "text", "image")
NO_WORD, NO_PATCH, NO_CLASS = -100, -1, -100  # labels that ask for nothing
NO_KEY = -1  # of an item that has no identity key of a kind
NO_MATCH = -1.0  # label of a sample that lacks title or picture where others are asked whether the two belong together

T_ = TypeVar("T_", bound="_Tensors")


class _Tensors:
    """A frozen dataclass of tensors (and of further such dataclasses) that moves as one thing."""

    def map_tensors(self: T_, fn: Any) -> T_:
        """The same with fn(tensor) in place of each tensor, in the order of the fields."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = fn(value)
            elif isinstance(value, _Tensors):
                changes[field.name] = value.map_tensors(fn)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def to(self: T_, device: torch.device | str, non_blocking: bool = False) -> T_:
        """The same with every tensor on `device`."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Record that `stream` uses these tensors, which another one made."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self.map_tensors(record)

    def pin_memory(self: T_) -> T_:
        """The same in page-locked memory; torch's DataLoader calls this where pinning is asked for."""
        return self.map_tensors(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Views(_Tensors):
    """The index plan of a packed forward: V views of B samples as S = V*B sequences of T tokens in all.

    Attributes:
        names: the views, in the order of the sequences: sequence s shows sample s % B in view names[s // B].
        source_T: int64; the row of cat([text_ND, patches_(I*P)D]) that each packed token reads.
        cu_seqlens: int32 [S + 1]; sequence s is rows cu_seqlens[s] : cu_seqlens[s + 1]; its first row is its [CLS].
        lengths: the S sequence lengths as host integers, so that no step has to ask the device for them.
        num_fill: trailing sequences beside the V * B ones that only fill up (`mbsd.data.shape_buckets`).
        image_lengths: how many of each of the V * B sequences' tokens, its last ones, are the image's; on the host.
    """

    names: tuple[str, ...]
    source_T: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    num_fill: int = 0
    image_lengths: tuple[int, ...] = ()

    @property
    def real_lengths(self) -> tuple[int, ...]:
        """`lengths` of the V * B sequences alone."""
        return self.lengths[: len(self.lengths) - self.num_fill]

    @classmethod
    def joined(cls, plans: Sequence[Views]) -> Views:
        """The views of all plans over the same streams, one after the other; none with what only fills up."""
        assert all(plan.num_fill == 0 for plan in plans), "what fills up stands at the end"
        starts = [sum(sum(plan.lengths) for plan in plans[:n]) for n in range(len(plans))]
        cu = [plan.cu_seqlens[:-1] + start for plan, start in zip(plans, starts, strict=True)]
        return cls(
            names=tuple(name for plan in plans for name in plan.names),
            source_T=torch.cat([plan.source_T for plan in plans]),
            cu_seqlens=torch.cat([*cu, plans[-1].cu_seqlens[-1:] + starts[-1]]),
            lengths=tuple(length for plan in plans for length in plan.lengths),
        )

    def alone(self, view: int) -> Views:
        """The plan of names[view] by itself, without what only fills up; the device is asked for nothing."""
        each = len(self.real_lengths) // len(self.names)
        first = view * each
        lengths = self.lengths[first : first + each]
        start = sum(self.lengths[:first])
        return Views(
            names=(self.names[view],),
            source_T=self.source_T[start : start + sum(lengths)],
            cu_seqlens=self.cu_seqlens[first : first + each + 1] - start,
            lengths=lengths,
            image_lengths=self.image_lengths[first : first + each],
        )


@dataclass(frozen=True)
class Masks(_Tensors):
    """Words and patches that are hidden and asked for (Eq. 1 and 2). `Batch.input_ids_N` is already corrupted.

    Attributes:
        mlm_index_K: int64; the packed rows (of T) whose word is to be predicted.
        mlm_labels_K: int64; the words, or NO_WORD in rows that only fill up to a common size.
        patch_source: int64 [I * patches]; row r of the patchify output is replaced by row patch_source[r] of
            cat([patchify output, mask vector]): itself where it is kept, I * patches where it is masked, another
            image's patch where it is swapped. Patches here never include the image [CLS]. None: none is masked.
        mpm_index_Q: int64; the packed rows (of T) whose patch is to be predicted.
        mpm_patch_Q: int64; the rows (of I * patches) of the pixels to predict, or NO_PATCH in rows that only fill up.
        num_fill_words, num_fill_patches: how many of K and Q only fill up.
    """

    mlm_index_K: Tensor
    mlm_labels_K: Tensor
    patch_source: Tensor | None
    mpm_index_Q: Tensor
    mpm_patch_Q: Tensor
    num_fill_words: int = 0
    num_fill_patches: int = 0

    @property
    def num_words(self) -> int:
        """Words that are asked for."""
        return self.mlm_labels_K.shape[0] - self.num_fill_words

    @property
    def num_patches(self) -> int:
        """Patches that are asked for."""
        return self.mpm_patch_Q.shape[0] - self.num_fill_patches


@dataclass(frozen=True)
class CrossModal(_Tensors):
    """What title and picture are asked of each other, as a whole (`masking.cross_modal`).

    Only samples that show both are asked.

    Attributes:
        words_U: int64; the words of the titles before any was masked, each once a title, without special tokens.
        title_U: int64; the sample whose title each is of.
        share_U: float32; 1 / the number of that title's words; 0 in rows that only fill up.
        picture_B: int64; which of `Batch.images` each sample shows; any where it is not asked.
        asked_B: float32; 1 where the sample shows both, else 0.
        num_asked: how many do; on the host.
    """

    words_U: Tensor
    title_U: Tensor
    share_U: Tensor
    picture_B: Tensor
    asked_B: Tensor
    num_asked: int


@dataclass(frozen=True)
class Generation(_Tensors):
    """What the generative stage asks for: every sample's title, each token from the view full and the tokens before it.

    Attributes:
        input_ids_W: int64; of each sample `[CLS] title`, one sample after the other.
        position_ids_W: int64; from 0 for each sample.
        labels_W: int64; the token that follows: of each sample `title [SEP]`; NO_WORD of one without a title.
        captioned_W: bool; whether the sample shows its picture alone (captioning), or its corrupted title too.
        cu_seqlens: int32 [B + 1]; sample b is rows cu_seqlens[b] : cu_seqlens[b + 1].
        joined: int64 [T + W]; the rows of cat([packed tokens, these tokens]) in the order of the samples: what a
            sample shows, then what it writes.
        joined_cu_seqlens: int32 [B + 1]; the samples' first rows in that order.
        lengths: the samples' numbers of tokens as host integers, 1 or more.
        num_captioned, num_denoised: how many tokens each of the two tasks asks for.
    """

    input_ids_W: Tensor
    position_ids_W: Tensor
    labels_W: Tensor
    captioned_W: Tensor
    cu_seqlens: Tensor
    joined: Tensor
    joined_cu_seqlens: Tensor
    lengths: tuple[int, ...]
    num_captioned: int
    num_denoised: int


@dataclass(frozen=True)
class Puzzles(_Tensors):
    """What Kaleido-BERT's pre-training does to the crops of each picture, a task at each scale (`mbsd.data.puzzles`).

    Attributes:
        first_I: int64; the packed row (of T) of each picture's first crop.
        rotation_I: int64, 0 ... 3; quarter turns of the one crop of the 1 x 1 grid.
        order_I4, jigsaw_I: int64; place n of the 2 x 2 grid shows the crop of place order[n]; the number of that order,
            0 ... 23.
        camouflage_I: int64, 0 ... 8; the place of the 3 x 3 grid that shows a crop of `others`; NO_CLASS: none does.
        others: uint8 [I, 3, height, width]; for each picture one of another product; black where there is none.
        grey_IG: int64; the places of the 4 x 4 grid that are shown without colour.
        blank_IG: int64; the places of the 5 x 5 grid that are not shown.
        num_camouflaged: pictures whose label of camouflage is not NO_CLASS.
        num_fill: trailing pictures that only fill up.
    """

    first_I: Tensor
    rotation_I: Tensor
    order_I4: Tensor
    jigsaw_I: Tensor
    camouflage_I: Tensor
    others: Tensor
    grey_IG: Tensor
    blank_IG: Tensor
    num_camouflaged: int
    num_fill: int = 0

    @property
    def num_images(self) -> int:
        """Pictures without those that only fill up."""
        return self.first_I.shape[0] - self.num_fill


@dataclass(frozen=True)
class Batch(_Tensors):
    """One micro-batch, ready for one packed forward.

    Attributes:
        input_ids_N, position_ids_N, token_type_ids_N: int64; the text streams of the B samples, one after the other.
        images: uint8 [I, 3, height, width]; RGB of the samples that have an image, in the order of the samples; in
            training with data.share_images one for all samples of an item, in the order of their first ones. The model
            normalises them: a quarter of the bytes of float32 travels from worker to device.
        views: the index plan.
        items_B: int64; the catalogue's item number of each sample. Rows of an alignment table have two items: their
            first ones are samples 0 ... B/2 - 1, their second ones the rest, in the same order, and labels_B is [B/2].
        labels_B: float32 (match) or int64 (class); None where nothing is asked. Where pictures are mismatched
            (`mbsd.data.spec.Masked`): 1 for the item's own picture, 0 for another's, NO_MATCH where title or picture is
            missing or damaged. items_B is the item of the title then.
        masks: where words or patches are masked.
        cross_modal: where title and picture are asked of each other.
        puzzles: Kaleido-BERT's pre-training only.
        keys_BK: int64; the identity keys of each sample's item (`mbsd.catalog.keys`), NO_KEY where it has none: items
            that share a key are the same product. Where samples are told from each other.
        has_text: bool [B]; whose title is shown. With keys_BK.
        generation: generative stage only.
    """

    input_ids_N: Tensor
    position_ids_N: Tensor
    token_type_ids_N: Tensor
    images: Tensor
    views: Views
    items_B: Tensor
    labels_B: Tensor | None = None
    masks: Masks | None = None
    keys_BK: Tensor | None = None
    has_text: Tensor | None = None
    generation: Generation | None = None
    puzzles: Puzzles | None = None
    cross_modal: CrossModal | None = None

    @property
    def num_samples(self) -> int:
        """B."""
        return self.items_B.shape[0]

    @property
    def has_image(self) -> Tensor:
        """bool [B]; whose picture is in `images`: False too where the catalogue's is damaged or no view shows it."""
        is_patch_T = self.views.source_T >= self.input_ids_N.shape[0]
        before = torch.cat([is_patch_T.new_zeros(1), is_patch_T]).cumsum(0)[self.views.cu_seqlens.long()]
        before = before[: len(self.views.real_lengths) + 1]
        return (before.diff() > 0).reshape(len(self.views.names), -1).any(0)

    @property
    def num_tokens(self) -> int:
        """The real tokens of this micro-batch over all its views: T, but for what only fills up."""
        return sum(self.views.real_lengths)
