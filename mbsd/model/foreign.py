"""Models that begin with checkpoints that others wrote: BERTs, RoBERTas, ViTs, CLIPs, ViLTs, ResNets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from mbsd.config.model import ModelConfig
from mbsd.errors import UserError
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.baselines.resnet import load_first_stages, load_resnet
from mbsd.model.baselines.vit import VitBaseline
from mbsd.model.config import BackboneConfig
from mbsd.model.published.bert import read_bert
from mbsd.model.published.checkpoint import Published, config_of
from mbsd.model.published.vit import CLIP_CLASSES, KIND, TOWER_SIZES, read_image_model, read_vilt
from mbsd.model.taken_over import FromPublished, Sources

M = TypeVar("M", bound=MbsdPreTrainedModel)


def from_bert(model_class: type[M], wanted: BackboneConfig, backbone: str) -> M:
    """A model whose stream is a BERT's, with a BERT or RoBERTa checkpoint's sizes and weights.

    Raises:
        UserError: as of `read_bert`.
    """
    return _started(model_class, wanted, read_bert(backbone, f"model.backbone={backbone}"))


def text_tower_from_bert(model_class: type[M], wanted: BackboneConfig, backbone: str) -> M:
    """A model of two towers whose text tower has a BERT checkpoint's sizes and weights; as of `from_bert`."""
    return _started(model_class, wanted, read_bert(backbone, f"model.backbone={backbone}"), "text.")


def from_vit(model_class: type[M], wanted: BackboneConfig, backbone: str) -> M:
    """A model that begins with the sizes and weights of a ViT or of a CLIP's image tower.

    Raises:
        UserError: as of `read_image_model`.
    """
    return _started(model_class, wanted, read_image_model(wanted, backbone, f"model.backbone={backbone}"))


def from_vilt(model_class: type[M], wanted: BackboneConfig, backbone: str) -> M:
    """As `from_vit`; or with all of a ViLT.

    Raises:
        UserError: as of `read_vilt`.
    """
    return _started(model_class, wanted, read_vilt(wanted, backbone, f"model.backbone={backbone}"))


def words_of(settings: ModelConfig) -> str | None:
    """The model.backbone that the words come from; None where there is none, or one of an image model.

    A folder of a ViT that somebody has put a tokenizer into has words, as before.
    """
    backbone = settings.backbone
    if backbone is None or settings.architecture not in ("vit", "vilt"):
        return backbone
    found = config_of(backbone, KIND, f"model.backbone={backbone}").get("model_type")
    added = any((Path(backbone) / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    return None if found in CLIP_CLASSES or (found == "vit" and not added) else backbone


def load_image_tower(model: Any, path: str) -> None:
    """Give the image tower of a `two_tower` model (`model.image_weights`) the weights of a ViT or a CLIP.

    Raises:
        UserError: as of `read_image_model`; or one of other sizes than the text tower.
    """
    config, setting = model.config, f"model.image_weights={path}"
    found = read_image_model(config, path, setting)
    for name in TOWER_SIZES:
        ours, theirs = getattr(config, name), found.sizes[name]
        if ours != theirs:
            raise UserError(
                f"{setting}: a {found.kind} with {name}={theirs}, but the text tower has {ours}; two towers are of "
                "equal sizes: name another one, or another model.backbone"
            )
    config.image_tower = {name: value for name, value in found.sizes.items() if name not in TOWER_SIZES}
    model.mbsd.image = VitBaseline(config.image_config)
    fill(model, found, "image.")
    model.freeze_unread()


def load_resnet_of_crops(model: Any, path: str) -> None:
    """Give a model with crops (`model.image_weights`) the ResNet-50 of a local file; raises UserError."""
    model.taken_over = Sources.of(model, load_resnet(model.mbsd.crops, path, "mbsd.crops."))


def load_resnet_of_pictures(model: Any, path: str) -> None:
    """Give an `ofa` model (`model.image_weights`) the first stages of a local ResNet-101; raises UserError."""
    model.taken_over = Sources.of(model, load_first_stages(model.mbsd.stages, path, "mbsd.stages."))


def fill(model: Any, published: Published, tower: str = "") -> None:
    """Give `model` the weights of a checkpoint, and note in its `taken_over` which.

    Args:
        model: a head on a backbone of the checkpoint's sizes.
        tower: how the names of the backbone's part begin that they are for.

    Raises:
        UserError: weights that are no numbers.
    """
    own = dict(model.named_parameters())
    found = {f"mbsd.{tower}{name}": weight for name, weight in published.backbone.items()}
    unknown = found.keys() - own.keys()
    assert not unknown, f"{sorted(unknown)} are no weights of a {type(model).__name__}"
    for name, weight in published.head.items():
        projects = name.endswith("_projection.weight")
        if name in own and own[name].shape == weight.value.shape and (not projects or _is_cls(model)):
            found[name] = weight
    broken = sorted({weight.source for weight in found.values() if not weight.value.isfinite().all()})
    if broken:
        raise UserError(
            f"{published.setting}: {len(broken)} weights hold values that are no numbers, {broken[0]} among them; name "
            "another checkpoint"
        )
    with torch.no_grad():
        for name, weight in found.items():
            assert own[name].shape == weight.value.shape, name
            own[name].copy_(weight.value)
    sources = {weight.source for weight in found.values()}
    source = FromPublished(
        published.kind, published.setting, frozenset(found), sources, published.held - sources, published.notes
    )
    model.taken_over = Sources.of(model, source)


def _is_cls(model: Any) -> bool:
    return bool(model.config.representation == "cls")


def _started(model_class: type[M], wanted: BackboneConfig, published: Published, tower: str = "") -> M:
    model: Any = model_class(type(wanted).from_dict({**wanted.to_dict(), **published.sizes}))
    fill(model, published, tower)
    started: M = model
    return started
