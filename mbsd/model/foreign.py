"""Checkpoints that others wrote: a BERT, a ViT, a ResNet-50."""

from __future__ import annotations

from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers import BertForPreTraining, PreTrainedModel, ViTModel

from mbsd.errors import UserError
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.baselines.resnet import load_resnet
from mbsd.model.baselines.vit import copy_vit
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import MbsdForMaskedModelling

M = TypeVar("M", bound=MbsdPreTrainedModel)
P = TypeVar("P", bound=PreTrainedModel)


def read_bert(config: BackboneConfig, backbone: str) -> tuple[BackboneConfig, BertForPreTraining]:
    """A BERT checkpoint and `config` with that BERT's sizes.

    Raises:
        UserError: nothing of the kind at `backbone`, or a model of another kind.
    """
    bert = _load(BertForPreTraining, "BERT", backbone, may_lack=("bert.pooler.", "cls."))
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
    if isinstance(model, MbsdForMaskedModelling):
        model.copy_word_head(bert)
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
    vit = _load(ViTModel, "ViT", backbone, may_lack=("pooler.",))
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


def _load(model_class: type[P], kind: str, backbone: str, *, may_lack: tuple[str, ...]) -> P:
    """A transformers model with all weights of the checkpoint; only names that begin as in `may_lack` may be missing.

    Raises:
        UserError: no such checkpoint, or another of its weights is missing.
    """
    advice = f"give a {kind}'s folder with config.json and model.safetensors, or a hub name that this machine can reach"
    try:
        loaded: Any = model_class.from_pretrained(backbone, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"model.backbone={backbone}: no {kind} checkpoint could be loaded ({str(error).splitlines()[0]}); {advice}"
        ) from error
    model: P
    model, info = loaded
    # What a checkpoint lacks transformers fills with random numbers and a warning.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(may_lack))
    if missing:
        raise UserError(
            f"model.backbone={backbone}: not a {kind} checkpoint, {len(missing)} of its weights are missing "
            f"({missing[0]}, ...); {advice}"
        )
    return model
