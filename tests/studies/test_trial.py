"""A trial really runs on a shop's items; its table is what the runs' own files say, and it is not done twice."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from mbsd.catalog.reader import Catalog
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.catalog.tables import Table
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


def begun(shop: Path, out: Path, warm: Server, *more: object) -> subprocess.Popen[str]:
    words = ["trial", shop / "items.jsonl", "--images", shop / "images", "--out", out, *more]
    words += ["--min-items", 12, "--launch", warm.command, "--ranks", 1]
    words += ["--mask-attribute", "colour"] if "--no-attributes" not in more else []
    command = [sys.executable, "-m", "mbsd.cli", *map(str, words)]
    return subprocess.Popen(
        command, env={**os.environ, **CPU}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def trial(shop: Path, out: Path, warm: Server, *more: object, code: int = 0) -> str:
    started = begun(shop, out, warm, *more)
    try:
        said, _ = started.communicate(timeout=550)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    assert started.returncode == code, said
    return said


def views(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = json.loads(file.read_text())["views"]
    return found


def splits_of(out: Path, titles: str) -> list[Any]:
    """The item and split of each row of a trial's table of categories."""
    table = Table(out / titles / "categories.parquet", Catalog(out / titles / "catalog"))
    return [table.row(row, ("item", "split")) for row in range(len(table))]


def check_page(out: Path) -> None:
    """The page counts who has which test row right, as the files of answers do."""
    page = (out / "trial.html").read_text(encoding="utf-8")
    for titles, told in (("masked", "masked"), ("plain", "as they are")):
        model = pq.read_table(out / titles / "classification_pretrained.parquet").to_pydict()
        floors = pq.read_table(out / titles / "categories_floors.parquet").to_pydict()
        label = np.array(model["label"])
        names = [name for name in floors if name.startswith("answer_")]
        right = {name: np.array(floors[name]) == label for name in names}
        floor, ours = max(right.values(), key=np.sum), np.array(model["answer_full"]) == label
        part = page.partition(f'data-comparison="Categories, titles {told}"')[2]
        cells = re.search(r'<tr data-view="full"><td>title and picture</td>.*?</tr>', part)
        assert cells is not None
        counts = [int(text) for text in re.findall(r">(\d+)</td>", cells[0])]
        assert counts == [np.sum(ours & floor), np.sum(ours & ~floor), np.sum(~ours & floor), np.sum(~ours & ~floor)]


@pytest.mark.distributed
def test_a_trial(shop: Path, warm: Server) -> None:
    out, steps = shop.parent / "out", ("--pretrain-steps", 2, "--finetune-steps", 2, "--seeds", "0,1", "--minutes", 9)
    said = trial(shop, out, warm, *steps)
    assert "classification: 2 steps of 16 = " in said and "each of it for 2 seeds" in said
    assert "minutes by the clock" in said and "CPU minutes" in said
    launched = [launcher for launcher, _ in warm.started]
    # A seed: stage 1 and two tasks for each kind of titles; clusters of the first, scores of the others.
    assert [launched.count(name) for name in ("pretrain", "finetune", "evaluate")] == [4, 8, 12]
    listed = json.loads((out / "summary.json").read_text())
    rows = {(row["model"], row["reads"], row["titles"]): row for row in listed}
    assert "trial.html" in said and (out / "trial.html").stat().st_size > 10_000
    # Floors: words and all of them twice, pictures once. A model's three views twice: it was trained beside titles.
    assert len(rows) == len(listed) == 4 + 3 + 6 + 6
    for titles, told in (("plain", "as they are"), ("masked", "masked")):
        tags, classes = (
            [views(out / titles / f"{name}{seed}.json")["text"]["all"] for seed in ("", "_seed1")]
            for name in ("attributes_pretrained", "classification_pretrained")
        )
        floor = json.loads((out / titles / "categories_floors.json").read_text())["floors"]["tfidf"]
        row = rows["MBSD, pre-trained", "title", told]
        assert row["attributes, ROC-AUC"] == pytest.approx(statistics.mean(of["roc_auc"] for of in tags))
        assert row["deviation"]["macro-F1"] == pytest.approx(statistics.stdev(of["macro_f1"] for of in classes))
        assert row["purity"] is None, "the categories have trained it"
        alone = [views(out / titles / f"clustering{seed}.json")["text"]["all"] for seed in ("", "_seed1")]
        of_stage1 = rows["MBSD, stage 1 alone", "title", told]
        assert of_stage1["clustering, NMI"] == statistics.mean(of["nmi"] for of in alone)
        assert of_stage1["macro-F1"] is None
        assert rows["TF-IDF", "title", told]["classification, accuracy"] == floor["accuracy"]
        margin = row["margins"]["classification, accuracy"]
        assert margin["floor"] == "tfidf", "the one floor of categories that reads titles alone"
        assert margin["value"] == pytest.approx(row["classification, accuracy"] - floor["accuracy"])
        low, high = margin["low"], margin["high"]
        assert low <= margin["value"] <= high
    full = rows["MBSD, pre-trained", "title and picture", "masked"]["margins"]["macro-F1"]
    best = max(
        row["macro-F1"] for (model, _, told), row in rows.items() if "MBSD" not in model and told != "as they are"
    )
    assert full["value"] == pytest.approx(rows["MBSD, pre-trained", "title and picture", "masked"]["macro-F1"] - best)
    lines = (out / "summary.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(rows) + 2 + 6, "the scores, and the margins of a model"

    # Test items are the same with titles masked: no training item equals one.
    assert splits_of(out, "plain") == splits_of(out, "masked")

    check_page(out)

    # Again: only what is missing is done.
    (out / "masked/clustering.json").unlink()
    before = (out / "summary.json").read_bytes()
    said = trial(shop, out, warm, *steps)
    assert len(warm.started) == len(launched) + 1 and "already there" in said
    assert (out / "summary.json").read_bytes() == before

    said = trial(shop, out, warm, *steps, "--scratch", code=2)
    assert (
        "starts was ['pretrained'] when this study was begun and is ['pretrained', 'scratch'] now; set it back" in said
        and "Traceback" not in said
    )
    assert len(warm.started) == len(launched) + 1


@pytest.mark.distributed
def test_a_trial_without_attributes(shop: Path, warm: Server, tmp_path: Path) -> None:
    """Of items that have none, under other names of columns: categories and clusters are asked alone."""
    lines = [json.loads(line) for line in (shop / "items.jsonl").read_text().splitlines()]
    other, out = tmp_path / "shop", tmp_path / "out"
    other.mkdir()
    (other / "images").symlink_to(shop / "images")
    theirs = {"item_id": "sku", "title": "name", "image": "picture", "category": "kind"}
    renamed = [{theirs[name]: line[name] for name in theirs} for line in lines]
    (other / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in renamed))
    columns = [word for ours, name in theirs.items() for word in ("--column", f"{ours}={name}")]
    before = len(warm.started)
    trial(other, out, warm, *columns, "--no-attributes", "--pretrain-steps", 2, "--finetune-steps", 2, "--minutes", 9)
    launched = [launcher for launcher, _ in warm.started[before:]]
    assert [launched.count(name) for name in ("pretrain", "finetune", "evaluate")] == [2, 2, 4]
    rows = json.loads((out / "summary.json").read_text())
    assert {row["attributes, ROC-AUC"] for row in rows} == {None}
    pictures = [row for row in rows if row["model"] == "MBSD, pre-trained" and row["reads"] == "picture"]
    for titles, row in zip(("plain", "masked"), pictures, strict=True):
        scores = views(out / titles / "classification_pretrained.json")["image"]["all"]
        assert row["classification, accuracy"] == scores["accuracy"]
        assert row["margins"].keys() == {"classification, accuracy", "macro-F1"}
    check_page(out)
    found, own = (Catalog(folder / "catalog").table() for folder in (out / "plain", out / "masked"))
    assert sorted(found["item_id"].to_pylist()) == sorted(line["item_id"] for line in lines)
    assert sorted(own["item_id"].to_pylist()) == sorted(found["item_id"].to_pylist())
    assert splits_of(out, "plain") == splits_of(out, "masked")
    assert not list(out.rglob("attributes*")) and "attributes" not in (out / "summary.md").read_text().split("|")[0]


def test_items_that_a_trial_cannot_be_made_of_are_refused_at_once(shop: Path, warm: Server, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (shop / "items.jsonl").read_text().splitlines()]
    other = tmp_path / "shop/items.jsonl"
    other.parent.mkdir()
    renamed = [
        {{"image": "picture", "category": "kind"}.get(name, name): line[name] for name in line} for line in lines
    ]
    other.write_text("".join(json.dumps(line) + "\n" for line in renamed))
    said = trial(other.parent, tmp_path / "out", warm, code=2)
    assert (
        "items.jsonl: no item has anything in category, image; " in said and "columns not read: kind, picture" in said
    )
    assert "give --column OURS=NAME where one has another name" in said
    assert not list((tmp_path / "out").rglob("catalog"))


@pytest.mark.distributed
def test_is_pre_training_worth_it_and_a_killed_trial_goes_on_by_its_plan(shop: Path, warm: Server) -> None:
    out, words = shop.parent / "worth", ("--worth", "--label-share", 0.5, "--minutes", 0.02)
    before = len(warm.started)
    started = begun(shop, out, warm, *words)
    deadline = time.monotonic() + 400
    while not (out / "plain/stage1/metrics.jsonl").exists():
        assert started.poll() is None and time.monotonic() < deadline, started.communicate()[0]
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    plan = (out / "plan.yaml").read_bytes()
    tree = yaml.safe_load(plan)
    measured = sum(1 for launcher, _ in warm.started[before:] if launcher == "evaluate")
    early = sum((out / titles / "clustering.json").exists() for titles in ("plain", "masked"))
    assert measured in (1 + early, 2 + early), "the scoring that is measured; a stage 1 may have ended before the kill"
    assert tree["measured"]["speeds"]["step"].keys() == {"stage1", "classification", "attributes"}

    before = len(warm.started)
    said = trial(shop, out, warm, *words)
    assert (out / "plan.yaml").read_bytes() == plan and all(line in said for line in tree["said"])
    assert "that is longer than asked for" in said
    launched = [launcher for launcher, _ in warm.started[before:]]
    assert [launched.count(name) for name in ("finetune", "evaluate")] == [8, 2 - early + 2 * 2 * 2], (
        "nothing is measured again; clusters of two stage 1, and the scores of each of the eight"
    )
    # Categories from scratch have as many steps more as took stage 1 its time, and attributes, which start from them,
    # none; with half of the labels fewer than of all.
    lengths, seconds = tree["lengths"], tree["measured"]["speeds"]["step"]
    instead = round(lengths["steps"]["stage1"] * seconds["stage1"] / seconds["classification"])
    for kind, more in (("classification", instead), ("attributes", 0)):
        steps = {}
        for start in ("pretrained", "scratch"):
            lines = (out / f"plain/{kind}_{start}_labels50/metrics.jsonl").read_text().splitlines()
            steps[start] = json.loads(lines[-1])["step"]
        assert steps["pretrained"] == round(lengths["steps"][kind] * 0.5**0.25)
        assert steps["scratch"] - steps["pretrained"] == lengths["instead"][kind] == more
    assert instead > 0
    whole, some = (
        Table(out / f"plain/{name}.parquet", Catalog(out / "plain/catalog"))
        for name in ("categories", "categories_labels50")
    )
    assert len(some.rows("train")) < 0.6 * len(whole.rows("train")) and len(some.rows("test")) == len(
        whole.rows("test")
    )
    rows = json.loads((out / "summary.json").read_text())
    assert {row["labels"] for row in rows} == {0.5}
    page = (out / "summary.md").read_text()
    assert "Pre-trained less from scratch, at equal training time" in page and page.count("| difference |") == 6
