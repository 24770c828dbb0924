"""MBSD: one BERT reads a product's text and image patches in one stream (SPEC 1 and 2; dimension letters: batch.py)."""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from mbsd.batch import Batch
from mbsd.errors import UserError
from mbsd.model.backbone import BertTrunk
from mbsd.model.config import BackboneConfig
from mbsd.model.gradients import patch_targets
from mbsd.model.patchify import LastOfBlock, Patchify, blank_patches


@strict
class MbsdConfig(BackboneConfig):
    """MBSD's own."""

    model_type = "mbsd"

    @property
    def views_to_first(self) -> tuple[str, ...]:
        """All (`BertTrunk`)."""
        return self.known_views

    def backbone(self) -> MbsdModel:
        """A new one."""
        return MbsdModel(self)


class MbsdModel(BertTrunk):
    """The backbone of MBSD.

    Parameters beside BERT's: the patchify network; `image_position_PD`, learned positions of the patches;
    `modality_2D`, added to text (0) and image (1) tokens; `mask_D`, which stands for a masked patch in stage 1; and,
    with `image_cls`, `image_cls_D` before the patches.
    """

    config_class = MbsdConfig
    has_mask_vector = True

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        if config.image_size % config.patch_side:
            raise UserError(
                f"data.image_size={config.image_size} is not a multiple of the patch side {config.patch_side}, the "
                f"product of model.patchify_strides={list(config.patchify_strides)}; choose a multiple"
            )
        self.patchify = Patchify(
            config.patchify_strides, config.patchify_channels, config.hidden_size, config.patchify_blocks
        )
        self.image_dropout = nn.Dropout(config.hidden_dropout_prob)
        patch_tokens = config.num_patches + int(config.image_cls)
        self.image_position_PD = nn.Parameter(torch.zeros(patch_tokens, config.hidden_size))
        self.modality_2D = nn.Parameter(torch.zeros(2, config.hidden_size))
        self.mask_D = nn.Parameter(torch.zeros(config.hidden_size))
        self.image_cls_D = nn.Parameter(torch.zeros(config.hidden_size)) if config.image_cls else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LastOfBlock):
            init.zeros_(module.weight)
        if isinstance(module, MbsdModel):
            for parameter in (module.image_position_PD, module.modality_2D):
                init.normal_(parameter, 0.0, self.config.position_range)
            init.normal_(module.mask_D, 0.0, self.config.initializer_range)
            if module.image_cls_D is not None:
                init.normal_(module.image_cls_D, 0.0, self.config.initializer_range)

    def embed_text(self, batch: Batch) -> Tensor:
        """BERT's embedding of the N text tokens, plus modality vector 0: [N, D]."""
        return super().embed_text(batch) + self.modality_2D[0]

    def embed_images(self, pixels: Tensor, patch_source: Tensor | None = None) -> Tensor:
        """Patchified, masked (stage 1), placed and marked with modality vector 1: [I * P, D]."""
        if patch_source is not None and self.config.patchify_blocks:
            # An overlapping stem would carry what is hidden into the features of the patches around it.
            own = torch.arange(len(patch_source), device=patch_source.device)
            pixels = blank_patches(pixels, self.config.patch_side, patch_source != own)
        features = self.patchify(pixels)
        images, patches, width = features.shape
        if patch_source is not None:
            features = torch.cat([features.reshape(-1, width), self.mask_D[None]])[patch_source]
            features = features.view(images, patches, width)
        if self.image_cls_D is not None:
            features = torch.cat([self.image_cls_D.expand(images, 1, width), features], dim=1)
        placed: Tensor = self.image_dropout(features + self.image_position_PD)
        return (placed + self.modality_2D[1]).reshape(-1, width)

    def image_stem(self) -> list[nn.Parameter]:
        """Of the patchify network; positions of patches; the vectors of a masked patch and of the image's [CLS]."""
        cls = [self.image_cls_D] if self.image_cls_D is not None else []
        return [*self.patchify.parameters(), self.image_position_PD, self.mask_D, *cls]

    def image_targets(self, images: Tensor, pixels: Tensor, rows_Q: Tensor) -> Tensor:
        """The pixels of patches, [Q, 3 * patch_side**2] (Eq. 2), or their gradients and colours."""
        return patch_targets(self.config, images, pixels, rows_Q)

    def freeze_for_tasks(self) -> None:
        """Freeze what no head on h reads: the mask vector (stage 1's) and, with `representation: cls`, the pooler."""
        super().freeze_for_tasks()
        self.mask_D.requires_grad_(False)
