"""Floors of attributes that have learned categories before: as a model that was fine-tuned on categories has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold
from typer.testing import CliRunner

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table, write_table
from mbsd.cli.main import app
from mbsd.errors import UserError
from mbsd.scoring.floors import floors
from mbsd.scoring.seen_categories import SeenCategories, with_categories
from tests.tasks.market import Market

WORDS = 40


def test_what_follows_from_the_category_is_known_of_words_that_no_attribute_row_had() -> None:
    word_of = np.arange(400) % WORDS
    words, category = np.eye(WORDS)[word_of], word_of % 2
    known = np.isin(word_of, (0, 1, 2, 3))  # items whose attribute is told; it is the category's
    seen = with_categories({"tfidf": words}, np.arange(400), SeenCategories(np.arange(300), category[:300]))["tfidf"]

    def judged(features: np.ndarray) -> float:
        model = LogisticRegression().fit(features[known], category[known])
        return float(roc_auc_score(category[~known], model.decision_function(features[~known])))

    assert judged(words) == 0.5
    assert judged(seen) == 1.0


def test_an_item_is_classified_by_a_model_that_has_not_seen_its_category() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 20)
    items, its = 5 * np.arange(30), 5 * rng.permutation(30)[:20]
    found = with_categories({"hog": features}, items, SeenCategories(its, labels))["hog"]
    np.testing.assert_array_equal(found[:, :4], features)

    at = its // 5
    options = {"C": 10.0, "max_iter": 100, "tol": 1e-3}
    expected = LogisticRegression(**options).fit(features[at], labels).predict_proba(features)
    for learned, rest in KFold(5, shuffle=True, random_state=0).split(at):
        model = LogisticRegression(**options).fit(features[at[learned]], labels[learned])
        expected[at[rest]] = model.predict_proba(features[at[rest]])
    np.testing.assert_allclose(found[:, 4:], expected, rtol=0, atol=1e-12)


def test_a_category_of_a_single_row_is_unknown_where_that_row_is_asked() -> None:
    features, labels = np.eye(12), np.array([0] * 6 + [1] * 5 + [2])
    found = with_categories({"hog": features}, np.arange(12), SeenCategories(np.arange(12), labels))["hog"][:, 12:]
    assert found[11, 2] == 0 and found[11].sum() == pytest.approx(1)
    assert (found[:11, 2] > 0).any()  # the others' models have learned it


@pytest.mark.parametrize("labels", [[0] * 12, [0] * 11 + [1]])
def test_where_one_category_is_all_that_is_learned_it_is_certain(labels: list[int]) -> None:
    seen = SeenCategories(np.arange(12), np.array(labels))
    found = with_categories({"hog": np.eye(12)}, np.arange(12), seen)["hog"][:, 12:]
    assert found[11, 0] == 1
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_a_table_without_training_rows_is_refused(market: Market, tmp_path: Path) -> None:
    whole = pq.read_table(market.table("categories")).replace_schema_metadata(None)
    catalog = Catalog(market.catalog)
    held_out = whole.filter(pc.not_equal(whole["split"], "train"))
    write_table("categories", held_out, catalog, tmp_path / "held_out.parquet")
    with pytest.raises(UserError, match=r"held_out\.parquet: its train split is empty"):
        SeenCategories.read(tmp_path / "held_out.parquet", catalog, catalog)


def test_the_command_takes_a_table_of_categories_under_attributes(market: Market, tmp_path: Path) -> None:
    words = ["floors", "--catalog", market.catalog, "--table", market.table("attributes"), "--out", tmp_path / "f.json"]
    done = CliRunner().invoke(app, [*map(str, words), "--also", str(market.table("categories"))])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "f.json").read_text())
    assert written["also"] == str(market.table("categories"))

    catalog = Catalog(market.catalog)
    table = Table(market.table("attributes"), catalog)
    alone = floors(catalog, table)
    assert written["floors"]["prior"] == alone["prior"]  # knows no item
    assert written["floors"]["tfidf"]["roc_auc"] != alone["tfidf"]["roc_auc"]
    # What the titles do not tell the category does not either.
    assert written["floors"]["tfidf"]["attribute"]["tone"]["roc_auc"] == pytest.approx(0.5, abs=0.15)
    assert written["floors"]["all"]["roc_auc"] == pytest.approx(alone["all"]["roc_auc"], abs=0.05)
