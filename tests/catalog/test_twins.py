"""Twins: the source of a catalogue with every item again, another crop and fewer words."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mbsd.catalog.groups import GroupOptions, find_groups, group_splits
from mbsd.catalog.keys import KeyOptions, ProductColumn, open_keys, write_keys
from mbsd.catalog.layout import SPLITS, split_of
from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs
from mbsd.catalog.sources import Item, read_items
from mbsd.catalog.tables import DeriveOptions, Table, derive_table
from mbsd.catalog.twins.ids import twins_of
from mbsd.catalog.twins.make import TwinOptions, cropped, make_twins, shortened_title
from mbsd.catalog.twins.pairs import title_words
from mbsd.errors import UserError
from tests.catalog.helpers import image_folder, items_of, picture, small_catalog
from tests.conftest import Shop
from tests.ranks import command

ITEMS = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("pictures") / "images", ITEMS)


def shop_items() -> list[Item]:
    """Some with one word, with an equal title, without a title, without a picture, in a script without spaces."""
    items = [Item(i.item_id, f"{i.title} in some words", i.image, i.category, i.attributes) for i in items_of(ITEMS)]
    items[3] = Item("id-3", "Solo", "003.jpg", "kind 1", {"shape": "round"})
    items[4] = Item("id-4", items[5].title, "004.jpg", "kind 0")
    items[6] = Item("id-6", "", "006.jpg", "kind 0")
    items[7] = Item("id-7", "only a title", "", "kind 1")
    items[8] = Item("id-8", "夏季红色连衣裙新款", "008.jpg")
    return items


@pytest.fixture(scope="module")
def catalog(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    where = {"shape": "image", "shade": "both"}
    return small_catalog(tmp_path_factory.mktemp("c") / "c", shop_items(), images, attribute_where=where)


def with_twins(catalog: Catalog, folder: Path, options: TwinOptions | None = None) -> Catalog:
    make_twins(catalog, folder / "source", options)
    items = list(read_items(folder / "source" / "items.jsonl"))
    return small_catalog(folder / "catalog", items, folder / "source" / "images.tar")


def contents(catalog: Catalog) -> dict[str, Any]:
    """id -> title, category, attributes and picture."""
    records = [catalog[item] for item in range(len(catalog))]
    return {r.item_id: (r.title, r.category, r.attributes, jpeg) for r, jpeg in records}


def test_the_source_has_every_item_as_it_is_and_its_twin(catalog: Catalog, tmp_path: Path) -> None:
    options = TwinOptions()
    summary = make_twins(catalog, tmp_path / "source", options)
    rows = [json.loads(line) for line in (tmp_path / "source/items.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 2 * ITEMS and (summary.twins, summary.with_image) == (ITEMS, ITEMS - 1)
    with tarfile.open(tmp_path / "source/images.tar") as tar:
        stored = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    shortened = 0
    for number, (own, twin) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        record, jpeg = catalog[number]
        same = {"category": record.category, "attributes": record.attributes, "product_id": record.item_id}
        name = "" if jpeg is None else f"{number:09d}"
        image = f"{name}.jpg" if name else ""
        assert own == {"item_id": record.item_id, "title": record.title, "image": image, **same}
        title = shortened_title(record.title, record.item_id, options)
        image = f"{name}-twin.jpg" if name else ""
        assert twin == {"item_id": twin["item_id"], "title": title, "image": image, **same}
        assert twin["item_id"].startswith(f"{record.item_id}~twin")
        assert split_of(twin["item_id"]) == split_of(record.item_id)
        if jpeg is not None:
            assert stored.pop(own["image"]) == jpeg
            assert stored.pop(twin["image"]) == cropped(jpeg, record.item_id, options)
        shortened += title != record.title
    assert stored == {} and summary.shortened == shortened
    assert json.loads((tmp_path / "source/attribute_where.json").read_text("utf-8")) == catalog.attribute_where
    source = tmp_path / "source"
    assert summary.build == (
        *(str(source / "items.jsonl"), "--images", str(source / "images.tar")),
        *("--attribute-where", str(source / "attribute_where.json")),
    )


def test_a_twin_follows_from_seed_and_item_alone(catalog: Catalog, images: Path, tmp_path: Path) -> None:
    mixed = shop_items()
    np.random.default_rng(1).shuffle(mixed)  # type: ignore[arg-type]
    other = small_catalog(tmp_path / "mixed", mixed[: ITEMS // 2], images)
    found = contents(with_twins(catalog, tmp_path / "a"))
    assert len(found) == 2 * ITEMS
    some = contents(with_twins(other, tmp_path / "b"))
    assert len(some) == ITEMS and {item_id: found[item_id] for item_id in some} == some
    again = contents(with_twins(catalog, tmp_path / "c", TwinOptions(seed=1)))
    assert again.keys() == found.keys()
    changed = [item_id for item_id in found if again[item_id] != found[item_id]]
    assert len(changed) > ITEMS // 2 and all("~twin" in item_id for item_id in changed)


words = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="\x00"), min_size=1, max_size=6)
titles = st.lists(words, max_size=8).map(" ".join)


@given(titles, st.text(max_size=5), st.floats(0, 1), st.integers(0, 3))
def test_words_of_a_twin_are_the_items_in_order(title: str, item_id: str, drop: float, seed: int) -> None:
    found = shortened_title(title, item_id, TwinOptions(seed, drop_words=drop))
    assert found == " ".join(found.split()) and bool(found) == bool(title.split())
    rest = iter(title)
    assert all(letter in rest for letter in found if letter != " ")  # in their order
    assert not title_words(title) or title_words(found), "a word that says something stays"
    assert shortened_title(title, item_id, TwinOptions(seed, drop_words=0)) == " ".join(title.split())


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=8), st.integers(0, 99))
def test_one_word_stays_where_all_are_dropped(spaced: list[str], seed: int) -> None:
    title = f"- {' '.join(spaced)} &"
    assert shortened_title(title, "a", TwinOptions(seed, drop_words=1)) in spaced


def test_each_word_is_dropped_with_the_given_probability() -> None:
    title = "one two three four five six seven eight nine ten"
    kept = [shortened_title(title, f"{n}", TwinOptions(drop_words=0.3)).split() for n in range(2000)]
    for word in title.split():
        share = sum(word in words for words in kept) / 2000
        assert abs(share - 0.7) < 0.05, "five deviations are 0.051"


def test_in_scripts_without_spaces_two_characters_are_a_word() -> None:
    title, pairs = "夏季红色连衣裙新款 Nike", ["夏季", "红色", "连衣", "裙新", "款", "Nike"]
    seen = set()
    for n in range(300):
        found = shortened_title(title, f"{n}", TwinOptions(drop_words=0.5))
        seen.add(found)
        # A space stands where a word was, and nowhere else but before Nike.
        kept, rest = [], found
        for pair in pairs:
            if rest.startswith(pair):
                kept.append(pair)
                rest = rest[len(pair) :].lstrip()
        assert rest == "" and found.replace(" ", "") == "".join(kept)
        assert title_words(found) - {"款"} <= title_words(title)
    assert {"夏季 连衣裙新款 Nike", "红色"} <= seen and len(seen) == 2 ** len(pairs) - 1


def gradient(width: int, height: int) -> bytes:
    """A picture whose red is the column and whose green is the row."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    buffer = io.BytesIO()
    pixels = np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=98, subsampling=0)
    return buffer.getvalue()


def test_a_crop_keeps_the_share_of_the_area_and_the_shape_and_lies_anywhere() -> None:
    jpeg, lefts, tops, shares = gradient(200, 150), [], [], []
    for n in range(200):
        found = Image.open(io.BytesIO(cropped(jpeg, f"{n}", TwinOptions(crop=(0.5, 0.8)))))
        found.load()
        shares.append(found.width * found.height / (200 * 150))
        assert abs(found.width / found.height - 4 / 3) < 0.02
        red, green, _ = np.asarray(found, dtype=float).mean(axis=(0, 1))
        lefts.append((red - (found.width - 1) / 2) / max(1, 200 - found.width))
        tops.append((green - (found.height - 1) / 2) / max(1, 150 - found.height))
    assert 0.495 < min(shares) < 0.52 and 0.78 < max(shares) < 0.805
    for places in (lefts, tops):  # of 0: at the edge, to 1: at the other
        assert -0.05 < min(places) < 0.05 and 0.95 < max(places) < 1.05 and 0.4 < np.mean(places) < 0.6
    whole = Image.open(io.BytesIO(cropped(jpeg, "a", TwinOptions(crop=(1, 1)))))
    assert whole.size == (200, 150)
    assert Image.open(io.BytesIO(cropped(picture(size=(1, 1)), "a", TwinOptions()))).size == (1, 1)


def test_twins_are_found_by_id_in_one_catalogue_and_in_several(tmp_path: Path) -> None:
    ids = ["a~twin-3", "b", "c~twin", "a", "d~twins", "b~twin", "a~twin", "e", "~twin"]
    one = small_catalog(tmp_path / "one", [Item(item_id, item_id) for item_id in ids])
    assert [side.tolist() for side in twins_of(one)] == [[1, 3, 3], [5, 0, 6]]
    none = small_catalog(tmp_path / "none", [Item("c", "c"), Item("b~twin", "other")])
    assert [side.tolist() for side in twins_of(none)] == [[], []]
    both = Catalogs({"none": none, "one": one})  # b~twin of the first is no twin of the second's b
    assert [side.tolist() for side in twins_of(both)] == [[3, 5, 5], [7, 2, 8]]
    number = find_groups(both).number
    assert number[3] == number[7] != number[1]


def test_a_table_has_an_item_and_its_twin_in_one_split_that_of_the_catalogue_without_twins(
    catalog: Catalog, tmp_path: Path
) -> None:
    """What is left of many titles is equal: compared, these would put half of the items into one group."""
    again = with_twins(catalog, tmp_path, TwinOptions(drop_words=0.9))
    items, twins = twins_of(again)
    assert sorted([*items, *twins]) == list(range(2 * ITEMS))
    before = dict(zip(catalog.table()["item_id"].to_pylist(), group_splits(catalog), strict=True))
    after = dict(zip(again.table()["item_id"].to_pylist(), group_splits(again), strict=True))
    assert {item_id: after[item_id] for item_id in before} == before
    groups = find_groups(again)
    assert np.array_equal(groups.number[items], groups.number[twins])
    assert groups.sizes().max() == 4 and "equal title or picture, or of an item and its twin (" in groups.describe()
    derive_table("attributes", again, tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet", again)
    assert {(item, SPLITS[groups.split[item]]) for item in table.column("item").tolist()} == set(
        zip(table.column("item").tolist(), table.column("split"), strict=True)
    )
    own = group_splits(again, GroupOptions(by=()))
    assert own == again.table()["split"].to_pylist() and [own[i] for i in items] == [own[t] for t in twins]


def test_identity_keys_join_an_item_and_its_twin(catalog: Catalog, tmp_path: Path) -> None:
    again = with_twins(catalog, tmp_path)
    column = ProductColumn("product_id", tmp_path / "source/items.jsonl")
    write_keys(again, KeyOptions(product=column))
    items, twins = twins_of(again)
    product = open_keys(again, ("product",), required=True).of(np.arange(2 * ITEMS))[:, 0]
    assert np.array_equal(product[items], product[twins]) and len(np.unique(product)) == ITEMS


def test_a_damaged_picture_is_left_out_of_both(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = small_catalog(tmp_path / "c", items_of(3), images)
    shard = tmp_path / "c/shards/000000.tar"
    data = bytearray(shard.read_bytes())
    jpeg = broken.image(1)
    assert jpeg is not None
    data[data.index(jpeg) + 20] ^= 1
    shard.write_bytes(data)
    summary = make_twins(Catalog(tmp_path / "c"), tmp_path / "source")
    rows = [json.loads(line) for line in (tmp_path / "source/items.jsonl").read_text("utf-8").splitlines()]
    assert [bool(row["image"]) for row in rows] == [True, True, False, False, True, True]
    assert summary.with_image == 2 and "item 1" in capsys.readouterr().err


def test_refused(catalog: Catalog, tmp_path: Path) -> None:
    for crop in ((0.9, 0.6), (0, 0.5), (0.5, 1.1), (0.5,), (float("nan"), 1)):
        with pytest.raises(UserError, match="expected two shares of the picture's area above 0 and up to 1"):
            TwinOptions(crop=crop)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="expected a probability, from 0 to 1"):
            TwinOptions(drop_words=share)
    again = with_twins(catalog, tmp_path)
    with pytest.raises(UserError, match=r"the id 'id-0~twin.*' ends as a twin's does \(~twin\); give the catalogue wi"):
        make_twins(again, tmp_path / "twice")
    with pytest.raises(UserError, match="already there and not an empty folder"):
        make_twins(catalog, tmp_path / "source")
    assert not (tmp_path / "twice").exists()


def test_the_commands(shop: Shop, tmp_path: Path) -> None:
    """From a catalogue to a table, by the commands that each of them names."""
    refused = command("tables", "derive", "alignment", "--catalog", shop.catalog, "--out", tmp_path / "t.parquet")
    assert refused.returncode == 2 and refused.stderr.startswith(f"error: catalogue {shop.catalog}: no item has a twin")
    assert f"`mbsd catalog twins --catalog {shop.catalog} --out SOURCE`" in refused.stderr
    source = tmp_path / "source"
    done = command("catalog", "twins", "--catalog", shop.catalog, "--out", source, "--crop", "0.5,0.6", "--seed", 2)
    assert done.returncode == 0, done.stderr
    first, following = done.stdout.splitlines()
    options = TwinOptions(seed=2, crop=(0.5, 0.6))
    summary = make_twins(Catalog(shop.catalog), tmp_path / "again", options)
    assert first == (
        f"{source}: 240 items and their twins, 240 of these with another crop, {summary.shortened} with words dropped"
    )
    for name in ("items.jsonl", "images.tar", "attribute_where.json"):
        assert (source / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    program, *build = shlex.split(following.removeprefix("  next: "))
    assert program == "mbsd" and build[-1] == "DIR"
    done = command(*build[:-1], tmp_path / "catalog", "--workers", 1)
    assert done.returncode == 0, done.stderr
    twins = Catalog(tmp_path / "catalog")
    assert len(twins) == 480 and twins.attribute_where == Catalog(shop.catalog).attribute_where
    out = tmp_path / "t.parquet"
    done = command("tables", "derive", "alignment", "--catalog", twins.path, "--out", out)
    assert done.returncode == 0, done.stderr
    derive_table("alignment", twins, tmp_path / "again.parquet", DeriveOptions())
    assert out.read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert f"{out}: {len(Table(out))} rows (train " in done.stdout and "), 240 positive" in done.stdout
    assert "titles' words in common, without the pictures, tell right from wrong with ROC-AUC by" in done.stdout
    for words, message in (
        (["--balance", "value"], "--balance is of attributes"),
        (["--min-items", 2], "--min-items is of categories"),
    ):
        refused = command("tables", "derive", "alignment", "--catalog", twins.path, "--out", out, *words)
        assert refused.returncode == 2 and message in refused.stderr
