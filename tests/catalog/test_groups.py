"""Splits by group: items that look the same or are called the same are in one split."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from mbsd.catalog.groups import GroupOptions, find_groups, group_kinds, group_numbers, group_splits
from mbsd.catalog.layout import split_of
from mbsd.catalog.mining.mine import MiningSettings, mine_pairs
from mbsd.catalog.queries import normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item, read_items
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.catalog.table_file import BY_ITEM, CHECKSUM, Table
from mbsd.catalog.tables import DeriveOptions, build_table, derive_table
from mbsd.cli.tables import pairs_app, tables_app
from mbsd.errors import UserError
from tests.catalog.helpers import picture, small_catalog, write_jsonl

NONE = GroupOptions(by=())


def closure(keys: list[list[int]], max_same: int) -> list[set[int]]:
    """The items that each item is linked with, by walking from it over shared keys; -1 is no key."""
    items = range(len(keys[0]))
    found = []
    for start in items:
        seen, open_ = {start}, [start]
        while open_:
            item = open_.pop()
            for of_kind in keys:
                if of_kind[item] >= 0 and of_kind.count(of_kind[item]) <= max_same:
                    new = [other for other in items if of_kind[other] == of_kind[item] and other not in seen]
                    seen.update(new)
                    open_ += new
        found.append(seen)
    return found


@settings(deadline=None)
@given(
    st.integers(1, 14).flatmap(
        lambda size: st.lists(st.lists(st.integers(-1, 5), min_size=size, max_size=size), min_size=1, max_size=3)
    ),
    st.integers(2, 5),
)
def test_a_group_is_what_shared_keys_reach(keys: list[list[int]], max_same: int) -> None:
    number = group_numbers([np.array(of_kind, dtype=np.int64) for of_kind in keys], len(keys[0]), max_same)
    assert set(number.tolist()) == set(range(number.max() + 1))
    assert [set(np.flatnonzero(number == of_item).tolist()) for of_item in number] == closure(keys, max_same)


# Spellings of few titles, and of ids in both splits.
titles = st.lists(st.sampled_from(["Red Lamp", "red  lamp", "Ｒed Lamp", "cup", "CUP", "", "vase", "x"]), max_size=12)


@settings(max_examples=25, deadline=None)
@given(titles, st.randoms(use_true_random=False))
def test_no_title_is_in_two_splits_whatever_the_order(titles: list[str], shuffled: Any) -> None:
    items = [Item(f"i{n}", title or f"alone {n}") for n, title in enumerate([*titles, "last"])]
    other = items.copy()
    shuffled.shuffle(other)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            dict(zip(catalog.table()["item_id"].to_pylist(), group_splits(catalog), strict=True))
            for catalog in (small_catalog(Path(folder) / str(n), order) for n, order in enumerate((items, other)))
        ]
    assert found[0] == found[1]
    of_title = defaultdict(list)
    for item in items:
        of_title[normalise_query(item.title)].append(item.item_id)
    for ids in of_title.values():
        assert {found[0][item_id] for item_id in ids} == {split_of(min(ids))}


def with_split(split: str, count: int, head: str = "n") -> list[str]:
    """The first ids whose own split this is."""
    ids = (f"{head}{n:04d}" for n in range(1000))
    return [item_id for item_id in ids if split_of(item_id) == split][:count]


@pytest.fixture
def chained(tmp_path: Path) -> Catalog:
    """a and b have one title, b and c one picture; d is alone, with a picture that nearly is a's."""
    [a], [b], [c], [d] = (
        with_split(split, 1, head) for split, head in zip(("test", "train", "validation", "train"), "abcd", strict=True)
    )
    images = tmp_path / "images"
    images.mkdir()
    scene = Image.effect_noise((64, 64), 90).resize((96, 96))
    for name, colour in (("b.jpg", "red"), ("c.jpg", "red")):
        (images / name).write_bytes(picture(colour))
    scene.save(images / "a.jpg", quality=95)
    scene.resize((80, 80)).save(images / "d.jpg", quality=80)
    items = [
        Item(d, "vase", "d.jpg", "y", {"shade": "dim"}),
        Item(c, "mug", "c.jpg", "y", {"shade": "red"}),
        Item(b, "Lamp", "b.jpg", "x", {"shade": "blue"}),
        Item(a, "lamp", "a.jpg", "x", {"shade": "red"}),
    ]
    return small_catalog(tmp_path / "catalog", items, images)


@pytest.mark.parametrize(
    ("by", "splits"),
    [
        ((), ["train", "validation", "train", "test"]),
        (("title",), ["train", "validation", "test", "test"]),
        (("picture",), ["train", "train", "train", "test"]),
        (("title", "picture"), ["train", "test", "test", "test"]),
        (("near_picture",), ["test", "train", "train", "test"]),
        (("title", "picture", "near_picture"), ["test", "test", "test", "test"]),
    ],
)
def test_titles_and_pictures_chain(chained: Catalog, tmp_path: Path, by: tuple[str, ...], splits: list[str]) -> None:
    options = GroupOptions(by, near_distance=8 if "near_picture" in by else 0, workers=1)
    assert group_splits(chained, options) == splits
    for kind in ("attributes", "categories"):
        summary = derive_table(kind, chained, tmp_path / "t.parquet", DeriveOptions(group=options))
        table = Table(tmp_path / "t.parquet", chained)
        assert table.column("split") == [splits[item] for item in table.column("item")]
        assert table.split_by == options.described()
        assert summary.split_notes == [find_groups(chained, options).describe()]


def test_a_placeholder_links_nothing(chained: Catalog) -> None:
    groups = find_groups(chained)
    assert groups.sizes().tolist() == [1, 3]
    assert groups.describe() == (
        "3 of 4 items are in groups with an equal title or picture (1 groups, the largest of 3); 2 have their group's "
        "split instead of their own"
    )
    assert find_groups(chained, NONE).describe() == "each item has its own split (equal items may be in two)"
    ids = [*with_split("train", 3), *with_split("test", 3)]
    for limit, kept in ((6, False), (5, True)):
        with tempfile.TemporaryDirectory() as folder:
            catalog = small_catalog(Path(folder) / "c", [Item(item_id, "No title") for item_id in ids])
            own = group_splits(catalog, GroupOptions(max_same=limit)) == catalog.table()["split"].to_pylist()
        assert own == kept


def test_without_groups_a_table_is_byte_for_byte_split_by_item(chained: Catalog, tmp_path: Path) -> None:
    """And an older table, whose metadata has no checksum, says the same of itself."""
    derive_table("categories", chained, tmp_path / "t.parquet", DeriveOptions(group=NONE))
    table = Table(tmp_path / "t.parquet", chained)
    assert table.split_by == BY_ITEM == {"by": "item"}
    assert table.column("split") == chained.table()["split"].to_pylist()
    written = pq.read_table(tmp_path / "t.parquet")
    metadata = {name: text for name, text in written.schema.metadata.items() if name != CHECKSUM.encode()}
    assert metadata[b"mbsd.split"] == b'{"by": "item"}' and metadata[b"mbsd.version"] == b"2"
    pq.write_table(written.replace_schema_metadata(metadata), tmp_path / "old.parquet")
    older = Table(tmp_path / "old.parquet", chained)
    assert older.split_by == {"by": "item"} and older.column("split") == table.column("split")


def log_of(catalog: Catalog, path: Path) -> Path:
    """Two buyers of each item, each under the item's own words and its category's."""
    rows = [
        {"user": f"u{user}", "query": query, "item": record.item_id, "kind": "purchase", "time": 1000 * item + user}
        for item, record in enumerate(map(catalog.record, range(len(catalog))))
        for query in (f"{record.category} {item}", record.title)
        for user in range(2)
    ]
    return write_jsonl(path, *rows)


def test_mined_pairs_are_split_by_group(chained: Catalog, tmp_path: Path) -> None:
    log = log_of(chained, tmp_path / "log.jsonl")
    for options in (GroupOptions(), NONE):
        report = mine_pairs(log, chained, tmp_path / "p.parquet", MiningSettings(group=options))
        table = Table(tmp_path / "p.parquet", chained)
        splits = group_splits(chained, options)
        assert set(table.column("label").tolist()) == {0, 1} and set(table.column("item").tolist()) == {0, 1, 2, 3}
        assert table.column("split") == [splits[item] for item in table.column("item")]
        assert table.split_by == options.described()
        assert report.groups == find_groups(chained, options).describe()
        counted = {name: table.column("split").count(name) for name in report.split_rows}
        assert report.split_rows == counted


def test_a_split_by_time_stays_what_it_is(chained: Catalog, tmp_path: Path) -> None:
    log = log_of(chained, tmp_path / "log.jsonl")
    by_time = {"split": "time", "validation_from": "0.5", "test_from": "0.8"}
    for n, more in enumerate(({}, {"group": NONE})):
        report = mine_pairs(log, chained, tmp_path / f"{n}.parquet", MiningSettings(**by_time, **more))
        assert report.groups == "" and Table(tmp_path / f"{n}.parquet").split_by["by"] == "time"
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()
    with pytest.raises(UserError, match="--group is of --split item; the split is by time"):
        MiningSettings(**by_time, group=GroupOptions(("title",)))


def test_the_synthetic_shop_is_split_by_product(tmp_path: Path) -> None:
    """Its duplicates take the original's picture now and then, and are in its split anyway."""
    synthesise(tmp_path / "raw", ShopOptions(150, 3, "en", image_side=64, duplicates=0.3), workers=1)
    items = list(read_items(tmp_path / "raw/items.jsonl"))
    catalog = small_catalog(tmp_path / "c", items, tmp_path / "raw/images")
    groups = find_groups(catalog)
    product = {
        row["item_id"]: row["product_id"]
        for row in map(json.loads, (tmp_path / "raw/items.jsonl").read_text("utf-8").splitlines())
    }
    products: defaultdict[int, set[str]] = defaultdict(set)
    for item_id, number in zip(catalog.table()["item_id"].to_pylist(), groups.number.tolist(), strict=True):
        products[number].add(product[item_id])
    assert all(len(of_group) == 1 for of_group in products.values())
    assert (groups.sizes() > 1).sum() >= 3 and groups.splits() == catalog.table()["split"].to_pylist()


def test_split_columns_of_a_source_are_obeyed_and_what_they_cut_is_told(chained: Catalog, tmp_path: Path) -> None:
    ids = chained.table()["item_id"].to_pylist()
    said = ["test", "validation", "train", None]
    rows = [{"item_id": i, "category": "x", "split": split} for i, split in zip(ids, said, strict=True)]
    summary = build_table("categories", write_jsonl(tmp_path / "a.jsonl", *rows), chained, tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet", chained)
    assert table.column("split") == ["test", "validation", "train", "test"]
    assert table.split_by == {**GroupOptions().described(), "given_rows": 3}
    assert summary.split_notes[-1] == (
        "the source's own splits are kept: 1 of 2 items (equal ones counted once) are in more than one of them"
    )
    summary = build_table("categories", write_jsonl(tmp_path / "b.jsonl", *rows[:3]), chained, tmp_path / "t.parquet")
    assert Table(tmp_path / "t.parquet", chained).split_by == {"by": "source"} and len(summary.split_notes) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ("title", "sku")}, "group 'sku'; expected title, picture, near_picture, separated by commas, or none"),
        ({"by": group_kinds("title,,picture")}, "group ''; expected"),
        ({"by": group_kinds("none,title")}, "group 'none'; expected"),
        ({"max_same": 1}, "max_same is 1; expected 2 or more"),
        ({"by": ("near_picture",), "near_distance": 17}, "near_distance is 17; expected 0 to 16"),
        ({"by": ("picture",), "titles": Path("items.jsonl")}, "--group-titles items.jsonl: title is not in --group"),
        ({"near_distance": 2}, "near_picture is not in --group; add it"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GroupOptions(**options)


def test_the_commands(chained: Catalog, tmp_path: Path) -> None:
    """All three take the same options, and say what they did."""
    log, out = log_of(chained, tmp_path / "log.jsonl"), tmp_path / "t.parquet"
    ids = chained.table()["item_id"].to_pylist()
    labels = write_jsonl(tmp_path / "labels.jsonl", *({"item_id": i, "category": "x"} for i in ids))
    given = ("--catalog", chained.path, "--out", out)
    for app, words in (
        (tables_app, ("derive", "attributes", *given)),
        (tables_app, ("build", "categories", labels, *given)),
        (pairs_app, ("mine", "--log", log, *given)),
    ):
        for more, options in (
            ((), GroupOptions()),
            (("--group", "picture", "--max-same", 50), GroupOptions(("picture",), 50)),
            (("--group", "title,near_picture", "--near-distance", 8), GroupOptions(("title", "near_picture"), 100, 8)),
            (("--group", "none"), NONE),
        ):
            result = CliRunner().invoke(app, list(map(str, (*words, *more))))
            assert result.exit_code == 0, result.output
            assert ("have their group's split" in result.stdout) == bool(options.by)
            table, splits = Table(out, chained), group_splits(chained, options)
            assert table.split_by == options.described()
            assert table.column("split") == [splits[item] for item in table.column("item")]


def test_where_titles_are_masked_the_unmasked_ones_are_compared(tmp_path: Path) -> None:
    """ "Acme" is what is left of two products' titles; the split is the one of the unmasked catalogue."""
    ids = [*with_split("test", 2, "a"), *with_split("train", 2, "b"), *with_split("train", 1, "c")]
    names = ["Acme Red shirt", "ACME  blue shirt", "acme red shirt", "Acme blue  shirt", "Acme green shirt"]
    whole = [{"item_id": item_id, "title": title} for item_id, title in zip(ids, names, strict=True)]
    source = write_jsonl(tmp_path / "whole.jsonl", *whole[::-1], {"item_id": "more", "title": "Acme Red shirt"})
    plain = small_catalog(tmp_path / "plain", list(read_items(source)))
    masked = small_catalog(tmp_path / "masked", [Item(item_id, "Acme") for item_id in ids])
    options = GroupOptions(titles=source)
    of_plain = dict(zip(plain.table()["item_id"].to_pylist(), group_splits(plain), strict=True))
    assert group_splits(masked, options) == [of_plain[item_id] for item_id in ids] == [*["test"] * 4, "train"]
    assert group_splits(masked, GroupOptions(titles=plain.path)) == group_splits(masked, options)
    assert group_splits(masked) == ["test"] * 5
    assert options.described()["titles"] == "whole.jsonl"
    with pytest.raises(UserError, match="1 of the 6 items of catalogue .* are not in it, the first is 'more'"):
        group_splits(plain, GroupOptions(titles=write_jsonl(tmp_path / "few.jsonl", *whole)))
    with pytest.raises(UserError, match="masked: 1 of the 6 items .*'more'; give one of the same items"):
        group_splits(plain, GroupOptions(titles=masked.path))


def test_names_of_keys() -> None:
    assert group_kinds("none") == () and group_kinds("picture, title,title") == ("picture", "title")


def test_a_damaged_picture_links_nothing_and_is_named(chained: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    table = chained.table()
    offset, size = table["offset"][2].as_py(), table["size"][2].as_py()
    shard = next(chained.path.glob("shards/*.tar"))
    data = bytearray(shard.read_bytes())
    data[offset + size // 2] ^= 255
    shard.write_bytes(data)
    groups = find_groups(Catalog(chained.path))
    assert groups.splits() == ["train", "validation", "test", "test"]
    assert "item 2" in capsys.readouterr().err
