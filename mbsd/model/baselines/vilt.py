"""ViLT: words as BERT embeds them and linear 32-pixel patches in one stream that was a ViT (Kim et al. 2021).

It begins as a ViT (`model.backbone`), as the paper's did; its words begin at random.
"""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertEmbeddings

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.model.backbone import embed_words
from mbsd.model.baselines.vit import VitConfig, VitTrunk


@strict
class ViltBaselineConfig(VitConfig):
    """ViLT-B/32; the image's own [CLS] is a token too."""

    model_type = "mbsd_vilt"

    @property
    def num_patches(self) -> int:
        """Patches and the image's [CLS]."""
        return 1 + int((self.image_size // self.patch_side) ** 2)

    @property
    def known_views(self) -> tuple[str, ...]:
        """All."""
        return VIEW_NAMES

    def backbone(self) -> ViltBaseline:
        """A new one."""
        return ViltBaseline(self)


class ViltBaseline(VitTrunk):
    """ViLT; h is the pooled [CLS] of the text."""

    config_class = ViltBaselineConfig

    def __init__(self, config: ViltBaselineConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.modality_2D = nn.Parameter(torch.zeros(2, config.hidden_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViltBaseline):
            init.normal_(module.modality_2D, 0.0, self.config.position_range)

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.embeddings.word_embeddings

    def embed_text(self, batch: Batch) -> Tensor:
        """BERT's embedding of the N text tokens, plus modality vector 0: [N, D]."""
        return embed_words(self.embeddings, batch) + self.modality_2D[0]

    def embed_images(self, pixels: Tensor, patch_source: Tensor | None = None) -> Tensor:
        """[I * (1 + patches), D]."""
        patches = self.patches(pixels)
        images, _, width = patches.shape
        cls = (self.cls_D + self.image_position_PD[0]).expand(images, 1, width)
        dropped: Tensor = self.dropout(torch.cat([cls, patches], dim=1))
        return (dropped + self.modality_2D[1]).reshape(-1, width)
