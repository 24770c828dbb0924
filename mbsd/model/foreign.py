"""Checkpoints that others wrote: a BERT, a ViT, a ResNet-50."""

from __future__ import annotations

from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers import BertForPreTraining, PreTrainedModel, ViTModel

from mbsd.errors import UserError
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.baselines.resnet import load_resnet
from mbsd.model.baselines.vit import VitBaseline, copy_vit
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import WordHead

M = TypeVar("M", bound=MbsdPreTrainedModel)
P = TypeVar("P", bound=PreTrainedModel)
TOWER_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
VIT_BEHAVIOUR = ("hidden_act", "layer_norm_eps", "qkv_bias", "initializer_range")


def read_bert(config: BackboneConfig, backbone: str) -> tuple[BackboneConfig, BertForPreTraining]:
    """A BERT checkpoint and `config` with that BERT's sizes.

    Raises:
        UserError: nothing of the kind at `backbone`, or a model of another kind.
    """
    bert = _load(
        BertForPreTraining, "BERT", backbone, may_lack=("bert.pooler.", "cls."), setting=f"model.backbone={backbone}"
    )
    sizes: dict[str, Any] = {
        name: getattr(bert.config, name)
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "initializer_range",
        )
    }  # fmt: skip
    return type(config).from_dict({**config.to_dict(), **sizes}), bert


def from_bert(model_class: type[M], wanted: BackboneConfig, backbone: str) -> M:
    """A model whose stream is a BERT's, with a BERT checkpoint's sizes and weights; as of `read_bert`."""
    found, bert = read_bert(wanted, backbone)
    model: Any = model_class(found)
    copy_backbone(model.mbsd, bert)
    if isinstance(model, WordHead):
        model.copy_word_head(bert)
    started: M = model
    return started


def text_tower_from_bert(model_class: type[M], wanted: BackboneConfig, backbone: str) -> M:
    """A model of two towers whose text tower has a BERT checkpoint's sizes and weights; as of `read_bert`."""
    found, bert = read_bert(wanted, backbone)
    model: Any = model_class(found)
    copy_backbone(model.mbsd.text, bert)
    started: M = model
    return started


def copy_backbone(model: Any, bert: BertForPreTraining) -> None:
    """Give `model`, whose stream is a BERT's, the weights of a BERT; its image side keeps its initialisation."""
    model.embeddings.load_state_dict(bert.bert.embeddings.state_dict())
    model.encoder.load_state_dict(bert.bert.encoder.state_dict())
    assert bert.bert.pooler is not None, "BertForPreTraining always has one"
    model.pooler.load_state_dict(bert.bert.pooler.state_dict())


def from_vit(model_class: type[M], wanted: BackboneConfig, backbone: str) -> M:
    """A model that begins with a ViT checkpoint's sizes and weights.

    Raises:
        UserError: no ViT there, or one of other pictures or patches.
    """
    vit = _read_vit(wanted, f"model.backbone={backbone}", backbone)
    sizes = {name: getattr(vit.config, name) for name in (*TOWER_SIZES, *VIT_BEHAVIOUR)}
    model: Any = model_class(type(wanted).from_dict({**wanted.to_dict(), **sizes}))
    copy_vit(model.mbsd, vit)
    started: M = model
    return started


def load_image_tower(model: Any, path: str) -> None:
    """Give the image tower of a `two_tower` model (`model.image_weights`) the weights of a ViT checkpoint.

    Raises:
        UserError: no ViT there, or one of other pictures or patches, or of other sizes than the text tower.
    """
    config, setting = model.config, f"model.image_weights={path}"
    vit = _read_vit(config, setting, path)
    for name in TOWER_SIZES:
        ours, theirs = getattr(config, name), getattr(vit.config, name)
        if ours != theirs:
            raise UserError(
                f"{setting}: a ViT with {name}={theirs}, but the text tower has {ours}; two towers are of equal sizes: "
                "name another ViT, or another model.backbone"
            )
    config.image_tower = {name: getattr(vit.config, name) for name in VIT_BEHAVIOUR}
    model.mbsd.image = VitBaseline(config.image_config)
    copy_vit(model.mbsd.image, vit)
    model.freeze_unread()


def load_resnet_of_crops(model: Any, path: str) -> None:
    """Give a model with crops (`model.image_weights`) the ResNet-50 of a local file; raises UserError."""
    load_resnet(model.mbsd.crops, path)


def _read_vit(wanted: BackboneConfig, setting: str, path: str) -> ViTModel:
    """A ViT checkpoint of the pictures and patches of `wanted`; `setting` names it in errors."""
    vit = _load(ViTModel, "ViT", path, may_lack=("pooler.",), setting=setting)
    for ours, theirs, name in (
        (wanted.image_size, vit.config.image_size, "data.image_size"),
        (wanted.patch_side, vit.config.patch_size, "the product of model.patchify_strides"),
    ):
        if ours != theirs:
            raise UserError(f"{name} is {ours}, but {setting} was trained with {theirs}; set it to that")
    return vit


def _load(model_class: type[P], kind: str, path: str, *, may_lack: tuple[str, ...], setting: str) -> P:
    """A transformers model with all weights of the checkpoint; only names that begin as in `may_lack` may be missing.

    Raises:
        UserError: no such checkpoint, or another of its weights is missing.
    """
    advice = f"give a {kind}'s folder with config.json and model.safetensors, or a hub name that this machine can reach"
    try:
        loaded: Any = model_class.from_pretrained(path, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{setting}: no {kind} checkpoint could be loaded ({str(error).splitlines()[0]}); {advice}"
        ) from error
    model: P
    model, info = loaded
    # What a checkpoint lacks transformers fills with random numbers and a warning.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(may_lack))
    if missing:
        raise UserError(
            f"{setting}: not a {kind} checkpoint, {len(missing)} of its weights are missing "
            f"({missing[0]}, ...); {advice}"
        )
    return model
