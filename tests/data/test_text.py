from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from mbsd.data.text import SPECIAL_TOKENS, build_tokenizer, encode_pair, load_tokenizer
from mbsd.errors import UserError

TEXTS = [
    "红色连衣裙 Summer Dress long-sleeve",
    "女士长袖 T恤 summer cotton dresses",
    "dress dressing Café 牛仔裤 [MASK]",
    "walking talking stalking 红裙",
] * 5

BUILD = """
import sys
from pathlib import Path
from mbsd.data.text import build_tokenizer
build_tokenizer(eval(sys.argv[1]), 90, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return build_tokenizer(TEXTS, 90, tmp_path_factory.mktemp("built"))


def decode(tokenizer: PreTrainedTokenizerBase, ids: object) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids)))  # type: ignore[call-overload]


def test_same_texts_give_the_same_bytes_in_any_order_and_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    build_tokenizer(TEXTS, 90, here)
    subprocess.run([sys.executable, "-c", BUILD, repr(TEXTS[::-1]), str(there)], check=True, timeout=300)
    names = sorted(path.name for path in here.iterdir())
    assert "tokenizer.json" in names
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_vocabulary_has_specials_characters_and_pieces(built: PreTrainedTokenizerBase) -> None:
    vocabulary = built.get_vocab()
    assert len(vocabulary) <= 90
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert set("红色连衣裙女士长袖恤牛仔裤acdefgiklmnorstuw[]-") <= set(vocabulary)
    assert "é" not in vocabulary, "accents are stripped, as in BERT"
    # The most frequent shared stem of dress / dresses / dressing is one piece.
    assert built.tokenize("dress") == ["dress"]
    assert built.tokenize("红裙 DRESS") == ["红", "裙", "dress"]
    assert built.unk_token_id not in built.convert_tokens_to_ids(built.tokenize(" ".join(TEXTS)))


def test_a_small_vocabulary_keeps_the_most_frequent_characters(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["红 红 红 蓝 蓝 绿"], 7, tmp_path)
    assert list(tokenizer.get_vocab()) and set(tokenizer.get_vocab()) == {*SPECIAL_TOKENS, "红", "蓝"}
    assert tokenizer.tokenize("红绿") == ["红", "[UNK]"]


def test_no_text_and_no_room_are_the_users_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no word"):
        build_tokenizer(["", "  "], 100, tmp_path)
    with pytest.raises(UserError, match="vocab_size=5"):
        build_tokenizer(["红"], 5, tmp_path)


def test_load_reads_a_vocab_txt_and_refuses_what_is_no_bert_tokenizer(tmp_path: Path) -> None:
    def folder(name: str, content: str | None) -> str:
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "vocab.txt").write_text(content)
        return str(tmp_path / name)

    good = load_tokenizer(folder("good", "\n".join([*SPECIAL_TOKENS, "红", "a"]) + "\n"))
    assert good.convert_tokens_to_ids(["[PAD]", "[MASK]", "红", "a"]) == [0, 4, 5, 6]
    for path, message in [
        (folder("empty", None), "found neither"),
        (folder("specials", "\n".join(["[PAD]", "[UNK]", "红", "a"]) + "\n"), r"\[CLS\] \[SEP\] \[MASK\]"),
        (folder("bare", "\n".join(SPECIAL_TOKENS) + "\n"), "nothing but"),
        (str(tmp_path / "absent"), "no such folder"),
        ("./absent", "no such folder"),
    ]:
        with pytest.raises(UserError, match=message):
            load_tokenizer(path)


def test_pairs_single_texts_and_missing_titles(built: PreTrainedTokenizerBase) -> None:
    pair = encode_pair(built, "红裙", "dress", 144, 64)
    assert decode(built, pair.input_ids) == "[CLS] 红 裙 [SEP] dress [SEP]"
    assert pair.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert pair.num_query == 4
    single = encode_pair(built, None, "红裙", 144, 64)
    assert decode(built, single.input_ids) == "[CLS] 红 裙 [SEP]"
    assert (single.token_type_ids.tolist(), single.num_query) == ([0] * 4, 0)
    untitled = encode_pair(built, "红裙", "", 144, 64)
    assert decode(built, untitled.input_ids) == "[CLS] 红 裙 [SEP]"
    assert (untitled.token_type_ids.tolist(), untitled.num_query) == ([0] * 4, 4)
    assert decode(built, encode_pair(built, None, "  ", 144, 64).input_ids) == "[CLS] [SEP]"


@pytest.mark.parametrize("spelling", ["ＤＲＥＳＳ　红裙", " dress\t 红裙 ", "Dreſs 红裙"])
def test_a_query_or_tag_reads_the_same_in_any_spelling(built: PreTrainedTokenizerBase, spelling: str) -> None:
    expected = encode_pair(built, "dress 红裙", "ＤＲＥＳＳ", 144, 64)
    assert decode(built, expected.input_ids) == "[CLS] dress 红 裙 [SEP] [UNK] [SEP]", "a title stays as it is"
    found = encode_pair(built, spelling, "ＤＲＥＳＳ", 144, 64)
    assert found.input_ids.tolist() == expected.input_ids.tolist()
    tag, wide = (encode_pair(built, text, "", 144, 64) for text in ("red:dress", "ＲＥＤ：Dress"))
    assert tag.input_ids.tolist() == wide.input_ids.tolist()


def test_the_title_is_cut_first_and_the_query_only_past_its_own_limit(built: PreTrainedTokenizerBase) -> None:
    query, title = "红 色 连 衣 裙", "女 士 长 袖 恤"
    cut = {
        (12, 10): "[CLS] 红 色 连 衣 裙 [SEP] 女 士 长 袖 [SEP]",
        (9, 9): "[CLS] 红 色 连 衣 裙 [SEP] 女 [SEP]",
        (8, 8): "[CLS] 红 色 连 衣 裙 [SEP]",  # room for one more: a [SEP] of nothing says nothing
        (7, 7): "[CLS] 红 色 连 衣 裙 [SEP]",
        (13, 5): "[CLS] 红 色 连 [SEP] 女 士 长 袖 恤 [SEP]",
        (4, 4): "[CLS] 红 色 [SEP]",
    }
    for (max_text, max_query), expected in cut.items():
        tokens = encode_pair(built, query, title, max_text, max_query)
        assert decode(built, tokens.input_ids) == expected
        assert tokens.num_query == expected.split().index("[SEP]") + 1
        assert len(tokens.token_type_ids) == len(tokens.input_ids) <= max_text
    assert decode(built, encode_pair(built, None, title, 4, 4).input_ids) == "[CLS] 女 士 [SEP]"


def test_a_sellers_brackets_are_words(built: PreTrainedTokenizerBase) -> None:
    tokens = encode_pair(built, None, "[MASK] [SEP]", 144, 64)
    assert (tokens.input_ids == built.mask_token_id).sum() == 0
    assert (tokens.input_ids == built.sep_token_id).sum() == 1
