"""The model that a run begins with, and models that mbsd wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig

from mbsd.config.model import ModelConfig
from mbsd.config.run import BaseConfig
from mbsd.errors import UserError
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.config import BackboneConfig
from mbsd.model.families import FAMILIES
from mbsd.model.fresh import SIZES, behaviour
from mbsd.model.taken_over import TakenOver

M = TypeVar("M", bound=MbsdPreTrainedModel)
NO_HEAD: Mapping[str, Any] = {}  # of pre-training, whose heads have no settings


def start_model(
    model_class: type[M],
    config: BaseConfig,
    num_words: int,
    weights: Path | None = None,
    head: Mapping[str, Any] = NO_HEAD,
) -> M:
    """The model with the weights of a run, of model.backbone, or drawn with run.seed: the same on every rank.

    Args:
        num_words: of the tokenizer.
        weights: the transformers folder of run.init_from; None where that is not set.
        head: settings of BackboneConfig for the head: num_labels_out, pair_head, task, id2label.

    Raises:
        UserError: the weights do not fit the settings or the tokenizer.
    """
    torch.manual_seed(config.run.seed)
    settings, data = config.model, config.data
    family = FAMILIES[settings.architecture]
    fresh = partial(family.fresh, settings, data, kind=family.config, **head)
    model: Any  # of M; transformers' base class does not declare our `config` and backbone
    if weights is not None:
        _refuse_other_architecture(settings, weights, config.run.init_from)
        model = load_model(model_class, weights, data.image_size, behaviour(settings, head))
        _refuse_other_sizes(settings, model.config, config.run.init_from)
        _refuse_other_stem(settings, model.config, config.run.init_from)
    elif settings.backbone is not None:
        model = family.load(model_class, fresh(num_words), settings.backbone)
    else:
        # A multiple of 8 keeps the vocabulary projection on the tensor cores.
        model = model_class(fresh(-(-num_words // 8) * 8))
    if settings.image_weights is not None:
        family.load_images(model, settings.image_weights)
    _refuse_wide_tokenizer(num_words, model.config, config.run.init_from or settings.backbone or "")
    if data.max_text_tokens > model.config.max_position_embeddings:
        raise UserError(
            f"data.max_text_tokens={data.max_text_tokens} is more than the model's "
            f"{model.config.max_position_embeddings} positions; lower it"
        )
    started: M = model
    return started


def saved_config(folder: Path) -> BackboneConfig:
    """The configuration in a transformers folder of mbsd's, of any architecture in `FAMILIES`.

    Raises:
        UserError: nothing that mbsd wrote.
    """
    try:
        saved: BackboneConfig = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {str(error).splitlines()[0]}; name a folder that mbsd wrote") from error
    if (
        not isinstance(saved, tuple(family.config for family in FAMILIES.values()))
        or not (folder / "model.safetensors").is_file()
    ):
        raise UserError(f"{folder}: no MBSD weights there (model.safetensors of an MBSD model); name such a folder")
    return saved


def load_model(
    model_class: type[M],
    folder: Path,
    image_size: int,
    changes: Mapping[str, Any] | None = None,
    *,
    with_head: bool = False,
) -> M:
    """The model of a transformers folder (`saved_config`), in float32; a head that it does not hold, or that was
    trained for another question, is initialised; `taken_over` of the model says what it has of the folder.

    Args:
        changes: of its configuration.
        with_head: it must hold the head too.

    Raises:
        UserError: another kind of checkpoint, another image size, weights that are no numbers, or no such head.
    """
    saved = saved_config(folder)
    if saved.image_size != image_size:
        raise UserError(f"data.image_size={image_size}, but {folder} was trained on {saved.image_size}; set it to that")
    purpose = _purpose(saved)
    for name, value in (changes or {}).items():
        setattr(saved, name, value)
    loaded: Any = model_class.from_pretrained(
        folder, config=saved, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, info = loaded
    unfit = sorted(name for name, *_ in info["mismatched_keys"] if with_head or name.startswith("mbsd."))
    if unfit:
        raise UserError(f"{folder}: its weights do not have the sizes of its config.json, {unfit[0]} among them")
    lacking = sorted(name for name in info["missing_keys"] if name.startswith("mbsd."))
    if lacking:
        raise UserError(f"{folder}: lacks weights of the backbone, {lacking[0]} among {len(lacking)}")
    if with_head and info["missing_keys"]:
        held = (saved.architectures or ["?"])[0]
        raise UserError(
            f"{folder}: holds a {held} and not the head of a {model_class.__name__} ({min(info['missing_keys'])} is "
            "missing); fine-tune it for the task first (launchers/finetune.py)"
        )
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"{folder}: {len(broken)} weights hold values that are no numbers, {broken[0]} among them; name an earlier "
            "checkpoint"
        )
    other = changes is not None and _purpose(saved) != purpose
    taken = TakenOver.of(model, info, fresh_head=other)
    if other:
        # The head answers another question, even where it has the same shape.
        trained: Any = model
        fresh: Any = model_class(saved)
        fresh.mbsd.load_state_dict(trained.mbsd.state_dict())
        model = fresh
    model.taken_over = taken
    complete: M = model
    return complete


def _purpose(config: BackboneConfig) -> tuple[Any, ...]:
    """What a head answers: the task and its labels; or, with a bias, whether two vectors are one product (sigmoid)."""
    return config.task, config.label_names, config.logit_bias


def _refuse_other_architecture(wanted: ModelConfig, weights: Path, source: str | None) -> None:
    found = saved_config(weights).architecture
    if found != wanted.architecture:
        raise UserError(
            f"model.architecture={wanted.architecture}, but run.init_from={source} is a {found}; set "
            f"model.architecture={found}, or start from another model"
        )


def _refuse_other_sizes(wanted: ModelConfig, saved: BackboneConfig, source: str | None) -> None:
    """A size that was set (is not the default) and is not the checkpoint's is a contradiction, not a wish."""
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    for name in (*SIZES, "resnet_blocks"):
        value, found = getattr(wanted, name), getattr(saved, name, None)
        same = tuple(value) == tuple(found or ()) if isinstance(value, (tuple, list)) else value == found
        if not same and value != defaults[name]:
            raise UserError(
                f"model.{name}={value}, but run.init_from={source} has {found}; leave it out: a checkpoint brings its "
                "own sizes"
            )


def _refuse_other_stem(wanted: ModelConfig, saved: BackboneConfig, source: str | None) -> None:
    if wanted.patchify == "overlap" and wanted.patchify_blocks != saved.patchify_blocks:
        found = f"overlap with model.patchify_blocks={saved.patchify_blocks}" if saved.patchify_blocks else "none"
        raise UserError(
            f"model.patchify=overlap with model.patchify_blocks={wanted.patchify_blocks}, but run.init_from={source} "
            f"has {found}; leave it out: a checkpoint brings its own"
        )


def _refuse_wide_tokenizer(num_words: int, config: BackboneConfig, source: str) -> None:
    if num_words > config.vocab_size:
        raise UserError(
            f"the tokenizer has {num_words} words, but the weights of {source} know {config.vocab_size}; use the "
            "tokenizer they were trained with (leave data.tokenizer out)"
        )
