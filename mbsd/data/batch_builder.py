"""Catalogue → batches: everything of one micro-batch, from sample numbers to a Batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mbsd.batch import NO_MATCH, Batch, Puzzles, Views
from mbsd.catalog.keys import ItemKeys, JointKeys
from mbsd.catalog.reader import DamagedRecord
from mbsd.config.data import DataConfig
from mbsd.data.augment import Augmentation, draw_augmentation, no_augmentation
from mbsd.data.cross_modal import cross_modal_of
from mbsd.data.decode_torchvision import ImageDecoder
from mbsd.data.generation import TitleAsker
from mbsd.data.masking import Vocabulary, mask_patches, mask_text, num_masked
from mbsd.data.masks import SHOW_PATCHES, SHOW_WORDS, MaskedSample, first_showing, masks_of
from mbsd.data.order import sample_rng
from mbsd.data.puzzles import draw_puzzles, lend, puzzles_of
from mbsd.data.samples import ItemSource, Sample
from mbsd.data.shape_buckets import black_images, fill_up
from mbsd.data.spec import BatchSpec
from mbsd.data.text import drop_words, encode_pair
from mbsd.data.views import TextTokens, pack

Int64 = npt.NDArray[np.int64]
Key = tuple[int, int, str]
"""What random numbers are drawn from: epoch and position of a sample, and which of its items; of a shared picture,
epoch and item."""


@dataclass(frozen=True)
class Encoded:
    """Pictures still to be decoded: I JPEGs, behind them those that lend a crop, and what becomes of each."""

    jpegs: list[bytes]
    augmentation: Augmentation


@dataclass(frozen=True)
class Read:
    """The JPEG of each sample, how many were read, and a line for each that is damaged (None in its place)."""

    jpegs: list[bytes | None]
    num: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A micro-batch as a worker delivers it.

    Attributes:
        batch: all of it, but for the pictures that are still encoded.
        encoded: what is left for the training process, unless it is None.
        num_read: pictures that were asked for.
        damaged: a line for each of them whose bytes are not those that were written; it has been left out.
    """

    batch: Batch
    encoded: Encoded | None
    num_read: int = 0
    damaged: tuple[str, ...] = ()

    def pin_memory(self) -> Prepared:
        """The same with the batch in page-locked memory; torch's DataLoader calls this."""
        return dataclasses.replace(self, batch=self.batch.pin_memory())


class BatchBuilder:
    """Builds micro-batches; every random number in them depends on (seed, epoch, position) of its sample alone.

    With data.share_images a picture's crop depends on (seed, epoch, item) instead.

    Args:
        source: where titles and pictures are read.
        tokenizer: from data.text.
        data: lengths, crops, flips, image size.
        spec: what a batch holds.
        decoder: from `make_decoder`, of data.image_size.
        keys: identity keys of the source's items, where the spec asks for them (`BatchSpec.same_product`).
    """

    def __init__(
        self,
        source: ItemSource,
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        spec: BatchSpec,
        decoder: ImageDecoder,
        keys: ItemKeys | JointKeys | None = None,
    ) -> None:
        for asked, what, showing in (
            (spec.masks_words, "masked words", SHOW_WORDS),
            (spec.masks_patches, "masked patches", SHOW_PATCHES),
            (spec.mismatched > 0, "mismatched pictures", ("full",)),
        ):
            if asked and first_showing(spec.views, showing) is None:
                raise ValueError(f"{what} need the view {' or '.join(showing)}, found views {list(spec.views)}")
        if spec.generated is not None and (spec.views != ("full",) or (spec.train and data.token_bucket > 1)):
            raise ValueError("titles to write need the view full alone, and batches that are not filled up")
        if decoder.size != data.image_size:
            raise ValueError(f"decoder of {decoder.size} px, data.image_size={data.image_size}: expected the same")
        if (spec.masks_patches or spec.puzzles is not None) and data.share_images:
            raise ValueError("data.share_images with masks: each sample hides patches of a picture of its own")
        if (spec.same_product is not None) != (keys is not None):
            raise ValueError(
                f"targets {spec.targets} and keys {keys}: expected keys for SameProduct, and for Masked where pictures "
                "are mismatched or keys asked for, and for no other targets"
            )
        self.source, self.tokenizer, self.data = source, tokenizer, data
        self.spec, self.decoder, self.keys = spec, decoder, keys
        self.bucket = data.token_bucket if spec.train else 1
        specials = sorted(tokenizer.all_special_ids)
        self._asker = None
        if spec.generated is not None:
            self._asker = TitleAsker(spec.generated, tokenizer, data.max_text_tokens, data.max_query_tokens)
        self._vocabulary = Vocabulary(len(tokenizer), tokenizer.mask_token_id, specials)
        self._is_special = np.zeros(len(tokenizer), dtype=bool)  # by word
        self._is_special[specials] = True

    def build(self, samples: Sequence[Sample], positions: Int64, epochs: Int64) -> Batch:
        """The micro-batch of B samples.

        Args:
            samples: B, or B/2 with two items each.
            positions: int64; of each of `samples` in the order of its epoch.
            epochs: int64; of each of `samples`.

        Raises:
            ValueError: labels are asked for and a sample has none.
        """
        return self.finish(self.prepare(samples, positions, epochs))

    def prepare(self, samples: Sequence[Sample], positions: Int64, epochs: Int64) -> Prepared:
        """The part of `build` that a worker does: all of it if the decoder runs in workers, else all but decoding."""
        labels = self._labels(samples)
        keys = [(*key, "") for key in zip(epochs.tolist(), positions.tolist(), strict=True)]
        others = [sample.other for sample in samples if sample.other is not None]
        if others:
            if len(others) != len(samples):
                raise ValueError(f"{len(others)} of {len(samples)} samples have a second item: expected all or none")
            seconds = [Sample(other, hidden=sample.other_hidden) for other, sample in zip(others, samples, strict=True)]
            samples = [*samples, *seconds]
            keys += [(epoch, position, ".other") for epoch, position, _ in keys]
        read = self._read_images([None if "image" in sample.hidden else sample.pictured for sample in samples])
        has_image = [jpeg is not None for jpeg in read.jpegs]
        lent = self._read_images([s.crop_of if image else None for s, image in zip(samples, has_image, strict=True)])
        texts = [
            encode_pair(
                self.tokenizer,
                sample.text,
                "" if "title" in sample.hidden else self.source.title(sample.item),
                self.data.max_text_tokens,
                self.data.max_query_tokens,
            )
            for sample in samples
        ]
        if self.spec.train and self.data.word_dropout:
            texts = [
                drop_words(self._rng(key, "words"), text, self.data.word_dropout)
                for key, text in zip(keys, texts, strict=True)
            ]
        keys_BK, has_text = self._identities(samples, texts)
        asked = None
        if self._asker is not None:
            asked = [
                self._asker.ask(self._rng(key, "generation"), text, image)
                for key, text, image in zip(keys, texts, has_image, strict=True)
            ]
            texts = [sample.shown for sample in asked]
        image_numbers, jpegs, crop_keys = self._pictures(samples, keys, read.jpegs)
        if self.spec.mismatched:
            labels = _matches(samples, texts, has_image)
        cross_modal = None
        if self.spec.cross_modal:
            cross_modal = cross_modal_of(texts, has_image, image_numbers, self._is_special)
        drawn = [
            self._mask_sample(key, text, image, asked=sample.picture_of is None)
            for key, text, image, sample in zip(keys, texts, has_image, samples, strict=True)
        ]
        texts = [sample.text for sample in drawn]
        ids_N, positions_N, types_N, views = pack(
            texts, has_image, self.spec.views, self.spec.patches_per_image + int(self.spec.image_cls), image_numbers
        )
        masks = None
        if self.spec.masking is not None:
            masks = masks_of(drawn, views, self.spec.patches_per_image if self.spec.masks_patches else None)
        lenders = [((*key[:2], ".lent"), jpeg) for key, jpeg in zip(keys, lent.jpegs, strict=True) if jpeg is not None]
        encoded = self._encoded([*jpegs, *(jpeg for _, jpeg in lenders)], [*crop_keys, *(key for key, _ in lenders)])
        size = self.data.image_size
        batch = Batch(
            input_ids_N=ids_N,
            position_ids_N=positions_N,
            token_type_ids_N=types_N,
            images=torch.empty((0, 3, size, size), dtype=torch.uint8),
            views=views,
            items_B=torch.tensor([sample.item for sample in samples], dtype=torch.int64),
            labels_B=labels,
            masks=masks,
            puzzles=self._puzzles(keys, has_image, lent.jpegs, views),
            keys_BK=keys_BK,
            has_text=has_text,
            generation=self._asker.lay_out(asked, views) if self._asker is not None and asked is not None else None,
            cross_modal=cross_modal,
        )
        if self.bucket > 1:
            images = len(jpegs)
            batch = fill_up(
                batch, self.bucket, num_images=images, fill_images=self._num_images(images, len(samples)) - images,
                patches_per_image=self.spec.patches_per_image, masked_per_image=self._masked_per_image,
            )  # fmt: skip
        num_read, damaged = read.num + lent.num, read.damaged + lent.damaged
        if self.decoder.in_worker:
            return Prepared(self._with_pictures(batch, encoded), None, num_read, damaged)
        return Prepared(batch, encoded, num_read, damaged)

    def finish(self, prepared: Prepared) -> Batch:
        """The part of `build` that the training process does."""
        if prepared.encoded is None:
            return prepared.batch
        return self._with_pictures(prepared.batch, prepared.encoded)

    def _with_pictures(self, batch: Batch, encoded: Encoded) -> Batch:
        """`batch` with its pictures, and those that lend a crop, decoded."""
        images, puzzles = self.decoder.decode(encoded.jpegs, encoded.augmentation), batch.puzzles
        if puzzles is not None:
            own = puzzles.num_images
            images, puzzles = images[:own], lend(puzzles, images[own:])
        images = black_images(images, self._num_images(len(images), batch.num_samples))
        return dataclasses.replace(batch, images=images, puzzles=puzzles)

    def _read_images(self, asked: Sequence[int | None]) -> Read:
        """Of the items whose pictures are asked for, one a sample.

        An item that several samples show is read for each of them, unless they share its picture.
        """
        if self.spec.views == ("text",):
            return Read([None] * len(asked), 0, ())
        items = [item for item in asked if item is not None]
        if self._shares:
            items = list(dict.fromkeys(items))
        jpegs: list[bytes | None] = []
        damaged: list[str] = []
        for item in items:
            try:
                jpegs.append(self.source.image(item))
            except DamagedRecord as error:
                damaged.append(str(error))
                jpegs.append(None)
        num_read = len(damaged) + sum(jpeg is not None for jpeg in jpegs)
        of_item = dict(zip(items, jpegs, strict=True))
        return Read([None if item is None else of_item[item] for item in asked], num_read, tuple(damaged))

    @property
    def _shares(self) -> bool:
        return self.spec.train and self.data.share_images

    def _pictures(
        self, samples: Sequence[Sample], keys: list[Key], jpegs_B: list[bytes | None]
    ) -> tuple[list[int], list[bytes], list[Key]]:
        """Which picture each sample shows (0 where it has none), the pictures, and what their crops are drawn from."""
        numbers: list[int] = []
        pictures: dict[Key, tuple[int, bytes]] = {}
        for sample, key, jpeg in zip(samples, keys, jpegs_B, strict=True):
            crop_key = (key[0], sample.pictured, ".item") if self._shares else key
            if jpeg is not None:
                pictures.setdefault(crop_key, (len(pictures), jpeg))
            numbers.append(pictures[crop_key][0] if jpeg is not None else 0)
        return numbers, [jpeg for _, jpeg in pictures.values()], list(pictures)

    def _encoded(self, jpegs: list[bytes], keys: list[Key]) -> Encoded:
        if not self.spec.train:
            return Encoded(jpegs, no_augmentation(len(jpegs)))
        rngs = [self._rng(key, "crop") for key in keys]
        data = self.data
        return Encoded(jpegs, draw_augmentation(rngs, data.crop_scale, data.flip_probability, data.colour_jitter))

    def _rng(self, key: Key, purpose: str) -> np.random.Generator:
        epoch, position, which = key
        return sample_rng(self.spec.seed, epoch, position, purpose + which)

    def _num_images(self, images: int, num_samples: int) -> int:
        """With those that fill up: one for every sample."""
        return images if self.bucket == 1 or self.spec.views == ("text",) else num_samples

    def _labels(self, samples: Sequence[Sample]) -> Tensor | None:
        dtype = self.spec.label_dtype
        if dtype is None:
            return None
        missing = [sample.item for sample in samples if sample.label is None]
        if missing:
            raise ValueError(f"item {missing[0]}: a label is asked for and this sample has none")
        return torch.tensor([sample.label for sample in samples], dtype=dtype)

    def _identities(
        self, samples: Sequence[Sample], texts: Sequence[TextTokens]
    ) -> tuple[Tensor | None, Tensor | None]:
        """`Batch.keys_BK` and `Batch.has_text`, where the spec asks for them."""
        if self.keys is None:
            return None, None
        keys_BK = self.keys.of(np.array([sample.item for sample in samples], dtype=np.int64))
        return torch.from_numpy(keys_BK), torch.tensor([text.has_title for text in texts])

    def _puzzles(
        self, keys: Sequence[Key], has_image: Sequence[bool], lent_B: Sequence[bytes | None], views: Views
    ) -> Puzzles | None:
        """`Batch.puzzles`, where the spec asks for them, without the pictures that lend a crop."""
        spec = self.spec.puzzles
        if spec is None:
            return None
        shown = [b for b, image in enumerate(has_image) if image]
        drawn = [draw_puzzles(self._rng(keys[b], "puzzles"), spec) for b in shown]
        first_B = views.cu_seqlens.numpy()[1 : len(keys) + 1].astype(np.int64) - self.spec.patches_per_image
        return puzzles_of(drawn, first_B[shown], [lent_B[b] is not None for b in shown])

    @property
    def _masked_per_image(self) -> int:
        masking = self.spec.masking
        if masking is None or not self.spec.masks_patches:
            return 0
        return num_masked(self.spec.patches_per_image, masking.mpm_probability)

    def _mask_sample(self, key: Key, text: TextTokens, has_image: bool, asked: bool) -> MaskedSample:
        chosen, labels, patches, sources = (np.zeros(0, dtype=np.int64) for _ in range(4))
        masking = self.spec.masking
        if masking is not None and self.spec.masks_words:
            corrupted, chosen, labels = mask_text(
                self._rng(key, "text"),
                text.input_ids,
                self._is_special[text.input_ids],
                self._vocabulary,
                masking.mlm_probability,
            )
            text = dataclasses.replace(text, input_ids=corrupted)
        if masking is not None and self.spec.masks_patches and has_image:
            rng = self._rng(key, "patches")
            patches, sources = mask_patches(
                rng, self.spec.patches_per_image, masking.mpm_probability, masking.mpm_corruption
            )
        return MaskedSample(text, chosen, labels, has_image, patches, sources, asked)


def _matches(samples: Sequence[Sample], texts: Sequence[TextTokens], has_image: Sequence[bool]) -> Tensor:
    """`Batch.labels_B` of samples of which some are shown another item's picture."""
    return torch.tensor(
        [
            float(sample.picture_of is None) if text.has_title and image else NO_MATCH
            for sample, text, image in zip(samples, texts, has_image, strict=True)
        ]
    )
