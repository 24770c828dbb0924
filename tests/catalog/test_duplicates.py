"""The synthetic shop with products that several shops sell."""

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

from mbsd.catalog.keys import KeyOptions, ProductColumn, open_keys, write_keys
from mbsd.catalog.layout import split_of
from mbsd.catalog.sources import read_items
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.catalog.synthetic.words import VOCABULARY, Language
from mbsd.errors import UserError
from tests.catalog.helpers import small_catalog

LANGUAGES: tuple[Language, ...] = ("zh", "en")
ITEMS, SHARE = 200, 0.3
ORIGINALS = 140


@pytest.fixture(scope="module", params=LANGUAGES)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Language, Path]:
    out = tmp_path_factory.mktemp("duplicates") / request.param
    synthesise(out, ShopOptions(ITEMS, 7, request.param, image_side=64, duplicates=SHARE), workers=1)
    return request.param, out


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text("utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_without_duplicates_nothing_is_said_of_products_and_the_originals_are_the_same(
    tmp_path: Path, shop: tuple[Language, Path]
) -> None:
    language, out = shop
    synthesise(tmp_path / "plain", ShopOptions(ORIGINALS, 7, language, image_side=64), workers=1)
    plain, originals = records(tmp_path / "plain"), records(out)[:ORIGINALS]
    assert all("product_id" not in record for record in plain)
    assert plain == [{k: v for k, v in record.items() if k != "product_id"} for record in originals]
    images = files(out / "images")
    assert all(images[name] == data for name, data in files(tmp_path / "plain" / "images").items())


def test_same_for_any_number_of_workers(tmp_path: Path, shop: tuple[Language, Path]) -> None:
    language, out = shop
    synthesise(tmp_path / "again", ShopOptions(ITEMS, 7, language, image_side=64, duplicates=SHARE), workers=2)
    assert files(tmp_path / "again") == files(out)


def test_a_duplicate_is_its_original_in_other_words_and_another_guise(shop: tuple[Language, Path]) -> None:
    language, out = shop
    words = VOCABULARY[language]
    fillers = {*words.genders, *words.adjectives}
    found = records(out)
    assert len({record["item_id"] for record in found}) == ITEMS
    by_product = {record["product_id"]: record for record in found[:ORIGINALS]}
    assert len(by_product) == ORIGINALS
    pixels = {
        record["image"]: np.asarray(Image.open(out / "images" / record["image"]), dtype=np.float32) for record in found
    }
    rewritten = same_bytes = 0
    for record in found[ORIGINALS:]:
        original = by_product[record["product_id"]]
        assert record["attributes"] == original["attributes"] and record["category"] == original["category"]
        said = {value for value in original["attributes"].values() if value in original["title"]}
        title = record["title"].casefold()
        assert all(value.casefold() in title for value in {*said, record["category"]}), "what it is stays"
        brand = next(brand for brand in words.brands if brand in original["title"])
        assert brand.casefold() in title
        rewritten += title != original["title"].casefold()
        one, other = pixels[original["image"]], pixels[record["image"]]
        assert one.shape == other.shape == (64, 64, 3)
        assert np.abs(one.mean((0, 1)) - other.mean((0, 1))).max() < 45, "the same garment on the same ground"
        same_bytes += (out / "images" / record["image"]).read_bytes() == (
            out / "images" / original["image"]
        ).read_bytes()
    assert rewritten > 0.9 * (ITEMS - ORIGINALS)
    assert 0.05 < same_bytes / (ITEMS - ORIGINALS) < 0.4, "some shops take the picture as it is"
    assert any(filler in found[-n]["title"] for n in range(1, 60) for filler in fillers)


def test_all_items_of_a_product_are_in_one_split(shop: tuple[Language, Path]) -> None:
    splits = defaultdict(set)
    held_out: Counter[str] = Counter()
    for record in records(shop[1]):
        splits[record["product_id"]].add(split_of(record["item_id"]))
        held_out[record["product_id"]] += split_of(record["item_id"]) != "train"
    assert all(len(found) == 1 for found in splits.values())
    assert sum(count for count in held_out.values() if count > 1) >= 10, "what retrieval by product is measured on"


def test_shoppers_buy_duplicates_by_their_own_ids(shop: tuple[Language, Path]) -> None:
    bought = set(pq.read_table(shop[1] / "log.parquet")["item"].to_pylist())
    assert bought <= {record["item_id"] for record in records(shop[1])}
    assert len(bought & {record["item_id"] for record in records(shop[1])[ORIGINALS:]}) > 50


def test_keys_find_the_products_again(shop: tuple[Language, Path], tmp_path: Path) -> None:
    out = shop[1]
    catalog = small_catalog(tmp_path / "catalog", list(read_items(out / "items.jsonl")), out / "images")
    write_keys(catalog, KeyOptions(product=ProductColumn("product_id", out / "items.jsonl")))
    keys = open_keys(catalog, ("product",), required=True).of(np.arange(ITEMS))[:, 0]
    names = [record["product_id"] for record in records(out)]
    for one in range(ITEMS):
        assert (keys == keys[one]).tolist() == [name == names[one] for name in names]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_makes_no_sense(share: float) -> None:
    with pytest.raises(UserError, match=rf"duplicates is {share:g}; expected a share"):
        ShopOptions(10, 0, duplicates=share)


def test_one_item_has_no_duplicate(tmp_path: Path) -> None:
    synthesise(tmp_path / "o", ShopOptions(1, 0, image_side=32, duplicates=0.9), workers=1)
    [record] = records(tmp_path / "o")
    assert record["product_id"] == "product-0000000"
    assert Image.open(io.BytesIO((tmp_path / "o" / "images" / record["image"]).read_bytes())).size == (32, 32)
