"""Pictures that look the same: their keys, the page that shows what they join, and the command."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.sparse.csgraph import connected_components

from mbsd.catalog.identity import near, near_page
from mbsd.catalog.keys import NO_KEY, KeyOptions, open_keys, write_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.cli.catalog import catalog_app
from mbsd.errors import UserError
from tests.catalog.helpers import small_catalog, write_jsonl
from tests.catalog.test_reading_commands import run


def photo(seed: int) -> Image.Image:
    soft = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(soft).resize((120, 100), Image.Resampling.BICUBIC)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """0 to 3: a photo as it is, at another quality, smaller, and brighter; 4: none; 5: another photo; 6: 5's bytes."""
    one = photo(1)
    pictures = [(one, 95), (one, 60), (one.resize((90, 75)), 90), (ImageEnhance.Brightness(one).enhance(1.04), 90)]
    for number, (image, quality) in enumerate(pictures):
        image.save(tmp_path / f"{number}.jpg", quality=quality)
    for number in (5, 6):
        photo(2).save(tmp_path / f"{number}.jpg", quality=90)
    items = [Item(f"i{n}", f"<title> {n}", "" if n == 4 else f"{n}.jpg") for n in range(7)]
    return small_catalog(tmp_path / "catalog", items, tmp_path)


def test_a_photo_in_other_guises_shares_a_key(catalog: Catalog) -> None:
    write_keys(catalog, KeyOptions(near_picture=True, workers=1))
    keys = open_keys(catalog, ("near_picture",), required=True).of(np.arange(7))[:, 0]
    assert len(set(keys[:4].tolist())) == 1 and keys[4] == NO_KEY
    assert keys[5] == keys[6] != keys[0]


def test_any_number_of_processes_finds_the_same(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    found = near.near_picture_keys(catalog, 0, 1, print)
    monkeypatch.setattr(near, "CHUNK", 3)
    assert np.array_equal(near.near_picture_keys(catalog, 0, 2, print), found)


hashes = st.integers(0, 2**64 - 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(hashes, min_size=1, max_size=6), st.lists(st.sets(st.integers(0, 63), max_size=9), max_size=12),
       st.integers(1, near.MAX_DISTANCE))  # fmt: skip
def test_links_are_those_of_all_pairs(bases: list[int], changes: list[set[int]], distance: int) -> None:
    changed = [bases[n % len(bases)] ^ sum(1 << bit for bit in bits) for n, bits in enumerate(changes)]
    distinct = np.unique(np.array([*bases, *changed], dtype=np.uint64))
    group = near._linked(distinct, distance)
    differing = np.bitwise_count(distinct[:, None] ^ distinct[None])
    count, expected = connected_components(differing <= distance, directed=False)
    assert len(np.unique(group)) == count == len(np.unique(np.stack([group, expected]), axis=1).T)


def test_the_page_shows_what_no_other_key_joins_first(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_page, "ITEMS", 3)
    write_keys(catalog, KeyOptions(near_picture=True, workers=1))
    page = (catalog.path / "keys" / "near_pictures.html").read_text("utf-8")
    assert "<b>1 groups</b>" in page
    new, known = page.index("joined by this alone"), page.index("joined already by picture")
    assert new < known and "4 items" in page[:new] and "and 1 more items" in page
    assert "&lt;title&gt; 5" in page and "<title> 5" not in page, "a title is text, not markup"
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 5 and "http" not in page, "it needs no other file"
    monkeypatch.setattr(near_page, "GROUPS", 1)
    write_keys(catalog, KeyOptions(near_picture=True, workers=1))
    assert "and 1 more groups" in (catalog.path / "keys" / "near_pictures.html").read_text("utf-8")
    write_keys(catalog)
    assert not (catalog.path / "keys" / "near_pictures.html").exists(), "a page of keys that are no more"


def test_the_command(catalog: Catalog, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "items.jsonl", *({"sku": f"i{n}", "title": "x", "gtin": n // 3} for n in range(7)))
    words = ["--items", source, "--product-column", "gtin", "--column", "item_id=sku"]
    printed = run(catalog_app, "keys", catalog.path, *words, "--near-picture", "--workers", 1)
    assert printed[0] == f"{catalog.path / 'keys'}: 7 of 7 items share a key with another"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed if line.startswith("|")]
    assert rows[0] == ["kind", "items with a key", "groups", "items in groups", "largest group", "placeholders"]
    assert rows[2:] == [
        ["product", "7", "2", "6", "3", "0"],
        ["title", "7", "0", "0", "0", "0"],
        ["picture", "6", "1", "2", "2", "0"],
        ["near_picture", "6", "2", "6", "4", "0"],
    ]
    assert "product: 3 items: '<title> 0' (i0, i1, i2)" in printed
    assert printed[-1].endswith("near_pictures.html")
    assert open_keys(catalog, ("product", "near_picture"), required=True).names == ("product", "near_picture")
    printed = run(catalog_app, "keys", catalog.path, "--near-picture", "--workers", 1, "--max-same", 3)
    assert "near_picture: placeholder, dropped: 4 items: '<title> 0' (i0, i1, i2, …)" in printed


@pytest.mark.parametrize(
    "words, message",
    [
        (["--items", "x.jsonl"], "no --product-column is named; name it"),
        (["--product-column", "a", "--column", "item_id=sku"], "--column item_id=sku: names a column of --items"),
        (["--product-column", "a", "--items", "x.jsonl", "--column", "category=b"], "column 'category'; what names an"),
        (["--near-distance", "2"], "no near pictures are asked for"),
    ],
)
def test_options_that_do_not_fit_together(catalog: Catalog, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(catalog_app, "keys", catalog.path, *words)


def test_a_picture_without_any_structure_is_hashed() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (255, 255, 255)).save(buffer, "JPEG")
    assert near._hash(buffer.getvalue()) == 1 << 7, "the mean alone"
