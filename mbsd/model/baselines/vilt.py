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
    def has_image_cls(self) -> bool:
        """Always."""
        return True

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

    def image_tokens(self, features: Tensor) -> Tensor:
        """The image's [CLS] and the projected patches, with positions, dropout and modality vector 1:
        [I * (1 + patches), D]."""
        images, _, width = features.shape
        cls = self.cls_D.expand(images, 1, width)
        placed: Tensor = self.dropout(torch.cat([cls, features], dim=1) + self.image_position_PD)
        return (placed + self.modality_2D[1]).reshape(-1, width)
