"""A real token-classification model, trained here for seconds, against the gazetteer it learned from."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mbsd.catalog.mining.gazetteer import Tagger
from mbsd.catalog.mining.model_tagger import make_tagger
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.data.text import build_tokenizer
from mbsd.errors import UserError
from tests.catalog.helpers import small_catalog, write_lines

COLOURS = ("red", "blue", "红色", "navy blue")
SLEEVES = ("long", "长袖", "short")
FILL = ("hat", "for men", "连衣裙", "2023")
LABELS = ["O", "B-colour", "I-colour", "B-sleeve", "I-sleeve"]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    pairs = zip(COLOURS, itertools.cycle(SLEEVES), strict=False)
    items = [Item(f"i{n}", f"item {n}", "", "", {"colour": a, "sleeve": b}) for n, (a, b) in enumerate(pairs)]
    return small_catalog(tmp_path_factory.mktemp("model") / "catalog", items)


def _byte_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """As GPT-2's and many since: a token of bytes begins with the space before its word, and so do its offsets."""
    backend = ByteLevelBPETokenizer(trim_offsets=False)
    backend.train_from_iterator([" ".join(FILL + SLEEVES + COLOURS)] * 9, vocab_size=400, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, pad_token="!", model_max_length=10**9)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module", params=["words", "bytes"])
def model(request: pytest.FixtureRequest, catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger") / request.param
    texts = [*COLOURS, *SLEEVES, *FILL] * 9
    tokenizer = build_tokenizer(texts, 200, folder) if request.param == "words" else _byte_tokenizer(folder)
    queries = [" ".join(words) for words in itertools.product(FILL, SLEEVES, COLOURS)]
    encoded = tokenizer(queries, return_offsets_mapping=True, padding=True, return_tensors="pt")
    labels = torch.zeros_like(encoded["input_ids"])
    for row, spans in enumerate(make_tagger("gazetteer", catalog).tag(queries)):
        for span in spans:
            for token, (start, end) in enumerate(encoded["offset_mapping"][row].tolist()):
                start += queries[row][start:end].startswith(" ")
                if span.start <= start < end <= span.end:
                    labels[row, token] = LABELS.index(("B-" if start == span.start else "I-") + span.type)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=96, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, id2label=dict(enumerate(LABELS)),
        label2id={label: n for n, label in enumerate(LABELS)}, **sizes,
    )  # fmt: skip
    tagger = BertForTokenClassification(config)
    optimizer = torch.optim.AdamW(tagger.parameters(), lr=1e-2)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    for _ in range(60):
        optimizer.zero_grad()
        loss = tagger(**inputs, labels=labels.masked_fill(inputs["attention_mask"] == 0, -100)).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    tagger.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tagger(catalog: Catalog, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    lexicon = write_lines(tmp_path_factory.mktemp("lexicon") / "lexicon.tsv", "colour\tnavy blue\tblue")
    return make_tagger(f"transformers:{model}", catalog, lexicon)


def test_the_same_spans_as_the_gazetteer_it_learned_from(tagger: Tagger, catalog: Catalog, tmp_path: Path) -> None:
    lexicon = write_lines(tmp_path / "lexicon.tsv", "colour\tnavy blue\tblue")
    expected = make_tagger("gazetteer", catalog, lexicon)
    queries = [" ".join(words) for words in itertools.product(FILL, SLEEVES, COLOURS)][::-1]
    spans = tagger.tag([*queries, queries[0]])
    assert spans == [*expected.tag(queries), expected.tag(queries)[0]]
    assert {span.value for found in spans for span in found} == {"red", "blue", "红色", *SLEEVES}
    assert tagger.values == expected.values and tagger.canonical("colour", "Navy  Blue") == "blue"
    assert tagger.tag([]) == []


def test_what_it_finds_depends_on_the_query_alone(tagger: Tagger) -> None:
    queries = ["hat long red", "连衣裙 长袖 红色", "2023 short navy blue hat for men"]
    together = tagger.tag(queries)
    assert [tagger.tag([query])[0] for query in queries] == together
    assert pickle.loads(pickle.dumps(tagger)).tag(queries[::-1]) == together[::-1]


def test_no_span_is_cut_out_of_a_latin_word(tagger: Tagger) -> None:
    # "redx" is the pieces "red" and "##x", or others: whatever the model makes of them, no word is cut.
    for query in ("hat long redx", "hat long redred", "hat shortshort blue"):
        for span in tagger.tag([query])[0]:
            assert query[: span.start][-1:] in ("", " ") and query[span.end :][:1] in ("", " ")


def test_a_query_longer_than_the_model_is_read_to_its_limit(tagger: Tagger) -> None:
    query = "hat long red " + "裙" * (MAX_QUERY_CHARACTERS - 13)
    assert len(query) > 96
    assert all(span.end <= 13 + 96 for span in tagger.tag([query])[0])


def test_users_mistakes(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tagger .*none: no readable config.json"):
        make_tagger(f"transformers:{tmp_path / 'none'}", catalog)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=9, **sizes)).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="holds BertForSequenceClassification; expected a model for token"):
        make_tagger(f"transformers:{tmp_path / 'other'}", catalog)
    strange = BertConfig(vocab_size=9, id2label={0: "O", 1: "B-taste"}, label2id={"O": 0, "B-taste": 1}, **sizes)
    BertForTokenClassification(strange).save_pretrained(tmp_path / "strange")
    with pytest.raises(UserError, match=r"labels B-taste; expected attributes of the catalogue: colour, sleeve"):
        make_tagger(f"transformers:{tmp_path / 'strange'}", catalog)
