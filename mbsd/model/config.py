"""The configuration that MBSD and the models it is compared with have in common (SPEC 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from mbsd.batch import VIEW_NAMES
from mbsd.errors import UserError
from mbsd.model.gradients import gradient_target_size
from mbsd.model.patchify import overlapping_kernel


@strict
class BackboneConfig(BertConfig):
    """BERT's configuration and what the image side adds; the defaults are the paper's (bert-base-chinese)."""

    vocab_size: int = 21128
    image_size: int = 224
    patchify_strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    patchify_channels: list[int] | tuple[int, ...] = (64, 192, 384)
    patchify_blocks: int = 0  # residual blocks between overlapping convolutions; 0: they do not overlap
    image_cls: bool = False
    representation: str = "pooled"
    match_head: str = "shared"
    num_labels_out: int = 1
    pair_head: str = "compare"
    mpm_target: str = "pixels"
    cross_modal: bool = False
    task: str = ""
    position_range: float = 0.02
    head_range: float = 0.02
    projection_dim: int = 512
    projection: str = "per_view"
    logit_scale_start: float = 1 / 0.07
    logit_bias: bool = False

    @property
    def patch_side(self) -> int:
        """Pixels of a patch's side."""
        side = 1
        for stride in self.patchify_strides:
            side *= stride
        return side

    @property
    def num_patches(self) -> int:
        """Patches of one image, without the image [CLS]."""
        return (self.image_size // self.patch_side) ** 2

    @property
    def has_image_cls(self) -> bool:
        """Whether an image [CLS] stands before the patches."""
        return self.image_cls

    @property
    def num_image_tokens(self) -> int:
        """Tokens of one image: its patches, and its [CLS] where it has one."""
        return self.num_patches + int(self.has_image_cls)

    @property
    def architecture(self) -> str:
        """As `model.architecture` names it."""
        return self.model_type.removeprefix("mbsd_")

    @property
    def known_views(self) -> tuple[str, ...]:
        """What the model can be shown."""
        return VIEW_NAMES

    @property
    def views_to_first(self) -> tuple[str, ...]:
        """The views for which `Backbone.represent` runs the last layer for the first tokens alone."""
        return ()

    @property
    def image_multiplications(self) -> int:
        """Of the network that makes tokens of one image."""
        channels, side, total = (3, *self.patchify_channels, self.hidden_size), self.image_size, 0
        last = len(self.patchify_strides) - 1
        for index, stride in enumerate(self.patchify_strides):
            side //= stride
            kernel = overlapping_kernel(stride) if self.patchify_blocks else stride
            total += channels[index] * channels[index + 1] * kernel**2 * side**2
            if 0 < index < last:
                total += self.patchify_blocks * 2 * 9 * channels[index + 1] ** 2 * side**2
        return total

    def decoder_multiplications(self, lengths: Sequence[int], written: Sequence[int] | None) -> int:
        """Of what follows the encoder's own: what is written after, or read out of, sequences of these lengths.

        Args:
            written: tokens of each sequence, in the generative stage; None: the model is asked for h.
        """
        return 0

    @property
    def image_target_size(self) -> int | None:
        """Numbers that stage 1 predicts for each masked patch; None where patches have no targets.

        Raises:
            UserError: patches of this size have no targets of this kind.
        """
        return self.patch_target_size

    @property
    def patch_target_size(self) -> int:
        """The same of square patches of pixels."""
        return gradient_target_size(self.patch_side) if self.mpm_target == "hog" else 3 * self.patch_side**2

    def backbone(self) -> Any:
        """A new backbone of this configuration (`mbsd.model.backbone.Backbone`)."""
        raise TypeError(f"{type(self).__name__} is not an architecture: use one of mbsd.model.families")

    def require_views(self, views: Iterable[str], setting: str) -> None:
        """Raise UserError where one of `views`, which `setting` asks for, is none that the model reads."""
        unknown = [view for view in views if view not in self.known_views]
        if unknown:
            raise UserError(
                f"{setting}: the view {unknown[0]} is none of a {self.architecture}, which reads "
                f"{', '.join(self.known_views)} alone; ask for {list(self.known_views)}".replace("'", "")
            )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of a fine-tuned model: what its labels 0, 1, … mean (transformers' `id2label`)."""
        names: dict[Any, str] = self.id2label or {}
        return tuple(name for _, name in sorted((int(label), name) for label, name in names.items()))


@strict
class BaselineConfig(BackboneConfig):
    """MBSD's configuration without its image side; each baseline defines how many image tokens it has."""

    model_type = "mbsd_baseline"

    @property
    def image_target_size(self) -> int | None:
        """None: most baselines' image tokens are no patches whose pixels stage 1 could ask for."""
        return None
