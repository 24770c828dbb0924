"""The model as a function of padded tensors, for runtimes without packing: the ONNX graph is made from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.embedder import NO_TEXT
from mbsd.model.heads import MbsdForClassification, MbsdForContrastive, MbsdForMatching
from mbsd.model.mbsd import MbsdModel


class PaddedMbsd(nn.Module):
    """MBSD on one view of each sample; the inputs decide which.

    full: the whole text and the image; text: image_mask 0; image: only `[CLS] query [SEP]` of the text (`[CLS] [SEP]`
    of a single text) and the image.
    """

    def __init__(self, model: MbsdPreTrainedModel) -> None:
        super().__init__()
        backbone: Any = model if isinstance(model, MbsdModel) else model.mbsd
        self.mbsd: MbsdModel = backbone
        self.head: nn.Linear | None = None
        if isinstance(model, MbsdForMatching):
            self.head = model.match
        elif isinstance(model, MbsdForClassification):
            self.head = model.classifier

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        pixel_values: Tensor,
        image_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """Representations h [B, D] and, if the model has such a head, logits [B] ([B, C] for C classes or views).

        Args:
            input_ids, attention_mask, token_type_ids: int64 [B, L]; mask 1: a token, 0: padding at the end.
            pixel_values: float [B, 3, h, w], normalised; any values for a sample without image.
            image_mask: int64 [B]; 1: the model sees the image.
        """
        mbsd = self.mbsd
        text_BLD = mbsd.embeddings(input_ids=input_ids, token_type_ids=token_type_ids) + mbsd.modality_2D[0]
        patches_BPD = mbsd.embed_images(pixel_values, None).unflatten(0, (input_ids.shape[0], -1))
        shown_BP = image_mask[:, None].expand(-1, patches_BPD.shape[1])
        mask_BT = torch.cat([attention_mask, shown_BP], dim=1)
        h_BD = represent(mbsd, torch.cat([text_BLD, patches_BPD], dim=1), mask_BT)
        if self.head is None:
            return (h_BD,)
        logits = self.head(h_BD)
        return h_BD, logits[:, 0] if logits.shape[1] == 1 else logits


class PaddedContrastive(nn.Module):
    """A model of the contrastive stage on A titles and B pictures, each by itself: as many of either as there are.

    Args:
        ends: the tokens [CLS] and [SEP], between which a picture's view shows no title.
    """

    def __init__(self, model: MbsdForContrastive, ends: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.ends_1L: Tensor
        self.register_buffer("ends_1L", torch.tensor([ends]), persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        pixel_values: Tensor,
        image_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors [A, E] of the titles and [B, E] of the pictures; zeros for an empty title or a hidden picture.

        Args:
            input_ids, attention_mask, token_type_ids: int64 [A, L]; mask 1: a token, 0: padding at the end.
            pixel_values: float [B, 3, h, w], normalised; any values for a hidden picture.
            image_mask: int64 [B]; 0: hidden.
        """
        mbsd: Any = self.model.mbsd
        text_ALD = mbsd.embeddings(input_ids=input_ids, token_type_ids=token_type_ids) + mbsd.modality_2D[0]
        has_text_A = attention_mask.sum(1) > NO_TEXT
        text_AE = self.model.project(represent(mbsd, text_ALD, attention_mask), "text") * has_text_A[:, None]
        ends_1LD = mbsd.embeddings(input_ids=self.ends_1L) + mbsd.modality_2D[0]
        pictures = pixel_values.shape[0]
        patches_BPD = mbsd.embed_images(pixel_values, None).unflatten(0, (pictures, -1))
        tokens_BTD = torch.cat([ends_1LD.expand(pictures, -1, -1), patches_BPD], dim=1)
        image_BE = self.model.project(represent(mbsd, tokens_BTD, None), "image") * image_mask[:, None]
        return text_AE, image_BE


def represent(mbsd: MbsdModel, tokens_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Padded sequences of embedded tokens -> h [B, D]; mask 0: nobody sees the token; None: all see all."""
    mask = None if mask_BT is None else mask_BT.bool()[:, None, None]
    hidden_BTD = mbsd.encoder(tokens_BTD, attention_mask=mask).last_hidden_state
    h_BD: Tensor = mbsd.pooler(hidden_BTD) if mbsd.config.representation == "pooled" else hidden_BTD[:, 0]
    return h_BD
