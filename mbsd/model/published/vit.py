"""Image models whose stream is a ViT's: ViT, CLIP's image tower, ViLT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    ChineseCLIPModel,
    ChineseCLIPVisionModel,
    CLIPModel,
    CLIPVisionModel,
    ViltConfig,
    ViltForMaskedLM,
    ViTModel,
)

from mbsd.errors import UserError
from mbsd.model.config import BackboneConfig
from mbsd.model.published.checkpoint import Loaded, Published, Weight, config_of, load, refuse_type
from mbsd.model.published.pixels import (
    CLIPS,
    HALVES,
    OURS,
    Statistics,
    fold_statistics,
    pixel_statistics,
    resize_positions,
)

TOWER_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
VIT_BEHAVIOUR = ("hidden_act", "layer_norm_eps", "qkv_bias", "initializer_range")
WORD_SIZES = ("vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")
CLIP_CLASSES: dict[str, type[Any]] = {
    "clip": CLIPModel,
    "clip_vision_model": CLIPVisionModel,
    "chinese_clip": ChineseCLIPModel,
    "chinese_clip_vision_model": ChineseCLIPVisionModel,
}
VITS = ("vit", *CLIP_CLASSES)
KIND = "ViT"  # in messages, where it may be any of them

# Of a layer: our name (that of transformers' ViT) -> theirs.
CLIP_LAYER = {
    "attention.q_proj": "self_attn.q_proj", "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj", "attention.o_proj": "self_attn.out_proj",
    "layernorm_before": "layer_norm1", "layernorm_after": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
VILT_LAYER = {
    "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
    "layernorm_before": "layernorm_before", "layernorm_after": "layernorm_after", "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}  # fmt: skip


class ViltWithBias(ViltForMaskedLM):
    """With the word head's bias where published checkpoints have it."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.mlm_score.bias = nn.Parameter(torch.zeros(config.vocab_size))


class _Tower:
    """What is read of every kind: patches, positions and [CLS], laid out for our pictures."""

    def __init__(self, wanted: BackboneConfig, path: str, setting: str, found: Loaded) -> None:
        self.wanted, self.path, self.setting, self.found = wanted, path, setting, found
        self.backbone: dict[str, Weight] = {}
        self.notes: list[str] = []

    def take(self, names: Mapping[str, str]) -> None:
        """Weights that are ours as they are."""
        self.backbone |= self.found.weights(names)

    def patches(self, name: str, default: Statistics) -> None:
        """The projection of patches, `name` with or without a bias."""
        weight, bias = self.found.weight(f"{name}.weight"), self.found.weight(f"{name}.bias")
        assert weight is not None, "`load` has refused a checkpoint without it"
        if weight.value.shape[-1] != self.wanted.patch_side:
            raise UserError(
                f"the product of model.patchify_strides is {self.wanted.patch_side}, but {self.setting} was trained "
                f"with {weight.value.shape[-1]}; set it to that"
            )
        statistics, note = pixel_statistics(self.path, default, self.setting)
        folded = fold_statistics(weight.value, None if bias is None else bias.value, statistics)
        self.backbone["projection.weight"] = Weight(weight.source, folded[0])
        self.backbone["projection.bias"] = Weight((bias or weight).source, folded[1])
        self.notes += [note] if statistics != OURS or note.startswith("no ") else []

    def positions(self, cls: str, positions: str, *, aligned: bool = False) -> None:
        """[CLS] and the positions of it and of the patches."""
        first, table = self.found.weight(cls), self.found.weight(positions)
        assert first is not None and table is not None, "`load` has refused a checkpoint without them"
        grid = self.wanted.image_size // self.wanted.patch_side
        rows = table.value.reshape(-1, table.value.shape[-1])
        resized, note = resize_positions(rows, grid, self.setting, aligned=aligned)
        self.backbone["cls_D"] = Weight(cls, first.value.flatten())
        self.backbone["image_position_PD"] = Weight(positions, resized)
        self.notes += [note] if note else []

    def published(self, kind: str, sizes: Mapping[str, Any], head: Mapping[str, Weight] | None = None) -> Published:
        """All of it."""
        return Published(kind, self.setting, sizes, self.backbone, head or {}, self.found.held, tuple(self.notes))


def read_image_model(wanted: BackboneConfig, path: str, setting: str) -> Published:
    """The ViT, or image tower of a CLIP, of a folder or hub name, for the pictures of `wanted`.

    Raises:
        UserError: nothing of the kind there, or one of other patches.
    """
    config = config_of(path, KIND, setting)
    refuse_type(config, VITS, KIND, setting)
    if config.get("model_type") in CLIP_CLASSES:
        return _read_clip(wanted, path, setting, config["model_type"])
    found = load(ViTModel, path, KIND, setting, may_lack=("pooler.",))
    tower = _Tower(wanted, path, setting, found)
    tower.take({f"layers.{name}": f"layers.{name}" for name, _ in found.model.layers.named_parameters()})
    tower.take({f"layernorm.{kind}": f"layernorm.{kind}" for kind in ("weight", "bias")})
    tower.positions("embeddings.cls_token", "embeddings.position_embeddings")
    tower.patches("embeddings.patch_embeddings.projection", OURS)
    return tower.published(KIND, _sizes(found.model.config) | {"pre_norm": False})


def read_vilt(wanted: BackboneConfig, path: str, setting: str) -> Published:
    """The ViLT of a folder or hub name, whole; or what `read_image_model` reads.

    Raises:
        UserError: nothing of the kind there, or one of other patches.
    """
    if config_of(path, KIND, setting).get("model_type") != "vilt":
        return read_image_model(wanted, path, setting)
    found = load(ViltWithBias, path, "ViLT", setting, may_lack=("mlm_score.", "vilt.pooler."))
    tower = _Tower(wanted, path, setting, found)
    root, words = "vilt.embeddings.text_embeddings", found.model.vilt.embeddings.text_embeddings
    tower.take({f"embeddings.{name}": f"{root}.{name}" for name, _ in words.named_parameters()})
    config: Any = found.model.config
    tower.take(_layers(config.num_hidden_layers, VILT_LAYER, lambda number: f"vilt.encoder.layer.{number}."))
    tower.take(_linear({"layernorm": "vilt.layernorm", "pooler.dense": "vilt.pooler.dense"}))
    tower.positions("vilt.embeddings.cls_token", "vilt.embeddings.position_embeddings", aligned=True)
    tower.patches("vilt.embeddings.patch_embeddings.projection", HALVES)
    modality = found.weight("vilt.embeddings.token_type_embeddings.weight", lambda table: table[:2])
    assert modality is not None, "`load` has refused a checkpoint without it"
    tower.backbone["modality_2D"] = modality
    sizes = _sizes(config) | {name: getattr(config, name) for name in WORD_SIZES} | {"pre_norm": False}
    return tower.published("ViLT", sizes, _vilt_words(found))


def _read_clip(wanted: BackboneConfig, path: str, setting: str, kind: str) -> Published:
    whole = not kind.endswith("_vision_model")
    text = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
    found = load(CLIP_CLASSES[kind], path, "CLIP", setting, may_lack=text if whole else ())
    root = "vision_model." if whole else ""
    tower = _Tower(wanted, path, setting, found)
    config: Any = getattr(found.model.config, "vision_config", found.model.config)
    tower.take(_layers(config.num_hidden_layers, CLIP_LAYER, lambda number: f"{root}encoder.layers.{number}."))
    tower.take(_linear({"pre_layernorm": f"{root}pre_layrnorm", "layernorm": f"{root}post_layernorm"}))
    tower.positions(f"{root}embeddings.class_embedding", f"{root}embeddings.position_embedding.weight")
    tower.patches(f"{root}embeddings.patch_embedding", CLIPS)
    projection = found.weights({"image_projection.weight": "visual_projection.weight"})
    return tower.published("CLIP", _sizes(config) | {"qkv_bias": True, "pre_norm": True}, projection)


def _vilt_words(found: Loaded) -> dict[str, Weight]:
    """Of the head for masked words, whose bias has two names."""
    transform = "mlm_score.transform"
    names = _linear({f"word_transform.{part}": f"{transform}.{part}" for part in ("dense", "LayerNorm")})
    head = found.all_of(names)
    bias = found.weight("mlm_score.bias") or found.weight("mlm_score.decoder.bias")
    return {**head, "word_bias": bias} if head and bias is not None else {}


def _sizes(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in (*TOWER_SIZES, *VIT_BEHAVIOUR) if hasattr(config, name)}


def _layers(count: int, names: Mapping[str, str], root: Callable[[int], str]) -> dict[str, str]:
    return _linear({f"layers.{n}.{ours}": f"{root(n)}{theirs}" for n in range(count) for ours, theirs in names.items()})


def _linear(names: Mapping[str, str]) -> dict[str, str]:
    """Of layers with a weight and a bias."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in names.items() for kind in ("weight", "bias")}
