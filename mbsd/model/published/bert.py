"""BERTs, RoBERTas and Chinese CLIP's text tower: words, encoder, pooler, and the head for masked words.

Chinese checkpoints that are called RoBERTa (hfl/chinese-roberta-wwm-ext and its kin) are BERTs in every respect but
their training, and their config.json says so. RoBERTa's own (roberta-base, xlm-roberta-base) differ in three: positions
are counted from the padding's number + 1, there is one token type, and the words are others (`mbsd.data.published`).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import BertForPreTraining, ChineseCLIPModel, RobertaConfig, RobertaForMaskedLM
from transformers.models.roberta.modeling_roberta import RobertaPooler

from mbsd.errors import UserError
from mbsd.model.published.checkpoint import Loaded, Published, Weight, config_of, load, refuse_type

ROBERTAS = ("roberta", "xlm-roberta", "camembert")
CHINESE_CLIP = "chinese_clip"
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "initializer_range",
)  # fmt: skip
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"


class RobertaWithPooler(RobertaForMaskedLM):
    """transformers' own has no pooler, which published checkpoints hold."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        self.roberta.pooler = RobertaPooler(config)
        self.post_init()


def read_bert(path: str, setting: str) -> Published:
    """The BERT, RoBERTa or Chinese CLIP of a folder or hub name.

    Raises:
        UserError: nothing of the kind there.
    """
    config = config_of(path, "BERT", setting)
    refuse_type(config, ("bert", *ROBERTAS, CHINESE_CLIP), "BERT", setting)
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UserError(
            f"{setting}: position_embedding_type={positions}, but only a BERT with absolute positions can be started "
            "from; name another checkpoint"
        )
    if config.get("model_type") == CHINESE_CLIP:
        return _read_chinese_clip(path, setting)
    return _read_roberta(path, setting, config) if config.get("model_type") in ROBERTAS else _read_bert(path, setting)


def _read_bert(path: str, setting: str) -> Published:
    found = load(BertForPreTraining, path, "BERT", setting, may_lack=("bert.pooler.", "cls."))
    sizes = {name: getattr(found.model.config, name) for name in SIZES}
    transform, head = "cls.predictions.transform.", "cls.predictions.bias"
    return Published(
        "BERT",
        setting,
        sizes,
        found.weights(_same(found.model.bert, "bert.")),
        _words(found, f"{transform}dense", f"{transform}LayerNorm", head),
        found.held,
    )


def _read_roberta(path: str, setting: str, settings: dict[str, Any]) -> Published:
    if settings.get("pad_token_id", 1) is None:
        raise UserError(f"{setting}: its config.json has no pad_token_id, behind which a RoBERTa's positions begin")
    config: Any = RobertaConfig.from_dict({**settings, "model_type": "roberta"})
    lacks = ("roberta.pooler.", "lm_head.")
    found = load(RobertaWithPooler, path, "RoBERTa", setting, may_lack=lacks, config=config)
    backbone = found.weights(_same(found.model.roberta, "roberta."))
    first = config.pad_token_id + 1
    for ours, change in (
        (POSITIONS, lambda table: table[first:]),
        (TOKEN_TYPES, lambda table: table[:1].expand(2, -1)),  # behind a query, a title is of the same one type
    ):
        backbone[ours] = Weight(backbone[ours].source, change(backbone[ours].value))
    sizes = {name: getattr(config, name) for name in SIZES}
    sizes |= {"max_position_embeddings": len(backbone[POSITIONS].value), "type_vocab_size": 2}
    gelu = config.hidden_act == "gelu"  # RoBERTa's head has no other, ours has the model's
    words = _words(found, "lm_head.dense", "lm_head.layer_norm", "lm_head.bias") if gelu else {}
    return Published("RoBERTa", setting, sizes, backbone, words, found.held)


def _read_chinese_clip(path: str, setting: str) -> Published:
    """Its text tower is a BERT without a pooler (`representation: cls`)."""
    found = load(ChineseCLIPModel, path, "Chinese CLIP", setting, may_lack=("visual_projection.", "vision_model."))
    sizes = {name: getattr(found.model.config.text_config, name) for name in SIZES}
    return Published(
        "Chinese CLIP",
        setting,
        sizes,
        found.weights(_same(found.model.text_model, "text_model.")),
        found.weights({"text_projection.weight": "text_projection.weight"}),
        found.held,
    )


def _words(found: Loaded, dense: str, norm: str, bias: str) -> dict[str, Weight]:
    """Of the head for masked words; none where its last layer is not the word table."""
    if not found.model.config.tie_word_embeddings:
        return {}
    layers = ((f"word_transform.{ours}", theirs) for ours, theirs in (("dense", dense), ("LayerNorm", norm)))
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers for kind in ("weight", "bias")}
    return found.all_of(names | {"word_bias": bias})


def _same(module: nn.Module, prefix: str) -> dict[str, str]:
    """Our names, which are theirs without the prefix."""
    return {name: prefix + name for name, _ in module.named_parameters()}
