"""Every trainable baseline by its name in `model.architecture`, and how each begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers import ViTModel

from mbsd.config.run import BaseConfig
from mbsd.errors import UserError
from mbsd.model.backbone import BaselineConfig
from mbsd.model.baselines.bert import BertBaselineConfig
from mbsd.model.baselines.fashionbert import FashionBertConfig
from mbsd.model.baselines.kaleido import KaleidoConfig
from mbsd.model.baselines.resnet import load_resnet
from mbsd.model.baselines.vilt import ViltBaselineConfig
from mbsd.model.baselines.vit import VitConfig, copy_vit
from mbsd.model.load import MBSD, Family, fresh_config
from mbsd.model.mbsd import MbsdConfig, MbsdPreTrainedModel

M = TypeVar("M", bound=MbsdPreTrainedModel)


def _text_alone(config: BaseConfig, head: Mapping[str, Any], vocab_size: int) -> MbsdConfig:
    return fresh_config(config, head, vocab_size, BertBaselineConfig)


def _cropped(kind: type[FashionBertConfig], config: BaseConfig, head: Mapping[str, Any], vocab_size: int) -> MbsdConfig:
    return fresh_config(config, head, vocab_size, kind, crop_size=config.model.crop_size)


def _linear(kind: type[BaselineConfig], config: BaseConfig, head: Mapping[str, Any], vocab_size: int) -> MbsdConfig:
    linear = dataclasses.replace(config, model=dataclasses.replace(config.model, patchify="linear"))
    return fresh_config(linear, head, vocab_size, kind)


def _from_vit(model_class: type[M], wanted: MbsdConfig, backbone: str) -> M:
    """A model that begins with a ViT checkpoint's sizes and weights.

    Raises:
        UserError: no ViT there, or one of other pictures or patches.
    """
    advice = "give a ViT's folder with config.json and model.safetensors, or a hub name that this machine can reach"
    try:
        loaded: Any = ViTModel.from_pretrained(backbone, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"model.backbone={backbone}: no ViT checkpoint could be loaded ({str(error).splitlines()[0]}); {advice}"
        ) from error
    vit, info = loaded
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(f"model.backbone={backbone}: not a ViT checkpoint ({missing[0]} is missing); {advice}")
    for ours, theirs, name in (
        (wanted.image_size, vit.config.image_size, "data.image_size"),
        (wanted.patch_side, vit.config.patch_size, "the product of model.patchify_strides"),
    ):
        if ours != theirs:
            raise UserError(
                f"{name} is {ours}, but model.backbone={backbone} was trained with {theirs}; set it to that"
            )
    sizes = {
        name: getattr(vit.config, name)
        for name in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "layer_norm_eps", "qkv_bias", "initializer_range",
        )
    }  # fmt: skip
    model: Any = model_class(type(wanted).from_dict({**wanted.to_dict(), **sizes}))
    copy_vit(model.mbsd, vit)
    started: M = model
    return started


def load_image_weights(model: Any, path: str) -> None:
    """Give a model with crops (`model.image_weights`) the ResNet-50 of a local file; raises UserError."""
    load_resnet(model.mbsd.crops, path)


FAMILIES: dict[str, Family] = {
    "mbsd": MBSD,
    "bert": Family(_text_alone),
    "vit": Family(lambda *given: _linear(VitConfig, *given), _from_vit),
    "vilt": Family(lambda *given: _linear(ViltBaselineConfig, *given), _from_vit),
    "fashionbert": Family(lambda *given: _cropped(FashionBertConfig, *given)),
    "kaleido": Family(lambda *given: _cropped(KaleidoConfig, *given)),
}
