"""Floors: what simple models can see of the market's items they find, what they cannot see they do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from typer.testing import CliRunner

from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Kind, Table, write_table
from mbsd.cli.main import app
from mbsd.errors import UserError
from mbsd.scoring.also import read_also
from mbsd.scoring.floor_features import FEATURES, vocabulary
from mbsd.scoring.floors import floors, majority
from mbsd.scoring.prior import prior_metrics
from tests.catalog.helpers import small_catalog
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
    # Pictures together see the tone as the better of them does, and the fabric as little.
    assert found["hog_colours"]["attribute"]["tone"]["roc_auc"] > 0.8
    assert found["hog_colours"]["attribute"]["fabric"]["roc_auc"] < 0.65
    assert found["prior"]["roc_auc"] == prior_metrics(Table(market.table("attributes"), catalog))["roc_auc"]
    assert set(found["prior"]["attribute"]) == {"tone", "fabric"}


def test_words_that_touch_each_other_are_read_by_letters(tmp_path: Path) -> None:
    titles = ["夏季红色连衣裙", "红色连衣裙女", "dress 红 2024", "Dress 2024"]
    catalog = small_catalog(tmp_path / "c", [Item(f"i{n}", title) for n, title in enumerate(titles)])
    found = vocabulary(catalog, np.arange(4)).get_feature_names_out().tolist()
    pairs = ["红 色", "色 连", "连 衣", "衣 裙"]
    assert sorted(found) == sorted(["2024", "dress", *"红色连衣裙", *pairs])


@pytest.mark.parametrize("without", [("validation", "test"), ("validation",)])
def test_an_attribute_may_be_in_no_row_of_a_split(without: tuple[str, ...], market: Market, tmp_path: Path) -> None:
    """As one that few items have: what is left is scored as before."""
    whole = pq.read_table(market.table("attributes")).replace_schema_metadata(None)
    rare = pc.and_(pc.equal(whole["attribute"], "fabric"), pc.is_in(whole["split"], pa.array(without)))
    catalog, path = Catalog(market.catalog), tmp_path / "rare.parquet"
    write_table("attributes", whole.filter(pc.invert(rare)), catalog, path, split_by={})
    found = floors(catalog, Table(path, catalog))
    assert found["colours"]["attribute"]["tone"]["roc_auc"] > 0.8
    assert ("fabric" in found["tfidf"]["attribute"]) == ("test" not in without)


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
    assert list(found) == ["majority", "tfidf", "colours", "hog", "all", "hog_colours"]
    assert found["hog_colours"]["accuracy"] >= max(found["hog"]["accuracy"], found["colours"]["accuracy"]) - 0.02
    for floor in ("tfidf", "colours", "hog", "all", "hog_colours"):
        assert set(found[floor]["clustering"]) == {"nmi", "ari", "purity"}


@dataclass(frozen=True)
class Cut:
    """A table of few training rows, and one of the others as another shop writes them, over a catalogue of its own."""

    few: Path
    rest: Path
    catalog: Path


def cut(market: Market, folder: Path, kind: Kind, respell: Callable[[str], str]) -> Cut:
    catalog = Catalog(market.catalog)
    shutil.copytree(market.catalog, folder / "other")
    column = {"attributes": "text", "categories": "category"}[kind]
    whole = pq.read_table(market.table(kind))
    train = np.flatnonzero(pc.equal(whole["split"], "train").to_numpy())
    others = np.setdiff1d(np.arange(len(whole)), train)
    few = whole.take(np.sort(np.concatenate([train[::20], others])))
    rest = whole.take(np.setdiff1d(train, train[::20]))
    rest = rest.set_column(
        rest.schema.get_field_index(column), column, pa.array(map(respell, rest[column].to_pylist()))
    )
    if kind == "categories":  # another order of the classes: only their names are the same
        rest = rest.set_column(
            rest.schema.get_field_index("label"),
            "label",
            pa.array([rest["label"].to_numpy().max() - label for label in rest["label"].to_pylist()], pa.int32()),
        )
    write_table(kind, few.replace_schema_metadata(None), catalog, folder / "few.parquet")
    write_table(kind, rest.replace_schema_metadata(None), Catalog(folder / "other"), folder / "rest.parquet")
    return Cut(folder / "few.parquet", folder / "rest.parquet", folder / "other")


@pytest.mark.parametrize("kind", ["attributes", "categories"])
def test_rows_of_another_table_are_learned_from(kind: Kind, market: Market, tmp_path: Path) -> None:
    """With the rest of the training rows, a floor is as good as on the whole table, whatever the names' case."""
    made = cut(market, tmp_path, kind, str.upper)
    measure = "roc_auc" if kind == "attributes" else "accuracy"
    words = ["floors", "--catalog", market.catalog]
    also = ["--also", made.rest, "--also-catalog", made.catalog]
    scores = {}
    for name, more in (
        ("few", ["--table", made.few]), ("both", ["--table", made.few, *also]), ("all", ["--table", market.table(kind)])
    ):  # fmt: skip
        out = tmp_path / f"{name}.json"
        done = CliRunner().invoke(app, [*map(str, words), *map(str, more), "--out", str(out)])
        assert done.exit_code == 0, done.exception
        scores[name] = {floor: it.get(measure) for floor, it in json.loads(out.read_text())["floors"].items()}
    for floor in ("tfidf", "hog_colours", "all"):
        assert scores["both"][floor] > max(scores["few"][floor] + 0.02, scores["all"][floor] - 0.03), floor
    assert scores["both"]["tfidf"] == pytest.approx(scores["all"]["tfidf"], abs=0.02)  # the same rows in another order
    assert scores["both"].get("prior") == scores["few"].get("prior")


def test_another_table_is_read_with_care(market: Market, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    catalog = Catalog(market.catalog)
    table = Table(market.table("attributes"), catalog)
    whole = pq.read_table(market.table("attributes")).replace_schema_metadata(None)
    moved = whole.set_column(whole.schema.get_field_index("split"), "split", pa.array(["train"] * len(whole)))
    write_table("attributes", moved, catalog, tmp_path / "leaks.parquet")
    read_also(tmp_path / "leaks.parquet", catalog, table, catalog)
    said = capfd.readouterr().err
    held_out = len(table) - len(table.rows("train"))
    assert f"{len(table)} of its {len(table)} training rows" in said and f"WARNING: {held_out} of these rows" in said
    other = whole.set_column(0, "text", pa.array(["taste:sour"] * len(whole)))
    write_table("attributes", other, catalog, tmp_path / "other.parquet")
    with pytest.raises(UserError, match="training rows has a tag of .*whose first is '(tone|fabric):"):
        read_also(tmp_path / "other.parquet", catalog, table, catalog)
    with pytest.raises(UserError, match="holds categories; expected attributes"):
        read_also(market.table("categories"), catalog, table, catalog)
    words = ["floors", "--catalog", market.catalog, "--table", market.table("categories"), "--out", tmp_path / "f.json"]
    done = CliRunner().invoke(app, [*map(str, words), "--also-catalog", str(market.catalog)])
    assert isinstance(done.exception, UserError) and "--also, which is not given" in str(done.exception)


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
