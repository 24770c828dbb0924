"""A published tokenizer reads a text as its own files say: case, accents, Chinese characters, and its own pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from mbsd.data.text import SPECIAL_TOKENS, encode_pair, load_tokenizer

WORDS = ["Red", "red", "café", "cafe", "Cafe", "Café", "红", "色", "红色", "##色", "dress", "##es", "-", "ＲＥＤ", "ǆ"]
TITLES = ["Red red Café cafe 红色", "Café-dresses ＲＥＤ", "红色 [MASK] red"]
BERTS = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
         "lowercase": True}  # fmt: skip
NFKC = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
PADS = {
    "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
                "pad_to_multiple_of": None},
    "truncation": {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
}  # fmt: skip
# What of a BERT's tokenizer.json differs, and tokenizer_config.json, if there is one.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "lower case": ({}, None),
    "cased": ({"normalizer": BERTS | {"lowercase": False}}, None),
    "accents stay": ({"normalizer": BERTS | {"strip_accents": False}}, {"model_max_length": 4}),
    "accents go, case stays": ({"normalizer": BERTS | {"strip_accents": True, "lowercase": False}}, {}),
    "Chinese words": ({"normalizer": BERTS | {"handle_chinese_chars": False}}, {"tokenizer_class": "BertTokenizer"}),
    "another normaliser": ({"normalizer": NFKC}, {"tokenizer_class": "BertTokenizer"}),
    "no normaliser": ({"normalizer": None}, None),
    "another splitter": ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, None),
    "generic": ({"normalizer": BERTS | {"lowercase": False}},
                {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}),
}  # fmt: skip


def words_of(folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(str(folder))
    return [encode_pair(tokenizer, None, title, 144, 64).input_ids[1:-1].tolist() for title in TITLES]


def own_words_of(tokenizer: Tokenizer) -> list[list[int]]:
    """As the library of tokenizers reads it, without padding and cutting."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(title, add_special_tokens=False).ids for title in TITLES]


def assert_kept(folder: Path, again: Path, expected: list[list[int]]) -> None:
    """What is saved of it is read the same, by us and by transformers, and pads and cuts nothing."""
    assert words_of(folder) == expected
    load_tokenizer(str(folder)).save_pretrained(again)
    assert words_of(again) == expected
    plain = AutoTokenizer.from_pretrained(again)
    plain.split_special_tokens = True
    found = plain(TITLES, truncation=True)["input_ids"]
    assert [ids[1:-1] for ids in found] == expected and plain.model_max_length > 10**6
    assert {ids[0] for ids in found} == {plain.cls_token_id} and {ids[-1] for ids in found} == {plain.sep_token_id}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bert")
    words = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    BertTokenizer(vocab=words).save_pretrained(folder)
    found: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert found["normalizer"] == BERTS
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_json_is_read_whole(kind: str, described: dict[str, Any], tmp_path: Path) -> None:
    changes, settings = KINDS[kind]
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(described | changes | PADS), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    expected = own_words_of(Tokenizer.from_file(str(folder / "tokenizer.json")))
    plain = own_words_of(Tokenizer.from_str(json.dumps(described)))
    assert (expected == plain) == (kind == "lower case"), "the titles tell the kinds apart"
    assert_kept(folder, tmp_path / "again", expected)


@pytest.mark.parametrize(
    ("settings", "normalizer"),
    [
        (None, normalizers.BertNormalizer()),
        ({"do_lower_case": False, "model_max_length": 4}, normalizers.BertNormalizer(lowercase=False)),
        ({"strip_accents": False}, normalizers.BertNormalizer(strip_accents=False)),
        ({"tokenize_chinese_chars": False}, normalizers.BertNormalizer(handle_chinese_chars=False)),
    ],
    ids=["default", "cased", "accents stay", "Chinese words"],
)
def test_a_vocabulary_alone_is_read_with_its_settings(settings: Any, normalizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL_TOKENS, *WORDS)) + "\n", encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    words = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    own = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    own.normalizer, own.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    assert_kept(folder, tmp_path / "again", own_words_of(own))


@pytest.mark.parametrize("kind", ["byte pairs", "pieces"])
def test_a_robertas_words_are_read(kind: str, tmp_path: Path) -> None:
    """Byte pairs, as RoBERTa has them; or pieces with their chances, as XLM-R has."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if kind == "byte pairs":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = {word: index for index, word in enumerate([*special, *letters, "re", "red", "Ġred"])}
        own = Tokenizer(models.BPE(vocab=words, merges=[("r", "e"), ("re", "d"), ("Ġ", "red")], unk_token="<unk>"))
        own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        pieces = [(token, 0.0) for token in special] + [("▁", -3.0), ("▁red", -1.0), ("红色", -1.0), ("C", -4.0)]
        own = Tokenizer(models.Unigram(pieces, unk_id=3))
        own.normalizer, own.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    own.add_special_tokens(special)
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    expected = own_words_of(own)
    own.enable_padding(length=12, pad_id=1, pad_token="<pad>")
    own.enable_truncation(5)
    folder = tmp_path / "published"
    folder.mkdir()
    own.save(str(folder / "tokenizer.json"))
    assert len({id_ for ids in expected for id_ in ids}) > 5 or kind == "pieces"
    assert_kept(folder, tmp_path / "alone", expected)  # the special tokens by their names
    named = {
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **named).save_pretrained(folder)
    assert_kept(folder, tmp_path / "again", expected)
    assert load_tokenizer(str(folder)).mask_token_id == 4
