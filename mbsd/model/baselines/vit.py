"""ViT, which reads the image; a tag's or query's words are looked up in a table of their own and share its trunk.

So the paper has it (4.4): `[CLS] tag [SEP]` before the patches, and no title. The [CLS] is ViT's own, with its own
position: without a tag all that ViT's input has more than usual is the [SEP].
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.vit.modeling_vit import ViTLayer

from mbsd.batch import Batch
from mbsd.errors import UserError
from mbsd.model.attention import AttentionPlan
from mbsd.model.backbone import OneStream
from mbsd.model.config import BaselineConfig
from mbsd.model.gradients import patch_targets


@strict
class VitConfig(BaselineConfig):
    """ViT-B/32 (google/vit-base-patch32-224-in21k)."""

    model_type = "mbsd_vit"

    qkv_bias: bool = True
    patchify_strides: list[int] | tuple[int, ...] = (32,)
    patchify_channels: list[int] | tuple[int, ...] = ()

    @property
    def known_views(self) -> tuple[str, ...]:
        """The image."""
        return ("image",)

    @property
    def image_target_size(self) -> int | None:
        """As MBSD's: its patches are squares of pixels too."""
        return self.patch_target_size

    def backbone(self) -> VitTrunk:
        """A new one."""
        return VitBaseline(self)


class VitTrunk(OneStream):
    """Backbones whose stream is a ViT's: linear patches, layers that normalise first, a last LayerNorm."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        self.pooler = BertPooler(config)
        if config.image_size % config.patch_side:
            raise UserError(
                f"data.image_size={config.image_size} is not a multiple of the patch side {config.patch_side} (the "
                "product of model.patchify_strides); choose a multiple"
            )
        width = config.hidden_size
        self.projection = nn.Conv2d(3, width, kernel_size=config.patch_side, stride=config.patch_side)
        self.cls_D = nn.Parameter(torch.zeros(width))
        self.image_position_PD = nn.Parameter(torch.zeros(1 + (config.image_size // config.patch_side) ** 2, width))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        settings: Any = config  # it has every setting of a layer that a ViTConfig has
        self.layers = nn.ModuleList([ViTLayer(settings) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VitTrunk):
            for parameter in (module.cls_D, module.image_position_PD):
                init.normal_(parameter, 0.0, self.config.position_range)

    def image_stem(self) -> list[nn.Parameter]:
        """Of the projection of patches; their positions."""
        return [*self.projection.parameters(), self.image_position_PD]

    def embed_images(self, pixels: Tensor, patch_source: Tensor | None = None) -> Tensor:
        """[I * image tokens, D]."""
        assert patch_source is None, "its mask vector is the head's: embed_masked_images"
        return self.image_tokens(self.features(pixels))

    def embed_masked_images(self, pixels: Tensor, patch_source: Tensor, mask_D: Tensor | None) -> Tensor:
        """The same, masked patches replaced before positions are added, as BEiT's and SimMIM's are."""
        assert mask_D is not None, "the head of stage 1 brings the mask vector"
        features = self.features(pixels)
        rows = torch.cat([features.flatten(0, 1), mask_D[None]])[patch_source]
        return self.image_tokens(rows.view(features.shape))

    def features(self, pixels: Tensor) -> Tensor:
        """Projected patches, [I, patches, D]."""
        projected: Tensor = self.projection(pixels).flatten(2).transpose(1, 2)
        return projected

    def image_tokens(self, features: Tensor) -> Tensor:
        """Projected patches with their positions, and dropout: [I * patches, D]."""
        placed: Tensor = self.dropout(features + self.image_position_PD[1:])
        return placed.flatten(0, 1)

    def image_targets(self, images: Tensor, pixels: Tensor, rows_Q: Tensor) -> Tensor:
        """As MBSD's."""
        return patch_targets(self.config, images, pixels, rows_Q)

    def run_trunk(self, tokens_TD: Tensor, plan: AttentionPlan) -> Tensor:
        """ViT's layers and its last LayerNorm."""
        hidden = tokens_TD[None]
        for layer in self.layers:
            hidden = layer(hidden, plan=plan)
        normalised: Tensor = self.layernorm(hidden[0])
        return normalised


class VitBaseline(VitTrunk):
    """ViT with words."""

    config_class = VitConfig

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.word_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.words

    def embed_text(self, batch: Batch) -> Tensor:
        """Words and their positions; the first of each sequence is ViT's [CLS]: [N, D]."""
        looked_up = self.words(batch.input_ids_N) + self.word_positions(batch.position_ids_N)
        is_first_N = batch.position_ids_N == 0
        placed = torch.where(is_first_N[:, None], self.cls_D + self.image_position_PD[0], looked_up)
        dropped: Tensor = self.dropout(placed)
        return dropped


def copy_vit(model: VitTrunk, vit: Any) -> None:
    """Give `model` the weights of a transformers ViTModel; its words keep their initialisation."""
    with torch.no_grad():
        model.cls_D.copy_(vit.embeddings.cls_token[0, 0])
        model.image_position_PD.copy_(vit.embeddings.position_embeddings[0])
    model.projection.load_state_dict(vit.embeddings.patch_embeddings.projection.state_dict())
    model.layers.load_state_dict(vit.layers.state_dict())
    model.layernorm.load_state_dict(vit.layernorm.state_dict())
