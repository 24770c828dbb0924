from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.build.normalise import normalise_image
from mbsd.catalog.mining.mine import MiningSettings, mine_pairs
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import read_items
from mbsd.catalog.synthetic.pictures import draw_item
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.catalog.synthetic.words import BOTTOMS, COLLAR, COLOUR, PATTERN, SLEEVE, VOCABULARY, WHERE_SEEN, Language
from mbsd.cli.catalog import catalog_app
from mbsd.errors import UserError

LANGUAGES: tuple[Language, ...] = ("zh", "en")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module", params=LANGUAGES)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Language, Path]:
    out = tmp_path_factory.mktemp("synthetic") / request.param
    synthesise(out, ShopOptions(num_items=300, seed=7, language=request.param, image_side=64), workers=1)
    return request.param, out


def test_same_for_any_number_of_workers(tmp_path: Path, shop: tuple[Language, Path]) -> None:
    language, out = shop
    synthesise(tmp_path / "again", ShopOptions(num_items=300, seed=7, language=language, image_side=64), workers=2)
    assert _files(tmp_path / "again") == _files(out)


def test_an_item_depends_on_its_number_and_the_seed_alone(tmp_path: Path, shop: tuple[Language, Path]) -> None:
    language, out = shop
    synthesise(tmp_path / "few", ShopOptions(num_items=20, seed=7, language=language, image_side=64), workers=1)
    synthesise(tmp_path / "other", ShopOptions(num_items=20, seed=8, language=language, image_side=64), workers=1)
    assert _records(tmp_path / "few") == _records(out)[:20] != _records(tmp_path / "other")
    images = _files(out / "images")
    assert all(images[name] == data for name, data in _files(tmp_path / "few/images").items())
    assert not set(_files(tmp_path / "other/images").values()) & set(images.values())


def test_titles_hold_what_they_should_and_nothing_that_is_only_seen(shop: tuple[Language, Path]) -> None:
    language, out = shop
    words = VOCABULARY[language]
    where = json.loads((out / "attribute_where.json").read_text("utf-8"))
    assert where == dict(zip(words.names, WHERE_SEEN, strict=True))
    seen_only = [
        v for name, of_name in zip(words.names, words.values, strict=True) if where[name] == "image" for v in of_name
    ]
    synonyms = dict(zip(words.values[COLOUR], words.colour_synonyms, strict=True))
    for record in _records(out):
        title = record["title"]
        assert not [word for word in seen_only if word in title]
        assert title.endswith(record["category"])
        for name, value in record["attributes"].items():
            if where[name] != "image":
                assert any(word in title for word in (value, *synonyms.get(value, ())))


def test_attributes_are_balanced_and_bottoms_have_no_collar(shop: tuple[Language, Path]) -> None:
    language, out = shop
    words = VOCABULARY[language]
    bottoms = {words.categories[place] for place in BOTTOMS}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in _records(out):
        assert (words.names[COLLAR] in record["attributes"]) == (record["category"] not in bottoms)
        assert (words.names[SLEEVE] in record["attributes"]) == (record["category"] not in bottoms)
        for name, value in record["attributes"].items():
            counts[name][value] += 1
    for name, values in zip(words.names, words.values, strict=True):
        assert set(counts[name]) == set(values)
        assert min(counts[name].values()) > 0.5 * sum(counts[name].values()) / len(values)


def test_purchases_fit_the_query_and_some_clicks_do_not(shop: tuple[Language, Path]) -> None:
    language, out = shop
    records = {record["item_id"]: record for record in _records(out)}
    log = pq.read_table(out / "log.parquet").to_pydict()
    assert 20 * 300 < len(log["item"]) < 45 * 300 and set(log["kind"]) == {"click", "purchase"}
    misfits: Counter[str] = Counter()
    buyers: dict[tuple[str, str], set[str]] = defaultdict(set)
    terms_asked = set()
    for user, query, item, kind in zip(log["user"], log["query"], log["item"], log["kind"], strict=True):
        *terms, category = query.split()
        terms_asked.add(len(terms))
        record = records[item]
        misfits[kind] += not (record["category"] == category and set(terms) <= set(record["attributes"].values()))
        if kind == "purchase":
            buyers[query, item].add(user)
    kinds = Counter(log["kind"])
    assert terms_asked == {1, 2, 3, 4} and misfits["purchase"] == 0
    assert 0.25 < misfits["click"] / kinds["click"] < 0.35
    assert len({item for (_, item), users in buyers.items() if len(users) >= 2}) > 0.9 * 300
    rows = sorted(Counter(log["item"]).values(), reverse=True)
    assert sum(rows[:30]) > 0.25 * sum(rows)  # a tenth of the items has over a quarter of the log
    assert log["time"] == sorted(log["time"])


def test_the_picture_shows_pattern_collar_sleeve_and_colour() -> None:
    """At 64 pixels, over random places and shades: another value changes the picture more than another drawing does."""
    rng = np.random.default_rng(0)

    def shown(codes: list[int], category: int, seed: int) -> np.ndarray[Any, Any]:
        class Centred:  # the same place, size and shade for both pictures
            def __init__(self) -> None:
                self.random = np.random.default_rng(seed)

            def uniform(self, a: float, b: float) -> float:
                return float(self.random.uniform(a, b))

            def randint(self, a: int, b: int) -> int:
                return int(self.random.integers(a, b + 1))

            def choice(self, values: list[Any]) -> Any:
                return values[-1]

        data = draw_item(Centred(), codes, category, 224)  # type: ignore[arg-type]
        image = Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.LANCZOS)
        return np.asarray(image, np.float64)

    for category in range(6):
        base = [int(rng.integers(len(values))) for values in VOCABULARY["en"].values]
        reference = shown(base, category, category)
        for attribute in (PATTERN, COLLAR, COLOUR, SLEEVE):
            for value in range(len(VOCABULARY["en"].values[attribute])):
                codes = [*base[:attribute], value, *base[attribute + 1 :]]
                changed = (np.abs(shown(codes, category, category) - reference).max(axis=2) > 40).mean()
                assert (changed == 0) if value == base[attribute] else (changed > 0.02), (category, attribute, value)


def test_the_whole_way_to_pairs(tmp_path: Path, shop: tuple[Language, Path]) -> None:
    language, out = shop
    where = json.loads((out / "attribute_where.json").read_text("utf-8"))
    items = read_items(out / "items.jsonl")
    options = BuildOptions(workers=1, attribute_where=where, progress=False)
    summary = build_catalog(items, out / "images", tmp_path / "c", options)
    catalog = Catalog(tmp_path / "c")
    assert summary.with_image == summary.items == 300 and summary.quarantined == 0
    assert catalog.attribute_where == where
    image = (out / "images/0000017.jpg").read_bytes()
    assert normalise_image(image).jpeg == image == catalog.image(17)
    report = mine_pairs(out / "log.parquet", catalog, tmp_path / "p.parquet")
    assert not report.rejected and report.positives > 600
    assert report.rewrites > 0.4 * report.positives and report.same_category == report.positives
    assert report.rewrites + report.rewrites_replaced > 0.95 * report.positives
    kept = mine_pairs(out / "log.parquet", catalog, tmp_path / "kept.parquet", MiningSettings(replace_rewrites=False))
    assert kept.rewrites > 0.95 * kept.positives and kept.same_category == kept.positives


@pytest.mark.parametrize("terms", [(0.45, 0.35, 0.15, 0.05), (0.1, 0.2, 0.3, 0.4)])
def test_queries_have_as_many_terms_as_asked_for(tmp_path: Path, terms: tuple[float, ...]) -> None:
    summary = synthesise(tmp_path / "o", ShopOptions(400, 0, "zh", image_side=32, query_terms=terms), workers=1)
    queries = pq.read_table(summary.log_file)["query"].to_pylist()
    # The category's word stands behind the terms; rows follow the queries' popularity, which knows no length.
    found = Counter(query.count(" ") for query in queries)
    assert set(found) == {1, 2, 3, 4}
    for number, share in enumerate(terms, start=1):
        assert found[number] / len(queries) == pytest.approx(share, abs=0.04)


def test_users_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_items is 0; expected at least 1"):
        synthesise(tmp_path / "o", ShopOptions(num_items=0, seed=0))
    with pytest.raises(UserError, match="language 'fr'"):
        synthesise(tmp_path / "o", ShopOptions(num_items=1, seed=0, language="fr"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="query_terms are 0.5, 0.6; expected the shares of queries with 1, 2, 3 and 4"):
        synthesise(tmp_path / "o", ShopOptions(num_items=1, seed=0, query_terms=(0.5, 0.6)))
    result = CliRunner().invoke(catalog_app, ["synth", str(tmp_path / "o"), "--query-terms", "0.5,half"])
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == "--query-terms 0.5,half: expected numbers, by commas"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="already there"):
        synthesise(tmp_path, ShopOptions(num_items=1, seed=0))


def test_the_smallest_shop(tmp_path: Path) -> None:
    summary = synthesise(tmp_path / "o", ShopOptions(num_items=1, seed=0), workers=1)
    assert summary.items == 1 and summary.log_rows == pq.read_table(summary.log_file).num_rows > 0
    assert len(list(summary.images.iterdir())) == 1
