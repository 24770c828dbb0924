"""The one table of architectures, MBSD among its baselines: how a model of each begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModel

from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.errors import UserError
from mbsd.model.backbone import Backbone
from mbsd.model.baselines.bert import BertBaseline, BertBaselineConfig
from mbsd.model.baselines.fashionbert import FashionBert, FashionBertConfig
from mbsd.model.baselines.kaleido import KaleidoBert, KaleidoConfig
from mbsd.model.baselines.m6 import M6, M6Config
from mbsd.model.baselines.ofa import Ofa, OfaConfig
from mbsd.model.baselines.vilt import ViltBaseline, ViltBaselineConfig
from mbsd.model.baselines.vit import VitBaseline, VitConfig
from mbsd.model.config import BackboneConfig
from mbsd.model.foreign import (
    from_bert,
    from_vilt,
    from_vit,
    load_image_tower,
    load_resnet_of_crops,
    load_resnet_of_pictures,
    text_tower_from_bert,
)
from mbsd.model.fresh import fresh_config
from mbsd.model.mbsd import MbsdConfig, MbsdModel
from mbsd.model.two_tower import TwoTower, TwoTowerConfig


def _cropped(model: ModelConfig, data: DataConfig, vocab_size: int, **more: Any) -> BackboneConfig:
    return _staged(model, data, vocab_size, crop_size=model.crop_size, **more)


def _staged(model: ModelConfig, data: DataConfig, vocab_size: int, **more: Any) -> BackboneConfig:
    if model.resnet_blocks is not None:
        more["resnet_blocks"] = model.resnet_blocks
    return fresh_config(model, data, vocab_size, **more)


def _no_backbone(model_class: Any, wanted: BackboneConfig, backbone: str) -> Any:
    raise UserError(
        f"model.backbone={backbone}: a {wanted.architecture} begins with fresh weights or those of run.init_from; "
        "remove it"
    )


def _linear(model: ModelConfig, data: DataConfig, vocab_size: int, **more: Any) -> BackboneConfig:
    return fresh_config(dataclasses.replace(model, patchify="linear"), data, vocab_size, **more)


@dataclass(frozen=True)
class Family:
    """How models of one architecture begin.

    Attributes:
        config, backbone: their classes.
        fresh: (model and data settings of the run, words, kind=class, **settings of the head) -> configuration.
        load: (model class, configuration, model.backbone) -> the model with that checkpoint's weights; or UserError.
        load_images: (model, model.image_weights) gives the model that checkpoint's weights; or UserError.
    """

    config: type[BackboneConfig]
    backbone: type[Backbone]
    fresh: Callable[..., BackboneConfig] = fresh_config
    load: Callable[[Any, BackboneConfig, str], Any] = from_bert
    load_images: Callable[[Any, str], None] = load_resnet_of_crops


FAMILIES: dict[str, Family] = {
    "mbsd": Family(MbsdConfig, MbsdModel),
    "bert": Family(BertBaselineConfig, BertBaseline),
    "vit": Family(VitConfig, VitBaseline, _linear, from_vit),
    "vilt": Family(ViltBaselineConfig, ViltBaseline, _linear, from_vilt),
    "fashionbert": Family(FashionBertConfig, FashionBert, _cropped),
    "kaleido": Family(KaleidoConfig, KaleidoBert, _cropped),
    "m6": Family(M6Config, M6, _cropped),
    "ofa": Family(OfaConfig, Ofa, _staged, _no_backbone, load_resnet_of_pictures),
    "two_tower": Family(TwoTowerConfig, TwoTower, _linear, text_tower_from_bert, load_image_tower),
}

# `AutoModel` and `AutoConfig` know what is in the table.
for _family in FAMILIES.values():
    AutoConfig.register(_family.config.model_type, _family.config)
    AutoModel.register(_family.config, _family.backbone)
