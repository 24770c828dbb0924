"""Evaluation by vectors: the same report on any number of ranks, what stands in it, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.keys import open_keys, write_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.inference import Encoder
from mbsd.metrics.ranking import Identified, ranking
from tests.ranks import launch, refused
from tests.scoring.conftest import Shop

MISSING = ("--missing.rates=[0.3,0.9]",)


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def alone(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one rank, over the train split (the largest), with something missing too."""
    out = tmp_path_factory.mktemp("alone") / "found.json"
    launch(1, shop.words(out, "--split=train", *MISSING), out.parent / "log", launcher="evaluate")
    return out


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_gives_the_same_report(shop: Shop, alone: Path, tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "found.json"
    launch(ranks, shop.words(out, "--split=train", *MISSING), tmp_path / "log", launcher="evaluate")
    assert out.read_bytes() == alone.read_bytes()
    assert pq.read_table(out.with_suffix(".parquet")).equals(pq.read_table(alone.with_suffix(".parquet")))


@pytest.mark.distributed
def test_what_stands_in_a_report(shop: Shop, alone: Path) -> None:
    found, catalog = report(alone), Catalog(shop.catalog)
    items = catalog.indices("train")
    has_text = np.array([bool(catalog.title(item)) for item in items])
    has_image = np.array([catalog.has_image(item) for item in items])
    assert not has_text.all() and not has_image.all()
    across, within = ("text->image", "image->text"), ("text->text", "image->image", "mean->mean", "full->full")
    own = tuple(f"{name}_own" for name in across)
    categories = tuple(f"category->{view}" for view in ("text", "image", "mean"))
    assert {*found["views"]} == {*across, *own, *within, *categories} and found["samples"] == len(items)
    lines = found["views"]
    assert lines["text->image"]["candidates"] == has_image.sum() == lines["category->image"]["candidates"]
    assert lines["image->text_own"]["queries"] == (has_image & has_text).sum()
    assert lines["image->text_own"]["without_a_right_one"] == (has_image & ~has_text).sum()
    assert lines["mean->mean"]["candidates"] == (has_image | has_text).sum()
    assert lines["text->image_own"]["chance"]["r1"] == pytest.approx(1 / has_image.sum())
    for of_view in lines.values():
        assert {*of_view["all"]} == {*of_view["chance"]} == {*of_view["interval"]}
        for name, value in of_view["all"].items():
            low, high = of_view["interval"][name]
            assert low <= value <= high or name == "median_rank"
    expected = {f"either missing at {rate}, {view}" for rate in (0.3, 0.9) for view in (*within[2:], "category->mean")}
    assert {*found["missing"]} == expected


@pytest.mark.distributed
def test_the_numbers_are_those_of_vectors_from_python(shop: Shop, alone: Path) -> None:
    """Encoded item by item in Python, ranked here."""
    catalog = Catalog(shop.catalog)
    items = catalog.indices("train")
    items = items[[bool(catalog.title(item)) and catalog.has_image(item) for item in items]]
    encoder = Encoder.load(shop.model, batch_size=1)
    text, image = (
        encoder.encode([catalog.title(item) for item in items], [catalog.image(item) for item in items], view=view)
        for view in ("text", "image")
    )
    keys = open_keys(catalog, ("product", "title", "picture"), required=True).of(items)
    everything = report(alone)["views"]["text->image"]
    queries = [item for item in catalog.indices("train") if catalog.title(item)]
    answers = pq.read_table(alone.with_suffix(".parquet")).to_pydict()
    rank = dict(zip(answers["item"], answers["rank_text->image"], strict=True))
    assert {item for item, of_item in rank.items() if of_item is not None} <= {*queries}
    assert sum(of_item is not None for of_item in rank.values()) == everything["queries"]
    # Candidates are all items with a picture: of those without a title, none is right for another item here.
    with_picture = np.array([item for item in catalog.indices("train") if catalog.has_image(item)])
    candidates = Identified(
        encoder.encode(images=[catalog.image(item) for item in with_picture], view="image"),
        with_picture,
        open_keys(catalog, ("product", "title", "picture"), required=True).of(with_picture),
    )
    by_hand = ranking(Identified(text, items, keys), candidates)
    close = [
        abs(rank[int(items[row])] - value) <= 1 for row, value in zip(by_hand.rows, by_hand.values["rank"], strict=True)
    ]
    assert np.mean(close) > 0.95 and image.shape == text.shape


@pytest.mark.distributed
def test_among_the_whole_catalogue_with_few_queries(shop: Shop, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    words = shop.words(out, "--split=test", "--retrieval.pool=catalogue", "--views=[text,image]", "--max_samples=5")
    launch(1, words, tmp_path / "log", launcher="evaluate")
    found, catalog = report(out), Catalog(shop.catalog)
    assert found["samples"] == 5 and {*found["views"]} >= {"text->image", "image->text", "category->text"}
    assert found["views"]["text->image"]["candidates"] == sum(catalog.has_image(item) for item in range(len(catalog)))
    assert found["views"]["text->image"]["queries"] <= 5 and found["missing"] == {}


@pytest.mark.distributed
def test_mistakes_are_one_line(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    words = shop.words(out)
    line = refused(2, [*words, "--model", shop.matching], tmp_path / "head", launcher="evaluate")
    assert "no contrastive vectors" in line and "vector=h" in line
    line = refused(2, [*words, "--names.templates=['{} shoe shoe shoe']", "--data.max_text_tokens=5"],
                   tmp_path / "cut", launcher="evaluate")  # fmt: skip
    assert "tokens" in line and "data.max_text_tokens" in line
    line = refused(1, [*words, "--data.table=x.parquet"], tmp_path / "table", launcher="evaluate")
    assert "task=retrieval reads the catalogue alone" in line
    line = refused(1, [*words, "--views=[]"], tmp_path / "views", launcher="evaluate")
    assert "nothing would be scored" in line
    line = refused(1, [*words, "--retrieval.same=[near_picture]"], tmp_path / "keys", launcher="evaluate")
    assert "mbsd catalog keys" in line and not out.exists()


@pytest.mark.distributed
def test_a_catalogue_without_keys_and_an_empty_split_are_refused(shop: Shop, tmp_path: Path) -> None:
    items = [Item(name, f"a {name} of wool") for name in ("scarf", "hat", "sock")]
    build_catalog(items, tmp_path, tmp_path / "few", BuildOptions(workers=1, progress=False))
    catalog = Catalog(tmp_path / "few")
    by_size = sorted(("train", "validation", "test"), key=lambda split: len(catalog.indices(split)))
    assert len(catalog.indices(by_size[0])) == 0 < len(catalog.indices(by_size[-1]))
    words = [*shop.words(tmp_path / "found.json"), "--data.catalog", catalog.path]
    line = refused(2, [*words, f"--split={by_size[-1]}"], tmp_path / "keys", launcher="evaluate")
    assert "no identity keys" in line and "mbsd catalog keys" in line
    write_keys(catalog)
    line = refused(2, [*words, f"--split={by_size[0]}"], tmp_path / "empty", launcher="evaluate")
    assert f"its {by_size[0]} split is empty" in line


@pytest.mark.distributed
def test_vectors_that_were_not_trained_for_it_can_be_measured_too(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    launch(1, shop.words(out, "--model", shop.matching, "--vector=h"), tmp_path / "log", launcher="evaluate")
    assert report(out)["vector"] == "h" and "text->image" in report(out)["views"]
