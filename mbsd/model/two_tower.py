"""Two towers: titles by a BERT, pictures by a ViT, and nothing in common but the space that a head maps both to.

The shape of CLIP and e-CLIP, beside MBSD's one stream. Each tower is the baseline of that name and runs the tokens of
its own view alone: no attention joins a title and a picture, so that there is no view full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from mbsd.batch import Batch
from mbsd.model.backbone import Backbone, Encoded, OneStream
from mbsd.model.baselines.bert import BertBaseline, BertBaselineConfig
from mbsd.model.baselines.vit import VitBaseline, VitConfig
from mbsd.model.config import BaselineConfig


@strict
class TwoTowerConfig(BaselineConfig):
    """A BERT and a ViT of equal sizes.

    Attributes:
        image_tower: settings of the ViT that differ from the BERT's, such as `layer_norm_eps` of its checkpoint.
    """

    model_type = "mbsd_two_tower"

    patchify_strides: list[int] | tuple[int, ...] = (32,)
    patchify_channels: list[int] | tuple[int, ...] = ()
    image_tower: dict[str, Any] | None = None

    @property
    def known_views(self) -> tuple[str, ...]:
        """Each tower's."""
        return ("text", "image")

    @property
    def views_to_first(self) -> tuple[str, ...]:
        """That of the BERT."""
        return ("text",)

    @property
    def text_config(self) -> BertBaselineConfig:
        """Of the text tower."""
        config: BertBaselineConfig = BertBaselineConfig.from_dict(self._of_a_tower())
        return config

    @property
    def image_config(self) -> VitConfig:
        """Of the image tower."""
        config: VitConfig = VitConfig.from_dict(self._of_a_tower() | (self.image_tower or {}))
        return config

    def backbone(self) -> TwoTower:
        """A new one."""
        return TwoTower(self)

    def _of_a_tower(self) -> dict[str, Any]:
        own = ("model_type", "architectures", "image_tower")
        return {name: value for name, value in self.to_dict().items() if name not in own}


class TwoTower(Backbone):
    """h of the view text is the BERT's pooled [CLS], h of the view image the ViT's."""

    config_class = TwoTowerConfig

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        self.text = BertBaseline(config.text_config)
        self.image = VitBaseline(config.image_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's word table; the image tower has one of its own, for tags and queries."""
        return self.text.get_input_embeddings()

    def image_stem(self) -> list[nn.Parameter]:
        """That of the image tower."""
        return self.image.image_stem()

    def pooler_parameters(self) -> list[nn.Parameter]:
        """Of both towers."""
        return [*self.text.pooler_parameters(), *self.image.pooler_parameters()]

    def freeze_for_tasks(self) -> None:
        """What no head on h reads of either tower."""
        self.text.freeze_for_tasks()
        self.image.freeze_for_tasks()

    def represent(self, batch: Batch) -> Tensor:
        """Each view through its own tower."""
        return torch.cat([tower.represent(alone) for tower, alone in self._towers(batch)])

    def _towers(self, batch: Batch) -> Iterator[tuple[OneStream, Batch]]:
        """Of each view, its tower and what that reads."""
        for view, name in enumerate(batch.views.names):
            if name == "text":
                yield self.text, _titles(batch, view)
            else:
                yield self.image, dataclasses.replace(batch, views=batch.views.alone(view))

    def encode(self, batch: Batch) -> Encoded:
        """Each view through its own tower; rows that only fill up (data.token_bucket) go through neither, their hidden
        states are zeros."""
        assert batch.masks is None, "no tower has targets for masked patches"
        pixels = batch.images.new_zeros(0, *batch.images.shape[1:]).to(self.dtype)
        hidden: list[Tensor] = []
        h: list[Tensor] = []
        for tower, alone in self._towers(batch):
            encoded = tower.encode(alone)
            if tower is self.image:
                pixels = encoded.pixels
            hidden.append(encoded.hidden_TD)
            h.append(encoded.h_VBD)
        fill = sum(batch.views.lengths) - sum(batch.views.real_lengths)
        hidden.append(hidden[0].new_zeros(fill, hidden[0].shape[-1]))
        return Encoded(torch.cat(hidden), torch.cat(h), pixels)


def _titles(batch: Batch, view: int) -> Batch:
    """The batch in the view text alone, with its own words alone: it has no picture, and none of the other view's."""
    alone = batch.views.alone(view)
    rows_T = alone.source_T
    return dataclasses.replace(
        batch,
        input_ids_N=batch.input_ids_N[rows_T],
        position_ids_N=batch.position_ids_N[rows_T],
        token_type_ids_N=batch.token_type_ids_N[rows_T],
        images=batch.images[:0],
        views=dataclasses.replace(alone, source_T=torch.arange(sum(alone.lengths), device=rows_T.device)),
    )
