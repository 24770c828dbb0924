"""Which tokenizer and which weights a run starts from, and whether they fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import BaseConfig
from mbsd.data.text import build_tokenizer, load_tokenizer
from mbsd.errors import UserError
from mbsd.io.files import replacing
from mbsd.model.heads import MbsdForMaskedModelling
from mbsd.model.mbsd import MbsdConfig, MbsdPreTrainedModel, copy_backbone, load_backbone
from mbsd.parallel.world import on_rank_zero, same_on_every_rank

M = TypeVar("M", bound=MbsdPreTrainedModel)
NO_HEAD: Mapping[str, Any] = {}  # of pre-training: nothing to say

# Settings of ModelConfig that shape the weights, by their name in MbsdConfig: a checkpoint brings its own.
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patchify_strides",
    "patchify_channels", "image_cls",
)  # fmt: skip


def start_tokenizer(config: BaseConfig, catalog: Catalog, run_folder: Path) -> PreTrainedTokenizerBase:
    """data.tokenizer, else that of run.init_from or model.backbone, else one built from the catalogue (collective).

    Raises:
        UserError: data.tokenizer holds other words than the weights were trained with.
    """
    given, start = config.data.tokenizer, config.run.init_from
    with same_on_every_rank():
        source = str(weights_folder(start)) if start is not None else config.model.backbone
        named = given or source
        tokenizer = load_tokenizer(named) if named is not None else None
        if tokenizer and given and start and tokenizer.get_vocab() != load_tokenizer(str(source)).get_vocab():
            raise UserError(
                f"data.tokenizer={given}: its vocabulary is not the one that run.init_from={start} was trained with; "
                "leave data.tokenizer out"
            )
    if tokenizer is not None:
        return tokenizer
    folder = run_folder / "tokenizer"

    def build() -> None:
        if not folder.exists():
            with replacing(folder) as beside:  # killed while it is written, it is built anew
                build_tokenizer(_texts(catalog), config.model.vocab_size, beside)

    on_rank_zero(build)
    return load_tokenizer(str(folder))


def fresh_config(
    config: BaseConfig, head: Mapping[str, Any], vocab_size: int, kind: type[MbsdConfig] = MbsdConfig, **more: Any
) -> MbsdConfig:
    """The sizes and behaviour that the run's own settings give a model that is drawn; `more` of its kind."""
    sizes = {name: getattr(config.model, name) for name in SIZES}
    if config.model.patchify == "linear":
        side = 1
        for stride in config.model.patchify_strides:
            side *= stride
        sizes |= {"patchify_strides": (side,), "patchify_channels": ()}
    return kind(
        vocab_size=vocab_size,
        image_size=config.data.image_size,
        initializer_range=config.model.initializer_range,
        position_range=config.model.position_range,
        **sizes,
        **_behaviour(config.model, head),
        **more,
    )


def _from_bert(model_class: type[M], wanted: MbsdConfig, backbone: str) -> M:
    found, bert = load_backbone(wanted, backbone)
    model: Any = model_class(found)
    copy_backbone(model.mbsd, bert)
    if isinstance(model, MbsdForMaskedModelling):
        model.copy_word_head(bert)
    started: M = model
    return started


@dataclass(frozen=True)
class Family:
    """How models of one architecture begin.

    Attributes:
        fresh: (settings of the run, of the head, size of the vocabulary) -> configuration.
        load: (model class, configuration, model.backbone) -> the model with that checkpoint's weights; or UserError.
    """

    fresh: Callable[[BaseConfig, Mapping[str, Any], int], MbsdConfig] = fresh_config
    load: Callable[[Any, MbsdConfig, str], Any] = _from_bert


MBSD = Family()


def start_model(
    model_class: type[M],
    config: BaseConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: Mapping[str, Any] = NO_HEAD,
    family: Family = MBSD,
) -> M:
    """The model with weights from run.init_from, from model.backbone, or drawn with run.seed: the same on every rank.

    Args:
        head: settings of MbsdConfig that say what the head is for: num_labels_out, pair_head, task, id2label.
        family: of model.architecture.

    Raises:
        UserError: the weights do not fit the settings or the tokenizer.
    """
    torch.manual_seed(config.run.seed)
    model: Any  # of M; transformers' base class does not say that `config` and the backbone are ours
    if config.run.init_from is not None:
        _refuse_other_architecture(config.model, config.run.init_from)
        model = load_model(model_class, config.run.init_from, config.data, _behaviour(config.model, head))
        _refuse_other_sizes(config.model, model.config, config.run.init_from)
    elif config.model.backbone is not None:
        model = family.load(model_class, family.fresh(config, head, len(tokenizer)), config.model.backbone)
    else:
        # A multiple of 8 keeps the vocabulary projection on the tensor cores.
        model = model_class(family.fresh(config, head, -(-len(tokenizer) // 8) * 8))
    _refuse_wide_tokenizer(tokenizer, model.config, config.run.init_from or config.model.backbone or "")
    if config.data.max_text_tokens > model.config.max_position_embeddings:
        raise UserError(
            f"data.max_text_tokens={config.data.max_text_tokens} is more than the model's "
            f"{model.config.max_position_embeddings} positions; lower it"
        )
    started: M = model
    return started


def saved_config(source: str) -> tuple[Path, MbsdConfig]:
    """The transformers folder that `source` means (`weights_folder`) and its configuration.

    Raises:
        UserError: nothing that mbsd wrote.
    """
    folder = weights_folder(source)
    try:
        saved = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}; name a folder that mbsd wrote") from error
    if not isinstance(saved, MbsdConfig) or not (folder / "model.safetensors").is_file():
        raise UserError(f"{source}: no MBSD weights there (model.safetensors of an MBSD model); name such a folder")
    return folder, saved


def load_model(
    model_class: type[M],
    source: str,
    data: DataConfig,
    changes: Mapping[str, Any] | None = None,
    *,
    with_head: bool = False,
) -> M:
    """The model of a run folder or transformers folder, in float32; a head that it does not hold, or that was
    trained for another question, is initialised.

    Args:
        changes: of its configuration.
        with_head: it must hold the head too.

    Raises:
        UserError: another kind of checkpoint, another image size, weights that are no numbers, or no such head.
    """
    folder, saved = saved_config(source)
    if saved.image_size != data.image_size:
        raise UserError(
            f"data.image_size={data.image_size}, but {source} was trained on {saved.image_size}; set it to that"
        )
    purpose = saved.task, saved.label_names
    for name, value in (changes or {}).items():
        setattr(saved, name, value)
    loaded: Any = model_class.from_pretrained(
        folder, config=saved, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, info = loaded
    unfit = sorted(name for name, *_ in info["mismatched_keys"] if with_head or name.startswith("mbsd."))
    if unfit:
        raise UserError(f"{source}: its weights are not of the sizes that its config.json says, {unfit[0]} among them")
    lacking = sorted(name for name in info["missing_keys"] if name.startswith("mbsd."))
    if lacking:
        raise UserError(f"{source}: lacks weights of the backbone, {lacking[0]} among {len(lacking)}")
    if with_head and info["missing_keys"]:
        held = (saved.architectures or ["?"])[0]
        raise UserError(
            f"{source}: holds a {held} and not the head of a {model_class.__name__} ({min(info['missing_keys'])} is "
            "missing); fine-tune it for the task first (launchers/finetune.py)"
        )
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"{source}: {len(broken)} weights hold values that are no numbers, {broken[0]} among them; name an earlier "
            "checkpoint"
        )
    if changes is not None and (saved.task, saved.label_names) != purpose:
        # The head answers another question, even where it has the same shape.
        trained: Any = model
        fresh: Any = model_class(saved)
        fresh.mbsd.load_state_dict(trained.mbsd.state_dict())
        model = fresh
    complete: M = model
    return complete


def _behaviour(model: ModelConfig, head: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that shape no backbone weight; a run may change them on the way."""
    return {
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
        "representation": model.representation,
        "match_head": model.match_head,
        "num_labels_out": 1,
        "pair_head": "compare",
        "task": "",
        "id2label": {0: "0", 1: "1"},
        **head,
    }


def _refuse_other_architecture(wanted: ModelConfig, source: str) -> None:
    found = saved_config(source)[1].architecture
    if found != wanted.architecture:
        raise UserError(
            f"model.architecture={wanted.architecture}, but run.init_from={source} is a {found}; set "
            f"model.architecture={found}, or start from another model"
        )


def _refuse_other_sizes(wanted: ModelConfig, saved: MbsdConfig, source: str) -> None:
    """A size that was set (is not the default) and is not the checkpoint's is a contradiction, not a wish."""
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    for name in SIZES:
        value, found = getattr(wanted, name), getattr(saved, name)
        same = tuple(value) == tuple(found) if isinstance(value, (tuple, list)) else value == found
        if not same and value != defaults[name]:
            raise UserError(
                f"model.{name}={value}, but run.init_from={source} has {found}; leave it out: a checkpoint brings its "
                "own sizes"
            )


def _refuse_wide_tokenizer(tokenizer: PreTrainedTokenizerBase, config: MbsdConfig, source: str) -> None:
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} words, but the weights of {source} know {config.vocab_size}; use the "
            "tokenizer they were trained with (leave data.tokenizer out)"
        )


def _texts(catalog: Catalog) -> Iterator[str]:
    """What a vocabulary has to cover: titles as they are; categories and attribute values as queries say them."""
    yield from catalog.table()["title"].to_pylist()
    yield from map(normalise_query, catalog.table()["category"].to_pylist())
    for name, values in sorted(catalog.attribute_values().items()):
        for value in values:
            yield normalise_query(f"{name} {value}")
