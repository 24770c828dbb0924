"""Catalogue → batches: the tokenizer of a published checkpoint, as its own files define it.

transformers' BertTokenizer reads of a tokenizer.json its vocabulary alone, and makes the rest anew from
tokenizer_config.json: a cased tokenizer whose tokenizer_config.json does not say so would lower-case. Here what
tokenizer.json says holds, but for what tokenizer_config.json sets itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils.hub import cached_file

from mbsd.model.published.hub import optional_json

# tokenizer_config.json's name of what BertNormalizer does -> tokenizer.json's name of it.
_NORMALIZER = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars",
               "strip_accents": "strip_accents"}  # fmt: skip
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that are tokenizer.json and nothing else
_WORD_PIECE = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
_BERTS_OWN = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
              "mask_token": "[MASK]"}  # fmt: skip
_ROBERTAS_OWN = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>",
                 "mask_token": "<mask>"}  # fmt: skip
# What transformers takes from tokenizer.json's sections on padding and cutting, and writes again.
_LENGTHS = ("max_length", "stride", "truncation_strategy", "truncation_side", "pad_to_multiple_of", "pad_token_type_id",
            "padding_side", "model_max_length")  # fmt: skip


def read_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name: its words, its normalisation, its special tokens.

    A BertTokenizer, or, where that cannot do what tokenizer.json says (another normaliser; RoBERTa's byte pairs or
    XLM-R's pieces), one that is tokenizer.json itself.

    Raises:
        Exception: of many kinds, as transformers and tokenizers raise them.
    """
    where: dict[str, Any] = {}
    try:
        described = optional_json(name_or_path, "tokenizer.json")
    except OSError:  # the hub does not answer: what was downloaded before has to do
        described, where = None, {"local_files_only": True}
    if described is None:
        if not Path(name_or_path).is_dir():
            cached_file(name_or_path, "vocab.txt", **where)  # from_pretrained would make an empty vocabulary
        tokenizer: PreTrainedTokenizerBase = BertTokenizer.from_pretrained(name_or_path, **where)
        return tokenizer
    settings = optional_json(name_or_path, "tokenizer_config.json") or {}
    normalizer = _normalizer(described, settings)
    if normalizer is not None:
        tokenizer = BertTokenizer.from_pretrained(name_or_path, **normalizer)
        return tokenizer
    tokenizer = PreTrainedTokenizerFast.from_pretrained(name_or_path)
    words = tokenizer.get_vocab()
    for kind in (_BERTS_OWN, _ROBERTAS_OWN):
        for role, token in kind.items():
            if getattr(tokenizer, role) is None and token in words:
                setattr(tokenizer, role, token)
    return tokenizer


def forget_lengths(tokenizer: PreTrainedTokenizerBase) -> None:
    """Padding and cutting are taken off, also of what is saved of the tokenizer later."""
    take_off_padding(tokenizer)
    for name in _LENGTHS:
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.model_max_length = tokenizer.init_kwargs["model_max_length"] = VERY_LARGE_INTEGER
    tokenizer.padding_side = tokenizer.truncation_side = "right"


def take_off_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """What is encoded next is neither padded nor cut."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()


def _normalizer(described: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a BertTokenizer is told so that it does as tokenizer.json says; None where no BertTokenizer can."""
    normalizer, model = described.get("normalizer") or {}, described["model"]
    can = (
        settings.get("tokenizer_class") not in _GENERIC
        and model.get("type", "WordPiece") == "WordPiece"
        and all(model.get(name, value) == value for name, value in _WORD_PIECE.items())
        and (normalizer.get("type"), normalizer.get("clean_text")) == ("BertNormalizer", True)
        and described.get("pre_tokenizer") == {"type": "BertPreTokenizer"}
    )
    if not can:
        return None
    return {ours: settings.get(ours, normalizer[name]) for ours, name in _NORMALIZER.items()}
