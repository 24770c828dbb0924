"""Catalogue → batches: what a batch is to hold, and what a stage or task needs of the data; data knows neither."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mbsd.catalog.tables import Kind
from mbsd.config.stages import GenerativeConfig, MaskingConfig


@dataclass(frozen=True)
class PuzzleSpec:
    """Of Kaleido-BERT's puzzles (`mbsd.data.puzzles`): crops that are shown grey (of 16) and not at all (of 25)."""

    grey: int
    blank: int


@dataclass(frozen=True)
class Masked:
    """Batches with `masks`: words and patches that are hidden and asked for, each in the first view that shows them.

    Attributes:
        masking: how many of them.
        words, patches: whether any of the kind is.
        mismatched: probability that a sample is shown the picture of another item (`mbsd.data.mismatch`). Above 0
            batches have `labels_B`, 1 where the picture is the item's own and 0 where it is not. All samples are
            corrupted alike, and only of the former words and patches are asked for.
        keyed: batches have `keys_BK` and `has_text`, whose pictures are never those of the same product; they have
            both wherever pictures are mismatched too.
        puzzles: of every picture; None: there are none.
    """

    masking: MaskingConfig
    words: bool = True
    patches: bool = True
    mismatched: float = 0.0
    keyed: bool = False
    puzzles: PuzzleSpec | None = None


@dataclass(frozen=True)
class Labelled:
    """Batches with `labels_B` of this type: float32 to match, int64 for classes."""

    dtype: torch.dtype


@dataclass(frozen=True)
class SameProduct:
    """Batches with `keys_BK` and `has_text`: which samples are the same product.

    Attributes:
        same: the kinds of keys, of `mbsd.catalog.keys.KINDS`; those that the catalogue does not have are left out.
        required: a catalogue without any of them is an error.
    """

    same: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Generated:
    """Batches with `generation`: titles to write from the picture, or from the picture and a corrupted title.

    Attributes:
        settings: of the stage.
        caption_prompt, denoising_prompt: words before what is shown, where a query stands elsewhere; "": none.
    """

    settings: GenerativeConfig
    caption_prompt: str = ""
    denoising_prompt: str = ""


Targets = Masked | Labelled | SameProduct | Generated | None
SAME = ("product", "title", "picture")  # keys by which `Masked` knows the same product, as far as a catalogue has them


@dataclass(frozen=True)
class BatchSpec:
    """What a batch holds.

    Attributes:
        views: in which each sample is shown.
        targets: what the model is asked for; None: nothing.
        patches_per_image: P without the image [CLS].
        image_cls: whether an image [CLS] stands before the patches.
        train: crops, flips and filled batches (data.token_bucket); else the whole picture as it is.
        seed: of the run; every random number follows from it and the sample's epoch and position.
    """

    views: tuple[str, ...]
    targets: Targets
    patches_per_image: int
    image_cls: bool = False
    train: bool = False
    seed: int = 0

    @property
    def masking(self) -> MaskingConfig | None:
        """What is masked; None: nothing."""
        return self.targets.masking if isinstance(self.targets, Masked) else None

    @property
    def masks_words(self) -> bool:
        """Whether words are masked."""
        return isinstance(self.targets, Masked) and self.targets.words

    @property
    def masks_patches(self) -> bool:
        """Whether patches are masked."""
        return isinstance(self.targets, Masked) and self.targets.patches

    @property
    def cross_modal(self) -> bool:
        """Whether title and picture are asked of each other."""
        return isinstance(self.targets, Masked) and self.targets.masking.cross_modal

    @property
    def mismatched(self) -> float:
        """The probability that a sample is shown another item's picture."""
        return self.targets.mismatched if isinstance(self.targets, Masked) else 0.0

    @property
    def puzzles(self) -> PuzzleSpec | None:
        """Of every picture; None: none."""
        return self.targets.puzzles if isinstance(self.targets, Masked) else None

    @property
    def same_product(self) -> SameProduct | None:
        """Which keys of items a batch holds; None: none."""
        targets = self.targets
        if isinstance(targets, Masked) and (targets.mismatched or targets.keyed or targets.puzzles is not None):
            return SameProduct(SAME, required=False)
        return self.targets if isinstance(self.targets, SameProduct) else None

    @property
    def generated(self) -> Generated | None:
        """The titles that are asked for; None: none."""
        return self.targets if isinstance(self.targets, Generated) else None

    @property
    def asked(self) -> str | None:
        """What is hidden and asked for, to print where a run starts; None: nothing is hidden."""
        if not isinstance(self.targets, Masked):
            return None
        masking, of = self.targets.masking, []
        of += [f"{masking.mlm_probability:.0%} of the words"] if self.targets.words else []
        of += [f"{masking.mpm_probability:.0%} of the patches"] if self.targets.patches else []
        asked = " and ".join(of)
        if self.cross_modal:
            asked += "; titles of pictures, and pictures of titles"
        if self.targets.mismatched:
            asked += f"; whose picture it is: another item's for {self.targets.mismatched:.0%} of the titles"
        elif self.targets.keyed:
            asked += "; whose picture it is: its own, or that of the most similar sample of the micro-batch"
        if (puzzles := self.targets.puzzles) is not None:
            asked += f"; what was done to crops at five scales, {puzzles.grey} of them grey, {puzzles.blank} blank"
        return asked

    @property
    def label_dtype(self) -> torch.dtype | None:
        """Of the labels; None: there are none."""
        return self.targets.dtype if isinstance(self.targets, Labelled) else None


@dataclass(frozen=True)
class Needs:
    """What a stage or task reads.

    Attributes:
        views: that a training sample is shown in.
        targets: of its batches.
        table: kind of its task table; None: it reads the catalogue alone.
        validation_views: that a held-out sample is shown in; default: those of training.
        validation_targets: of held-out batches; default: those of training.
    """

    views: tuple[str, ...]
    targets: Targets
    table: Kind | None = None
    validation_views: tuple[str, ...] = field(default=())
    validation_targets: Targets = None

    @property
    def held_out_views(self) -> tuple[str, ...]:
        """The views of validation."""
        return self.validation_views or self.views

    @property
    def held_out_targets(self) -> Targets:
        """The targets of validation."""
        return self.targets if self.validation_targets is None else self.validation_targets
