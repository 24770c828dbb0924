"""Titles without the words of a task's answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mbsd.catalog.masked_titles import mask_titles
from mbsd.catalog.sources import read_items
from mbsd.errors import UserError
from tests.catalog.helpers import write_jsonl

ITEMS = [
    ("a", "ADIDAS Men Navy Blue T-Shirt,", "Tshirts", {"colour": "Navy Blue", "brand": "ADIDAS"}),
    ("b", "Catwalk Women's wrist-watch BLACK", "Watches", {"colour": "Black", "brand": "Catwalk"}),
    ("c", "Lida Dress/top, blackish, size S", "Dresses", {"colour": "White", "brand": "Lida"}),
    ("d", "夏季红色连衣裙新款", "连衣裙", {"colour": "红色", "brand": "无"}),
    ("e", "", "Tops", {"colour": "White", "brand": ""}),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"item_id": i, "title": title, "image": f"{i}.jpg", "category": category, "attributes": attributes})
        for i, title, category, attributes in ITEMS
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_names_of_categories_and_values_are_taken_out(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "masked.jsonl"
    assert mask_titles(read_items(source), out, ["colour"]) == (5, 4)
    titles = {item.item_id: item.title for item in read_items(out)}
    # Plurals, hyphens, slashes, upper case and punctuation do not hide a name; another word that holds one stays.
    assert titles == {
        "a": "ADIDAS Men",
        "b": "Catwalk Women's",
        "c": "Lida blackish, size S",
        "d": "夏季 新款",
        "e": "",
    }


@pytest.mark.parametrize(
    ("title", "masked"),
    [
        ("Nike Woman Shoe", "Nike Shoe"),
        ("Nike women's shoe", "Nike shoe"),
        ("Womens MAN Men's men’s mens gents", "gents"),
        ("Human Mandarin Walkman menu", "Human Mandarin Walkman menu"),
        ("Lida dk.grey scarf", "Lida"),
        ("Lida blue-black off_white OffWhite (Grey) 2grey scarves", "Lida"),
        ("Lida whitewashed greyish tie's", "Lida whitewashed greyish tie's"),
        ("ＧＲＥＹ Scarf/grey accessory", ""),
        ("Kids child Rosé rose", "Kids child Rosé"),
        ("लाल ला Grün2", "ला"),
        ("Model 2012 size 10,12", "Model"),
    ],
)
def test_plurals_and_compounds(title: str, masked: str, tmp_path: Path) -> None:
    answers = ["Men", "Women", "Grey", "Off White", "Blue", "Rose", "लाल", "grün", "2012", "Size 10"]
    lines = [{"item_id": "0", "title": title, "category": "Scarves"}]
    lines += [{"item_id": f"{n}", "title": "", "image": f"{n}.jpg", "attributes": {"a": value}}
              for n, value in enumerate(answers, start=1)]  # fmt: skip
    lines.append({"item_id": "x", "title": "x", "category": "Accessories"})
    write_jsonl(tmp_path / "items.jsonl", *lines)
    mask_titles(read_items(tmp_path / "items.jsonl"), tmp_path / "masked.jsonl", ["a"])
    assert next(iter(read_items(tmp_path / "masked.jsonl"))).title == masked


def test_parts_of_names_without_spaces(tmp_path: Path) -> None:
    lines = [
        {
            "item_id": "0",
            "title": "夏季新款红色连衣裙女",
            "category": "服装 > 女装 > 连衣裙",
            "attributes": {"a": "红色/蓝"},
        },
        {"item_id": "1", "title": "蓝天女装 服装", "category": "服装 > 女装 > 连衣裙"},
    ]
    write_jsonl(tmp_path / "items.jsonl", *lines)
    mask_titles(read_items(tmp_path / "items.jsonl"), tmp_path / "masked.jsonl", ["a"])
    titles = [item.title for item in read_items(tmp_path / "masked.jsonl")]
    assert titles == ["夏季新款 女", "蓝天"], "a single letter of several names has too many other senses"


def test_everything_else_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "masked.jsonl"
    mask_titles(read_items(source), out)
    before, after = list(read_items(source)), list(read_items(out))
    assert [(i.item_id, i.image, i.category, i.attributes) for i in after] == [
        (i.item_id, i.image, i.category, i.attributes) for i in before
    ]
    assert after[0].title == "ADIDAS Men Navy Blue"  # no attribute was named


def test_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no item has an attribute 'color'; found brand, colour"):
        mask_titles(read_items(source), tmp_path / "masked.jsonl", ["color"])
    with pytest.raises(UserError, match="is the source itself"):
        mask_titles(read_items(source), source)
    assert not (tmp_path / "masked.jsonl").exists()
