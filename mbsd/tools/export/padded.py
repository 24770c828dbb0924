"""The model for inference elsewhere: padded texts and pixels in, representations and logits out (the ONNX graph)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.heads import MbsdForClassification, MbsdForMatching
from mbsd.model.mbsd import MbsdModel


class PaddedMbsd(nn.Module):
    """One view of each sample; which one is a matter of what is shown (SPEC 1).

    full: the whole text and the image; text: image_mask 0; image: `[CLS] query [SEP]` (`[CLS] [SEP]` of a single text)
    and the image.
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
        """Representations h [B, D] and, where the model has such a head, logits [B] ([B, C] of C classes or views).

        Args:
            input_ids, attention_mask, token_type_ids: int64 [B, L]; mask 1: a token, 0: padding behind it.
            pixel_values: float [B, 3, h, w], normalised; anything where a sample has no image.
            image_mask: int64 [B]; 1: the image is shown.
        """
        mbsd = self.mbsd
        text_BLD = mbsd.embeddings(input_ids=input_ids, token_type_ids=token_type_ids) + mbsd.modality_2D[0]
        patches_BPD = mbsd.embed_images(pixel_values, None).unflatten(0, (input_ids.shape[0], -1))
        tokens_BTD = torch.cat([text_BLD, patches_BPD], dim=1)
        shown_BP = image_mask[:, None].expand(-1, patches_BPD.shape[1])
        mask_BT = torch.cat([attention_mask, shown_BP], dim=1).bool()
        hidden_BTD = mbsd.encoder(tokens_BTD, attention_mask=mask_BT[:, None, None]).last_hidden_state
        h_BD = mbsd.pooler(hidden_BTD) if mbsd.config.representation == "pooled" else hidden_BTD[:, 0]
        if self.head is None:
            return (h_BD,)
        logits = self.head(h_BD)
        return h_BD, logits[:, 0] if logits.shape[1] == 1 else logits
