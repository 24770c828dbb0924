"""Identity keys: equal where they should be and nowhere else; placeholders; and what is refused, in one line each."""

from __future__ import annotations

import json
import pickle
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mbsd.batch
from mbsd.catalog.identity.find import text_keys
from mbsd.catalog.keys import KINDS, NO_KEY, KeyOptions, ProductColumn, open_keys, write_keys
from mbsd.catalog.queries import normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item, read_items
from mbsd.errors import UserError
from tests.catalog.helpers import items_of, picture, small_catalog, write_jsonl
from tests.damage import damage

TITLES = ["Red  Dress", "red dress", "ＲＥＤ dress", "blue dress", "", "STRASSE", "straße", "T-shirt"]
COLOURS = [0, 1, 0, 2, 1, None, 3, None]  # of the pictures; None: no picture
PRODUCTS: list[Any] = ["p1", "p2", "p1", None, "", 7, "7", "p9"]
ALL = ("product", "title", "picture")


def shop(folder: Path) -> tuple[Catalog, Path]:
    """Eight items, and the file they were built from."""
    folder.mkdir()
    records = []
    for number, (title, colour, product) in enumerate(zip(TITLES, COLOURS, PRODUCTS, strict=True)):
        name = "" if colour is None else f"{number}.jpg"
        if colour is not None:
            (folder / name).write_bytes(picture((colour * 60, 200 - colour * 50, 30)))
        records.append({"item_id": f"i{number}", "title": title, "image": name, "product_id": product})
    items = [Item(r["item_id"], r["title"], r["image"], attributes={"model": f"m{n // 4}"} if n < 6 else {})
             for n, r in enumerate(records)]  # fmt: skip
    source = write_jsonl(folder / "items.jsonl", *reversed(records))  # in another order than the catalogue
    return small_catalog(folder / "catalog", items, folder), source


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, Path]:
    catalog, source = shop(tmp_path_factory.mktemp("keys") / "shop")
    write_keys(catalog, KeyOptions(product=ProductColumn("product_id", source)))
    return catalog, source


def copied(built: tuple[Catalog, Path], folder: Path) -> Catalog:
    shutil.copytree(built[0].path, folder / "catalog")
    return Catalog(folder / "catalog")


def partition(keys: Any) -> list[list[int]]:
    """Items that share a key, by their first; those without a key are left out."""
    groups: dict[int, list[int]] = {}
    for item, key in enumerate(keys.tolist()):
        if key != NO_KEY:
            groups.setdefault(key, []).append(item)
    return list(groups.values())


def test_the_same_number_means_no_key_as_in_a_batch() -> None:
    assert mbsd.batch.NO_KEY == NO_KEY


def test_keys_of_every_kind(built: tuple[Catalog, Path]) -> None:
    keys = open_keys(built[0], ALL, required=True)
    assert keys.names == ALL
    found = keys.of(np.arange(8))
    assert found.shape == (8, 3) and found.dtype == np.int64 and found.min() == NO_KEY
    product, title, image = found.T
    assert partition(product) == [[0, 2], [1], [5, 6], [7]]  # the number 7 and the text "7" are one value
    assert partition(title) == [[0, 1, 2], [3], [5, 6], [7]]
    assert partition(image) == [[0, 2], [1, 4], [3], [6]]
    assert np.array_equal(keys.of(np.array([6, 0, 6])), found[[6, 0, 6]])


def test_kinds_come_in_the_order_asked_for_and_those_that_are_missing_are_left_out(built: tuple[Catalog, Path]) -> None:
    whole = open_keys(built[0], ALL, required=True).of(np.arange(8))
    some = open_keys(built[0], ("near_picture", "picture", "product"), required=True)
    assert some.names == ("picture", "product")
    assert np.array_equal(some.of(np.arange(8)), whole[:, [2, 0]])
    again = pickle.loads(pickle.dumps(some))
    assert again.names == some.names and again.digest == some.digest != ""
    assert np.array_equal(again.of(np.arange(8)), whole[:, [2, 0]])
    assert len(pickle.dumps(some)) < 1000, "the arrays themselves do not travel"


texts = st.text(st.sampled_from("aAåÅⅨix ß ſs\u0307ｅé e\u0301\t　"), max_size=6)


@given(st.lists(texts, min_size=2, max_size=8))
def test_title_keys_are_equal_where_the_normalised_titles_are(titles: list[str]) -> None:
    keys = text_keys([normalise_query(title) for title in titles])
    folded = [
        " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title).casefold()).split())
        for title in titles
    ]
    for one, key in zip(folded, keys.tolist(), strict=True):
        assert (key == NO_KEY) == (one == "") and key >= NO_KEY
        for other, other_key in zip(folded, keys.tolist(), strict=True):
            if one and other:
                assert (key == other_key) == (one == other)


def test_pictures_with_one_checksum_and_size_are_told_apart(
    built: tuple[Catalog, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CRC-32 is too short to tell millions of pictures apart: here all of a size have the same one."""
    catalog = copied(built, tmp_path)
    table = catalog.table()
    place = table.schema.get_field_index("crc32")
    one = table.set_column(place, "crc32", table["crc32"].combine_chunks().take([0] * len(table)))
    whole = catalog.whole_image
    read: list[int] = []

    def counted(item: int, say: Any) -> Any:
        read.append(item)
        return whole(item, say)

    monkeypatch.setattr(catalog, "table", lambda: one)
    monkeypatch.setattr(catalog, "whole_image", counted)
    write_keys(catalog)
    assert partition(open_keys(catalog, ("picture",), required=True).of(np.arange(8))[:, 0]) == [
        [0, 2], [1, 4], [3], [6]
    ]  # fmt: skip
    assert len(read) >= 4, "the clash was made"


def test_a_damaged_picture_has_no_key_and_is_named(
    built: tuple[Catalog, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = copied(built, tmp_path)
    offset = catalog.table()["offset"][2].as_py()
    shard = catalog.path / "shards" / "000000.tar"
    data = bytearray(shard.read_bytes())
    data[offset + 100] ^= 1
    shard.write_bytes(data)
    report = write_keys(catalog, KeyOptions(near_picture=True, workers=1))
    assert partition(open_keys(catalog, ("picture",), required=True).of(np.arange(8))[:, 0]) == [
        [0], [1, 4], [3], [6]
    ]  # fmt: skip
    assert open_keys(catalog, ("near_picture",), required=True).of(np.array([2])).tolist() == [[NO_KEY]]
    assert len(report.damaged) == 1 and "item 2" in report.damaged[0], "two kinds read it, it is named once"
    assert report.damaged[0] in capsys.readouterr().err


def test_placeholders_lose_their_key_and_are_named_but_products_do_not(tmp_path: Path) -> None:
    (tmp_path / "none.jpg").write_bytes(picture((128, 128, 128)))
    items = [
        Item(f"i{n}", "T-Shirt" if n < 5 else f"shirt {n}", "none.jpg" if n >= 3 else "", attributes={"gtin": "1"})
        for n in range(9)
    ]
    items[8] = Item("i8", "t-shirt", "", attributes={"gtin": "2"})
    catalog = small_catalog(tmp_path / "c", items, tmp_path)
    report = write_keys(catalog, KeyOptions(product=ProductColumn("gtin"), max_same=4))
    assert open_keys(catalog, ALL, required=True).names == ALL
    product, title, image = open_keys(catalog, ALL, required=True).of(np.arange(9)).T
    assert partition(product) == [[0, 1, 2, 3, 4, 5, 6, 7], [8]]
    assert partition(title) == [[5], [6], [7]], "six of the same title"
    assert partition(image) == [], "five of the same picture"
    assert [(group.items, group.title, group.item_ids) for group in report.kinds["title"].placeholders] == [
        (6, "T-Shirt", ("i0", "i1", "i2"))
    ]
    assert [group.items for group in report.kinds["picture"].placeholders] == [5]
    assert report.kinds["product"].placeholders == () and report.kinds["product"].largest[0].items == 8
    assert report.with_another == 8 and report.kinds["title"].items == 3
    written = json.loads((catalog.path / "keys" / "report.json").read_text("utf-8"))
    assert written["kinds"]["title"]["placeholders"][0]["items"] == 6
    assert "placeholder, dropped: 6 items: 'T-Shirt' (i0, i1, i2, …)" in report.describe()
    # Exactly max_same is no placeholder.
    write_keys(catalog, KeyOptions(max_same=6))
    assert partition(open_keys(catalog, ("title",), required=True).of(np.arange(9))[:, 0])[0] == [0, 1, 2, 3, 4, 8]


def test_keys_written_again_leave_those_in_use_as_they_are(built: tuple[Catalog, Path], tmp_path: Path) -> None:
    catalog = copied(built, tmp_path)
    before = open_keys(catalog, ALL, required=True)
    found = before.of(np.arange(8))
    sent = pickle.dumps(before)
    write_keys(catalog, KeyOptions(product=ProductColumn("model")))
    assert np.array_equal(before.of(np.arange(8)), found)
    after = open_keys(catalog, ALL, required=True)
    assert partition(after.of(np.arange(8))[:, 0]) == [[0, 1, 2, 3], [4, 5]]
    assert after.digest != before.digest
    assert len(list((catalog.path / "keys").glob("*.npy"))) == 3, "old arrays are removed"
    with pytest.raises(UserError, match=r"keys/product\.\w+\.npy: cannot be read .* start again"):
        pickle.loads(sent)


def test_a_write_that_fails_leaves_the_old_keys(
    built: tuple[Catalog, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = copied(built, tmp_path)
    found = open_keys(catalog, ALL, required=True).of(np.arange(8))
    save, saved = np.save, []

    def fails_at_the_second(file: Any, array: Any) -> None:
        saved.append(1)
        if len(saved) == 2:
            raise OSError("No space left on device")
        save(file, array)

    monkeypatch.setattr("mbsd.catalog.identity.files.np.save", fails_at_the_second)
    with pytest.raises(OSError, match="No space"):
        write_keys(catalog, KeyOptions(product=ProductColumn("model")))
    assert np.array_equal(open_keys(catalog, ALL, required=True).of(np.arange(8)), found)


def refusals(catalog: Catalog) -> dict[str, Any]:
    keys = catalog.path / "keys"
    return {
        "none": (lambda: shutil.rmtree(keys), r"has no identity keys, and product or title or picture is asked for"),
        "damaged array": (lambda: damage(next(keys.glob("title.*.npy"))), r"keys/title\.\w+\.npy: damaged"),
        "missing array": (lambda: next(keys.glob("title.*.npy")).unlink(), r"title\.\w+\.npy: cannot be read \(No"),
        "damaged json": (lambda: (keys / "keys.json").write_text("{"), r"keys.json: damaged, no JSON"),
        "changed json": (
            lambda: (keys / "keys.json").write_text((keys / "keys.json").read_text().replace("100", "101")),
            r"keys.json: damaged, its content is not what was written",
        ),
        "another version": (
            lambda: (keys / "keys.json").write_text((keys / "keys.json").read_text().replace('n": 1', 'n": 2')),
            r"keys.json: version 2, this program reads version 1",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("what", ["none", "damaged array", "missing array", "damaged json", "changed json",
                                  "another version"])  # fmt: skip
def test_keys_that_cannot_be_used_are_refused_with_the_command(
    what: str, built: tuple[Catalog, Path], tmp_path: Path
) -> None:
    catalog = copied(built, tmp_path)
    do, message = refusals(catalog)[what]
    do()
    with pytest.raises(UserError, match=message) as refused:
        open_keys(catalog, ALL, required=True)
    assert f"`mbsd catalog keys {catalog.path}`" in str(refused.value) and "\n" not in str(refused.value)


def test_keys_of_another_catalogue_are_refused(built: tuple[Catalog, Path], tmp_path: Path) -> None:
    other = small_catalog(tmp_path / "other", items_of(8))
    shutil.copytree(built[0].path / "keys", other.path / "keys")
    with pytest.raises(UserError, match=r"keys.json: keys of another catalogue \(fingerprint"):
        open_keys(other, ALL, required=False)


def test_without_keys_where_none_are_required(tmp_path: Path) -> None:
    keys = open_keys(small_catalog(tmp_path / "c", items_of(3)), KINDS, required=False)
    assert keys.names == () and keys.of(np.arange(3)).shape == (3, 0)


def test_only_kinds_that_are_there_count_as_required(built: tuple[Catalog, Path], tmp_path: Path) -> None:
    catalog = copied(built, tmp_path)
    write_keys(catalog)
    with pytest.raises(UserError, match=r"has keys of title, picture alone, and product is asked for"):
        open_keys(catalog, ("product",), required=True)
    with pytest.raises(UserError, match=r"key 'gtin'; expected one of product, title, picture, near_picture"):
        open_keys(catalog, ("gtin",), required=False)


def test_a_source_without_all_items_or_without_the_column_is_refused(
    built: tuple[Catalog, Path], tmp_path: Path
) -> None:
    catalog, source = built
    lines = source.read_text("utf-8").splitlines(keepends=True)
    short = tmp_path / "short.jsonl"
    short.write_text("".join(line for line in lines if '"i3"' not in line and '"i6"' not in line), "utf-8")
    with pytest.raises(UserError, match=r"short.jsonl: 2 of the 8 items of catalogue .* the first is 'i3'"):
        write_keys(catalog, KeyOptions(product=ProductColumn("product_id", short)))
    with pytest.raises(UserError, match=r"no column 'gtin'; found item_id, title, image, product_id"):
        write_keys(catalog, KeyOptions(product=ProductColumn("gtin", source)))
    with pytest.raises(UserError, match=r"no item has an attribute 'gtin' \(found model\); give --items SOURCE"):
        write_keys(catalog, KeyOptions(product=ProductColumn("gtin")))
    (tmp_path / "a.tsv").write_text("title\timage\n", "utf-8")
    with pytest.raises(UserError, match=r"a TSV has no names of columns"):
        write_keys(catalog, KeyOptions(product=ProductColumn("gtin", tmp_path / "a.tsv")))


def test_ids_that_were_made_of_title_and_image(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "items.jsonl", *({"title": f"t{n}", "group": n // 2} for n in range(4)))
    catalog = small_catalog(tmp_path / "c", list(read_items(source)))
    write_keys(catalog, KeyOptions(product=ProductColumn("group", source)))
    assert partition(open_keys(catalog, ("product",), required=True).of(np.arange(4))[:, 0]) == [[0, 1], [2, 3]]


def test_ids_under_another_name(tmp_path: Path) -> None:
    records = [{"sku": f"s{n}", "title": f"t{n}", "group": n // 2} for n in range(4)]
    catalog = small_catalog(tmp_path / "c", [Item(r["sku"], r["title"]) for r in records])
    source = write_jsonl(tmp_path / "skus.jsonl", *records)
    write_keys(catalog, KeyOptions(product=ProductColumn("group", source, {"item_id": "sku"})))
    assert partition(open_keys(catalog, ("product",), required=True).of(np.arange(4))[:, 0]) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_same": 1}, "max_same is 1; expected 2 or more"),
        ({"near_picture": True, "near_distance": 17}, "near_distance is 17; expected 0 to 16"),
        ({"near_distance": 3}, "no near pictures are asked for"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KeyOptions(**options)
