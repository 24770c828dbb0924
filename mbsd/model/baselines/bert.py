"""BERT, which reads the text alone: `[CLS] title [SEP]`, or `[CLS] tag [SEP] title [SEP]`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import Tensor

from mbsd.model.backbone import BertTrunk
from mbsd.model.config import BaselineConfig


@strict
class BertBaselineConfig(BaselineConfig):
    """A BERT; an image has no token."""

    model_type = "mbsd_bert"

    @property
    def views_to_first(self) -> tuple[str, ...]:
        """The text (`BertTrunk`)."""
        return self.known_views

    @property
    def num_patches(self) -> int:
        """None."""
        return 0

    @property
    def known_views(self) -> tuple[str, ...]:
        """The text."""
        return ("text",)

    @property
    def image_multiplications(self) -> int:
        """None."""
        return 0

    def backbone(self) -> BertBaseline:
        """A new one."""
        return BertBaseline(self)


class BertBaseline(BertTrunk):
    """transformers' BertModel over packed text; h is its pooled [CLS]."""

    config_class = BertBaselineConfig

    def __init__(self, config: BertBaselineConfig) -> None:
        super().__init__(config)
        self.post_init()

    def embed_images(self, pixels: Tensor, patch_source: Tensor | None = None) -> Tensor:
        """No token of any picture: [0, D]."""
        return pixels.new_zeros(0, self.config.hidden_size)
