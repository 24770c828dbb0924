"""FashionBERT: 16 equal crops of the image, ResNet-50 on each, one linear layer, in one stream with BERT's words
(Gao et al. 2020).

The ResNet is trained with the rest; the authors kept its features on disk, and where those are what is predicted
(`mbsd.model.crop_heads`) it is held fixed too. Crops are resized to the ResNet's own 224 pixels (`model.crop_size`).
"""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from mbsd.batch import Batch
from mbsd.model.backbone import BertTrunk, Encoded
from mbsd.model.baselines.resnet import RESNET_50, CropEncoder, features_of, init_resnet, multiplications
from mbsd.model.config import BaselineConfig


@strict
class FashionBertConfig(BaselineConfig):
    """A BERT and the crops that it sees: `crop_grids` g are g x g crops each.

    Attributes:
        resnet_blocks: of the stages of the ResNet, four or three.
    """

    model_type = "mbsd_fashionbert"

    crop_grids: list[int] | tuple[int, ...] = (4,)
    crop_size: int = 224
    resnet_blocks: list[int] | tuple[int, ...] = RESNET_50

    @property
    def views_to_first(self) -> tuple[str, ...]:
        """All (`BertTrunk`)."""
        return self.known_views

    @property
    def num_patches(self) -> int:
        """Crops of one image."""
        return sum(int(grid) ** 2 for grid in self.crop_grids)

    @property
    def crop_features(self) -> int:
        """F: numbers that the ResNet has of a crop."""
        return features_of(self.resnet_blocks)

    @property
    def image_multiplications(self) -> int:
        """Of the ResNet on all crops of one image."""
        return self.num_patches * multiplications(self.crop_size, tuple(self.resnet_blocks))

    def backbone(self) -> FashionBert:
        """A new one."""
        return FashionBert(self)


class FashionBert(BertTrunk):
    """FashionBERT; h is the pooled [CLS]."""

    config_class = FashionBertConfig

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__(config)
        self.crops = CropEncoder(tuple(config.crop_grids), config.crop_size, config.resnet_blocks)
        self.image_projection = nn.Linear(config.crop_features, config.hidden_size)
        self.image_position_PD = nn.Parameter(torch.zeros(config.num_patches, config.hidden_size))
        self.image_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.image_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_resnet(module)
        if isinstance(module, FashionBert):
            init.normal_(module.image_position_PD, 0.0, self.config.position_range)

    def image_stem(self) -> list[nn.Parameter]:
        """Of the ResNet and what maps its features to tokens; positions of crops."""
        layers = (self.crops, self.image_projection, self.image_norm)
        return [*(p for layer in layers for p in layer.parameters()), self.image_position_PD]

    def embed_images(self, pixels: Tensor, patch_source: Tensor | None = None) -> Tensor:
        """[I * crops, D]."""
        return self._embed_features(self.crops(pixels))

    def encode_features(self, batch: Batch, features_IPF: Tensor, pixels: Tensor) -> Encoded:
        """As `encode`, of crops whose features [I, crops, F] are given: for what hides or exchanges some."""
        tokens = torch.cat([self.embed_text(batch), self._embed_features(features_IPF)])
        return self._encoded(tokens[batch.views.source_T], batch, pixels)

    def _embed_features(self, features_IPF: Tensor) -> Tensor:
        placed = self.image_norm(self.image_projection(features_IPF) + self.image_position_PD)
        dropped: Tensor = self.image_dropout(placed)
        return dropped.flatten(0, 1)
