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

from mbsd.batch import Batch, Masks
from mbsd.config import DataConfig, MaskingConfig
from mbsd.data.images_torchvision import WHOLE_IMAGE, Flips, ImageDecoder, Windows, training_window
from mbsd.data.masking import mask_patches, mask_text
from mbsd.data.order import sample_rng
from mbsd.data.samples import ItemSource, Sample
from mbsd.data.text import encode_pair
from mbsd.data.views import TextTokens, pack

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Pictures still to be decoded: I JPEGs, their windows [I, 4] and whether to mirror them, bool [I]."""

    jpegs: list[bytes]
    windows: Windows
    flips: Flips


@dataclass(frozen=True)
class Prepared:
    """A micro-batch as a worker delivers it; `encoded` is left for the training process unless it is None."""

    batch: Batch
    encoded: Encoded | None

    def pin_memory(self) -> Prepared:
        """The same with the batch in page-locked memory; torch's DataLoader calls this."""
        return Prepared(self.batch.pin_memory(), self.encoded)


class BatchBuilder:
    """Builds micro-batches; every random number in them depends on (seed, epoch, position) of its sample alone.

    Args:
        catalog: where titles and pictures are read.
        tokenizer: from data.text.
        data: lengths, crops, flips, image size.
        views: which views each sample is shown in; the masked objective reads "full".
        patches_per_image: P without the image [CLS].
        image_cls: whether an image [CLS] stands before the patches.
        masking: stage 1; None: nothing is masked and Batch.masks is None.
        seed: of the run.
        train: crops and flips; else the whole image as it is.
        decoder: from data.images.make_decoder, of data.image_size.
        label_dtype: of Batch.labels_B (float32 to match, int64 for classes); None: no labels.
    """

    def __init__(
        self,
        catalog: ItemSource,
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        views: tuple[str, ...],
        *,
        patches_per_image: int,
        image_cls: bool = False,
        masking: MaskingConfig | None = None,
        seed: int = 0,
        train: bool = True,
        decoder: ImageDecoder,
        label_dtype: torch.dtype | None = None,
    ) -> None:
        if masking is not None and "full" not in views:
            raise ValueError(f"masking needs the view full, found views {list(views)}")
        if decoder.size != data.image_size:
            raise ValueError(f"decoder of {decoder.size} px, data.image_size={data.image_size}: expected the same")
        self.catalog = catalog
        self.tokenizer = tokenizer
        self.data = data
        self.views = views
        self.patches_per_image = patches_per_image
        self.image_cls = image_cls
        self.masking = masking
        self.seed = seed
        self.train = train
        self.decoder = decoder
        self.label_dtype = label_dtype
        self._special_ids = np.array(sorted(tokenizer.all_special_ids), dtype=np.int64)
        self._vocab_size = len(tokenizer)

    def build(self, samples: Sequence[Sample], positions: Int64, epochs: Int64) -> Batch:
        """The micro-batch of B samples.

        Args:
            samples: B.
            positions: int64 [B]; of each in the order of its epoch.
            epochs: int64 [B].

        Raises:
            CorruptRecord: a picture's bytes are not those that were written.
            ValueError: labels are asked for and a sample has none.
        """
        return self.finish(self.prepare(samples, positions, epochs))

    def prepare(self, samples: Sequence[Sample], positions: Int64, epochs: Int64) -> Prepared:
        """The part of `build` that a worker does: all of it if the decoder runs in workers, else all but decoding."""
        keys = list(zip(epochs.tolist(), positions.tolist(), strict=True))
        jpegs_B = self._read_images(samples)
        has_image = [jpeg is not None for jpeg in jpegs_B]
        texts = [
            encode_pair(
                self.tokenizer,
                sample.text,
                self.catalog.title(sample.item),
                self.data.max_text_tokens,
                self.data.max_query_tokens,
            )
            for sample in samples
        ]
        drawn = [self._mask_sample(*key, text, image) for key, text, image in zip(keys, texts, has_image, strict=True)]
        texts = [sample.text for sample in drawn]
        ids_N, positions_N, types_N, views = pack(
            texts, has_image, self.views, self.patches_per_image + int(self.image_cls)
        )
        masks = None
        if self.masking is not None:
            first = views.names.index("full") * len(samples)
            masks = self._masks(drawn, views.cu_seqlens.numpy()[first : first + len(samples)].astype(np.int64))
        encoded = self._encoded([jpeg for jpeg in jpegs_B if jpeg is not None], keys, has_image)
        in_worker = self.decoder.in_worker
        size = self.data.image_size
        batch = Batch(
            input_ids_N=ids_N,
            position_ids_N=positions_N,
            token_type_ids_N=types_N,
            images=self._decode(encoded) if in_worker else torch.empty((0, 3, size, size), dtype=torch.uint8),
            views=views,
            items_B=torch.tensor([sample.item for sample in samples], dtype=torch.int64),
            labels_B=self._labels(samples),
            masks=masks,
        )
        return Prepared(batch, None if in_worker else encoded)

    def finish(self, prepared: Prepared) -> Batch:
        """The part of `build` that the training process does."""
        if prepared.encoded is None:
            return prepared.batch
        return dataclasses.replace(prepared.batch, images=self._decode(prepared.encoded))

    def _read_images(self, samples: Sequence[Sample]) -> list[bytes | None]:
        if self.views == ("text",):
            return [None] * len(samples)
        return [self.catalog.image(sample.item) for sample in samples]

    def _encoded(self, jpegs: list[bytes], keys: list[tuple[int, int]], has_image: list[bool]) -> Encoded:
        windows, flips = [WHOLE_IMAGE] * len(jpegs), [False] * len(jpegs)
        if self.train:
            shown = [key for key, image in zip(keys, has_image, strict=True) if image]
            for index, (epoch, position) in enumerate(shown):
                rng = sample_rng(self.seed, epoch, position, "crop")
                windows[index], flips[index] = training_window(rng, self.data.crop_scale, self.data.flip_probability)
        return Encoded(jpegs, np.array(windows, dtype=np.float64).reshape(-1, 4), np.array(flips, dtype=bool))

    def _decode(self, encoded: Encoded) -> Tensor:
        return self.decoder.decode(encoded.jpegs, encoded.windows, encoded.flips)

    def _labels(self, samples: Sequence[Sample]) -> Tensor | None:
        if self.label_dtype is None:
            return None
        missing = [sample.item for sample in samples if sample.label is None]
        if missing:
            raise ValueError(f"item {missing[0]}: a label is asked for and this sample has none")
        return torch.tensor([sample.label for sample in samples], dtype=self.label_dtype)

    def _mask_sample(self, epoch: int, position: int, text: TextTokens, has_image: bool) -> _MaskedSample:
        none = np.zeros(0, dtype=np.int64)
        if self.masking is None:
            return _MaskedSample(text, none, none, has_image, none, none)
        corrupted, chosen, labels = mask_text(
            sample_rng(self.seed, epoch, position, "text"),
            text.input_ids,
            np.isin(text.input_ids, self._special_ids),
            self._vocab_size,
            self.tokenizer.mask_token_id,
            self._special_ids.tolist(),
            self.masking.mlm_probability,
        )
        patches, sources = none, none
        if has_image:
            rng = sample_rng(self.seed, epoch, position, "patches")
            masking = self.masking
            patches, sources = mask_patches(
                rng, self.patches_per_image, masking.mpm_probability, masking.mpm_corruption
            )
        text = dataclasses.replace(text, input_ids=corrupted)
        return _MaskedSample(text, chosen, labels, has_image, patches, sources)

    def _masks(self, drawn: list[_MaskedSample], starts_B: Int64) -> Masks:
        """The samples' own masks as rows of the packed view full, whose sequences begin at the rows starts_B."""
        patches, num_images = self.patches_per_image, sum(sample.has_image for sample in drawn)
        patch_source = np.arange(num_images * patches, dtype=np.int64)
        mlm_index, mpm_index, mpm_patch = [], [], []
        image = 0
        for sample, start in zip(drawn, starts_B.tolist(), strict=True):
            mlm_index.append(start + sample.words)
            if sample.has_image:
                rows = image * patches + sample.patches
                is_mask = sample.sources == patches
                patch_source[rows] = np.where(is_mask, num_images * patches, image * patches + sample.sources)
                mpm_index.append(start + len(sample.text.input_ids) + int(self.image_cls) + sample.patches)
                mpm_patch.append(rows)
                image += 1
        return Masks(
            mlm_index_K=_joined(mlm_index),
            mlm_labels_K=_joined([sample.labels for sample in drawn]),
            patch_source=torch.from_numpy(patch_source),
            mpm_index_Q=_joined(mpm_index),
            mpm_patch_Q=_joined(mpm_patch),
        )


@dataclass(frozen=True)
class _MaskedSample:
    """A sample's corrupted text with the chosen words and their labels, and its chosen patches with their sources."""

    text: TextTokens
    words: Int64
    labels: Int64
    has_image: bool
    patches: Int64
    sources: Int64


def _joined(parts: list[Int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))
