"""A trial really runs on a shop's items; its table is what the runs' own files say, and it is not done twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from tests.ranks import CPU
from tests.studies.warm import Server


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("warm"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial") / "shop"
    synthesise(folder, ShopOptions(num_items=160, seed=1, language="en", image_side=32), workers=1)
    return folder


def trial(shop: Path, warm: Server, *more: object, code: int = 0) -> str:
    words = ["trial", shop / "items.jsonl", "--images", shop / "images", "--out", shop.parent / "out", *more]
    words += ["--mask-attribute", "colour", "--pretrain-steps", 2, "--finetune-steps", 2, "--no-scratch"]
    words += ["--min-items", 12, "--launch", warm.command, "--ranks", 1]
    command = [sys.executable, "-m", "mbsd.cli", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **CPU}, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.distributed
def test_a_trial(shop: Path, warm: Server) -> None:
    out = shop.parent / "out"
    trial(shop, warm)
    launched = [launcher for launcher, _ in warm.started]
    assert launched.count("pretrain") == 1 and launched.count("finetune") == 4 and launched.count("evaluate") == 6
    rows = {(row["model"], row["reads"], row["titles"]): row for row in json.loads((out / "summary.json").read_text())}
    assert len(rows) == 6 + 5  # words and all of them twice, pictures once; a model's three views, its image view once
    for titles, told in (("plain", "as they are"), ("masked", "masked")):
        tags = json.loads((out / titles / "attributes_pretrained.json").read_text())["views"]
        classes = json.loads((out / titles / "classification_pretrained.json").read_text())["views"]
        clusters = json.loads((out / titles / "clustering.json").read_text())["views"]
        floor = json.loads((out / titles / "categories_floors.json").read_text())["floors"]["tfidf"]
        row = rows["MBSD, pre-trained", "title", told]
        assert row["attributes, ROC-AUC"] == tags["text"]["all"]["roc_auc"]
        assert row["macro-F1"] == classes["text"]["all"]["macro_f1"]
        assert row["purity"] == clusters["text"]["all"]["purity"]
        assert rows["TF-IDF", "title", told]["classification, accuracy"] == floor["accuracy"]
    lines = (out / "summary.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(rows) and all(line.count("|") == table[0].count("|") for line in table)

    # The page counts who has which test row right, as the files of answers do.
    page = (out / "trial.html").read_text(encoding="utf-8")
    for titles, told in (("masked", "masked"), ("plain", "as they are")):
        model = pq.read_table(out / titles / "classification_pretrained.parquet").to_pydict()
        floors = pq.read_table(out / titles / "categories_floors.parquet").to_pydict()
        label = np.array(model["label"])
        right = {name: np.array(floors[f"answer_{name}"]) == label for name in ("tfidf", "colours", "hog", "all")}
        floor, ours = max(right.values(), key=np.sum), np.array(model["answer_full"]) == label
        part = page.partition(f'data-comparison="Categories, titles {told}"')[2]
        cells = re.search(r'<tr data-view="full"><td>title and picture</td>.*?</tr>', part)
        assert cells is not None
        counts = [int(text) for text in re.findall(r">(\d+)</td>", cells[0])]
        assert counts == [np.sum(ours & floor), np.sum(ours & ~floor), np.sum(~ours & floor), np.sum(~ours & ~floor)]

    # Again: only what is missing is done.
    (out / "masked/clustering.json").unlink()
    before = (out / "summary.json").read_bytes()
    said = trial(shop, warm)
    assert len(warm.started) == len(launched) + 1 and "already there" in said
    assert (out / "summary.json").read_bytes() == before

    said = trial(shop, warm, "--seed", 3, code=2)
    assert (
        "seed was 0 when this study was begun and is 3 now; set it back, or choose another --out" in said
        and "Traceback" not in said
    )
    assert len(warm.started) == len(launched) + 1
