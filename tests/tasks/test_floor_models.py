"""Floors: what simple models can see of the market's items they find, what they cannot see they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from typer.testing import CliRunner

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.cli.main import app
from mbsd.errors import UserError
from mbsd.scoring.floor_features import FEATURES
from mbsd.scoring.floors import floors, majority
from tests.tasks.market import Market


def test_words_and_colours_see_what_is_theirs(market: Market) -> None:
    catalog = Catalog(market.catalog)
    found = floors(catalog, Table(market.table("attributes"), catalog))
    # The market's tone is only in the pictures, its fabric only in the titles.
    assert found["tfidf"]["attribute"]["fabric"]["roc_auc"] > 0.9
    assert found["tfidf"]["attribute"]["tone"]["roc_auc"] < 0.65
    assert found["colours"]["attribute"]["tone"]["roc_auc"] > 0.8
    assert found["colours"]["attribute"]["fabric"]["roc_auc"] < 0.65
    assert found["all"]["roc_auc"] > max(found["tfidf"]["roc_auc"], found["colours"]["roc_auc"]) + 0.05


def test_a_damaged_picture_is_named_and_counts_as_none(
    market: Market, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(market.catalog, tmp_path / "c")
    catalog = Catalog(tmp_path / "c")
    items = np.arange(4)
    assert all(map(catalog.has_image, items.tolist()))
    expected = FEATURES["colours"](catalog, items, items)
    shard, offset = (int(catalog.table()[name][2].as_py()) for name in ("shard", "offset"))
    with (tmp_path / "c" / "shards" / f"{shard:06d}.tar").open("r+b") as file:
        file.seek(offset + 99)
        file.write(b"damaged")
    found = FEATURES["colours"](catalog, items, items)
    assert not found[2].any() and np.array_equal(found[[0, 1, 3]], expected[[0, 1, 3]]) and expected[2].any()
    assert "item 2: " in capfd.readouterr().err


def test_classes(market: Market, tmp_path: Path) -> None:
    catalog, out = Catalog(market.catalog), tmp_path / "floors.json"
    table = Table(market.table("categories"), catalog)
    arguments = ["floors", "--catalog", market.catalog, "--table", market.table("categories"), "--out", out]
    assert CliRunner().invoke(app, list(map(str, arguments))).exit_code == 0
    found = json.loads(out.read_text())["floors"]
    assert found["majority"] == majority(table)
    labels, train, test = table.column("label"), table.rows("train"), table.rows("test")
    counts = np.bincount(labels[train])
    assert found["majority"]["accuracy"] == pytest.approx(np.mean(labels[test] == counts.argmax()))
    # Another pipeline: single words, one penalty.
    titles = [catalog.title(item) for item in table.column("item")]
    words = TfidfVectorizer().fit([titles[row] for row in train]).transform(titles)
    model = LogisticRegression(C=10.0, max_iter=500).fit(words[train], labels[train])
    assert found["tfidf"]["accuracy"] > model.score(words[test], labels[test]) - 0.03
    assert found["all"]["accuracy"] > found["tfidf"]["accuracy"] + 0.1
    for floor in ("tfidf", "colours", "hog", "all"):
        assert set(found[floor]["clustering"]) == {"nmi", "ari", "purity"}


def test_an_item_without_a_picture_has_no_features(market: Market) -> None:
    class NoPictures(Catalog):
        def image(self, item: int) -> bytes | None:
            return None if item == 3 else super().image(item)

    items = np.arange(12)
    for name in ("colours", "hog"):
        rows = FEATURES[name](NoPictures(market.catalog), items, items)
        assert np.isfinite(rows).all() and len(rows) == 12
    assert not FEATURES["colours"](NoPictures(market.catalog), items, items)[3].any()


def test_other_tables_are_refused(market: Market) -> None:
    catalog = Catalog(market.catalog)
    with pytest.raises(UserError, match="holds alignment; floors are of attributes or categories"):
        floors(catalog, Table(market.table("alignment"), catalog))


@pytest.mark.parametrize("kind", ["attributes", "categories"])
def test_the_answers_are_those_that_were_measured(kind: str, market: Market, tmp_path: Path) -> None:
    out, answers = tmp_path / "floors.json", tmp_path / "answers.parquet"
    arguments = ["floors", "--catalog", market.catalog, "--table", market.table(kind), "--out", out]
    assert CliRunner().invoke(app, list(map(str, [*arguments, "--answers", answers]))).exit_code == 0
    measured, found = json.loads(out.read_text())["floors"], pq.read_table(answers).to_pydict()
    table = Table(market.table(kind), Catalog(market.catalog))
    rows = table.rows("test").tolist()
    assert found["row"] == rows and found["item"] == [table.column("item")[row] for row in rows]
    names = table.class_names or ["no", "yes"]
    assert found["label"] == [names[table.column("label")[row]] for row in rows]
    shares = []
    for floor in ("tfidf", "colours", "hog", "all"):
        answer, probability, of_label = (
            np.array(found[f"{column}_{floor}"]) for column in ("answer", "probability", "label_probability")
        )
        right = answer == np.array(found["label"])
        assert right.mean() == pytest.approx(measured[floor]["accuracy"])
        shares.append(right.mean())
        if kind == "attributes":
            assert roc_auc_score(found["label"], probability) == pytest.approx(measured[floor]["roc_auc"], abs=1e-4)
            yes = np.array(found["label"]) == "yes"
            assert np.array_equal(of_label > 0.5, right) and np.array_equal(of_label[yes], probability[yes])
        else:
            assert f1_score(found["label"], answer, average="macro") == pytest.approx(measured[floor]["macro_f1"])
            assert np.array_equal(of_label == probability, right) and (of_label <= probability).all()
    assert len(set(shares)) > 2 and min(shares) < 0.9
