from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.layout import split_of
from mbsd.catalog.negatives import NegativeOptions
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item, item_id_of, read_items
from mbsd.catalog.tables import DeriveOptions, Kind, Table, build_table, derive_table, write_table
from mbsd.errors import UserError
from tests.catalog.helpers import items_of, small_catalog, write_jsonl, write_lines


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return small_catalog(tmp_path / "catalog", items_of(60), attribute_where={"shape": "image"})


TSV: dict[Kind, list[str]] = {
    "pairs": ["red lamp\tlamp\tl.jpg\t1", "cup\tlamp\tl.jpg\t0"],
    "attributes": ["形状:圆\tlamp\tl.jpg\t1", "形状:方\tcup\tc.jpg\t0"],
    "alignment": ["lamp\tl.jpg\tcup\tc.jpg\t0", "cup\tc.jpg\tcup\tc2.jpg\t1"],
    "categories": ["lamp\tl.jpg\t灯", "cup\tc.jpg\t杯", "other\to.jpg\t灯"],
}


@pytest.mark.parametrize("kind", list(TSV))
def test_build_from_tsv(tmp_path: Path, kind: Kind) -> None:
    source = write_lines(tmp_path / "a.tsv", *TSV[kind])
    catalog = small_catalog(tmp_path / "c", list(read_items(source)))
    summary = build_table(kind, source, catalog, tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet", catalog, kind)
    assert summary.rows == len(table) == len(TSV[kind]) and not summary.count.left_out
    lamp, cup = (catalog.item_number(item_id_of(*item)) for item in (("lamp", "l.jpg"), ("cup", "c.jpg")))
    splits = table.column("split")
    if kind == "alignment":
        assert table.column("item_a").tolist() == [lamp, cup] and table.column("item_b").tolist()[0] == cup
        assert table.column("label").tolist() == [0, 1]
        ids = [catalog.record(int(i)).item_id for i in (table.column("item_a")[0], table.column("item_b")[0])]
        assert splits[0] == split_of(min(ids))
        return
    assert splits == [catalog.record(int(item)).split for item in table.column("item")]
    if kind == "categories":
        assert table.class_names == ["杯", "灯"] and table.num_classes == 2
        assert table.column("label").tolist() == [1, 0, 1]
        return
    assert table.column("label").tolist() == [1, 0]
    assert table.column("text") == [line.split("\t")[0] for line in TSV[kind]]
    assert table.num_classes == 2 and table.class_names == []
    if kind == "attributes":
        assert table.column("attribute") == ["形状", "形状"] and table.column("where") == ["unknown", "unknown"]


def test_build_from_jsonl_and_parquet(tmp_path: Path, catalog: Catalog) -> None:
    records = [
        {"text": "q", "item_id": "id-4", "label": 1, "source": "ours", "evidence": 7, "split": "test"},
        {"text": "r", "item_id": "stranger", "label": 0, "source": None, "evidence": None, "split": None},
        {"text": "s", "item_id": "id-9", "label": 0, "source": None, "evidence": None, "split": None},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for source in (write_jsonl(tmp_path / "a.jsonl", *records), tmp_path / "a.parquet"):
        summary = build_table("pairs", source, catalog, tmp_path / "t.parquet")
        table = Table(tmp_path / "t.parquet", catalog)
        assert summary.rows == 2 and summary.count.left_out == {"item not in the catalogue": 1}
        assert summary.count.first["item not in the catalogue"] == f"{source}, row 2: stranger"
        assert table.column("item").tolist() == [4, 9] and table.column("evidence").tolist() == [7, 0]
        assert table.column("split") == ["test", split_of("id-9")] and table.column("source") == ["ours", "given"]


def test_all_items_unknown(tmp_path: Path, catalog: Catalog) -> None:
    source = write_lines(tmp_path / "a.tsv", "q\tlamp\tl.jpg\t1")
    with pytest.raises(UserError, match="none of its 1 rows names an item"):
        build_table("pairs", source, catalog, tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_derived_attributes(tmp_path: Path, catalog: Catalog) -> None:
    for name in ("a", "b"):
        derive_table("attributes", catalog, tmp_path / f"{name}.parquet", DeriveOptions(seed=3))
    derive_table("attributes", catalog, tmp_path / "c.parquet", DeriveOptions(seed=4))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table, other = Table(tmp_path / "a.parquet", catalog), Table(tmp_path / "c.parquet", catalog)
    assert table.column("text") != other.column("text")
    assert len(table) == 60 * 2 * 2 and Counter(table.column("label").tolist()) == {0: 120, 1: 120}
    in_category = {
        (record.category, name, value)
        for record in map(catalog.record, range(60))
        for name, value in record.attributes.items()
    }
    rows = zip(*(table.column(name) for name in ("text", "item", "label", "attribute", "where", "split")), strict=True)
    for text, item, label, attribute, where, split in rows:
        record = catalog.record(int(item))
        name, value = text.split(":")
        assert name == attribute and where == {"shape": "image", "shade": "unknown"}[name] and split == record.split
        assert (record.attributes[name] == value) == bool(label)
        assert (record.category, name, value) in in_category


def test_derived_negatives_fall_back_to_any_value(tmp_path: Path) -> None:
    items = [Item("a", "t", "", "x", {"n": "1", "same": "s"}), Item("b", "u", "", "y", {"n": "2", "same": "s"})]
    catalog = small_catalog(tmp_path / "c", items)
    summary = derive_table("attributes", catalog, tmp_path / "t.parquet", DeriveOptions(negatives=NegativeOptions(5)))
    table = Table(tmp_path / "t.parquet", catalog)
    assert list(
        zip(table.column("text"), table.column("item").tolist(), table.column("label").tolist(), strict=True)
    ) == [
        ("n:1", 0, 1),
        ("n:2", 0, 0),
        ("n:2", 1, 1),
        ("n:1", 1, 0),
    ]
    assert summary.count.left_out == {"attribute with one value in this catalogue": 2}
    assert summary.count.first.popitem()[1] == "item a: 'same' has no value but 's'"


def test_several_distinct_negatives(tmp_path: Path, catalog: Catalog) -> None:
    derive_table("attributes", catalog, tmp_path / "t.parquet", DeriveOptions(negatives=NegativeOptions(2)))
    table = Table(tmp_path / "t.parquet", catalog)
    rows = list(zip(table.column("item").tolist(), table.column("text"), strict=True))
    assert len(set(rows)) == len(rows)
    per_item = Counter((item, text.split(":")[0]) for item, text in rows)
    # A kind has two of the four shades (positive + 1) and all three shapes (positive + 2).
    assert {count for (_, name), count in per_item.items() if name == "shape"} == {3}
    assert {count for (_, name), count in per_item.items() if name == "shade"} == {2}


def test_derived_categories(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path / "c", [*items_of(10), Item("none", "title")])
    summary = derive_table("categories", catalog, tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet", catalog)
    assert table.class_names == ["kind 0", "kind 1"] and summary.count.left_out == {"item without a category": 1}
    assert table.column("label").tolist() == [0, 1] * 5 and table.column("item").tolist() == list(range(10))


def test_a_category_that_training_would_not_see_is_left_out(tmp_path: Path) -> None:
    """As one whose items are all alike, and so all in one split; and a smaller one is told from it."""
    held_out = [name for name in map("card{}".format, range(500)) if split_of(name) != "train"]
    cards = [Item(name, f"a {name}", "", "card") for name in held_out[:20]]
    vases = [Item(name, f"a vase {name}", "", "vase") for name in held_out[20:39]]
    shirts = [Item(f"o{n}", f"shirt {n}", "", "shirt") for n in range(40)]
    catalog = small_catalog(tmp_path / "c", [*shirts, *cards, *vases])
    summary = derive_table("categories", catalog, tmp_path / "t.parquet", DeriveOptions(min_items=20))
    table = Table(tmp_path / "t.parquet", catalog)
    assert table.class_names == ["shirt"] and table.column("label").tolist() == [0] * 40
    assert summary.count.left_out == {
        "item of a category without one in train": 20, "item of a small category": 19
    }  # fmt: skip


def test_rows_of_a_split_and_pickling(tmp_path: Path, catalog: Catalog) -> None:
    derive_table("categories", catalog, tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet", catalog)
    assert np.array_equal(table.rows("test"), catalog.indices("test")) and len(table.rows()) == 60
    state = pickle.dumps(table)
    assert len(state) < 1000
    copy = pickle.loads(state)
    assert copy.column("category") == table.column("category") and copy.class_names == table.class_names
    with pytest.raises(UserError, match="expected one of train, validation, test"):
        table.rows("dev")


def test_a_table_of_another_catalogue_is_refused(tmp_path: Path, catalog: Catalog) -> None:
    derive_table("categories", catalog, tmp_path / "t.parquet")
    other = small_catalog(tmp_path / "other", items_of(59))
    with pytest.raises(UserError, match=rf"{catalog.fingerprint[:12]}.*{other.fingerprint[:12]}.*build it again with"):
        Table(tmp_path / "t.parquet", other)
    assert len(Table(tmp_path / "t.parquet")) == 60
    with pytest.raises(UserError, match="holds categories; expected pairs"):
        Table(tmp_path / "t.parquet", catalog, "pairs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": [0, 60]}, "row 2: item is 60; expected an item number from 0 to 59"),
        ({"item": [-1, 0]}, "row 1: item is -1"),
        ({"label": [0, 2]}, "row 2: label is 2; expected 0 to 1"),
        ({"label": [0, None]}, "row 2: label is None"),
        ({"split": ["train", "dev"]}, "row 2: split is 'dev'; expected train | validation | test"),
        ({"text": ["", "q"]}, "row 1: text is ''"),
    ],
)
def test_bad_values_name_the_row(
    tmp_path: Path, catalog: Catalog, change: dict[str, list[object]], message: str
) -> None:
    good = {"text": ["q", "r"], "item": [0, 1], "label": [1, 0], "source": ["s", "s"], "evidence": [0, 0]}
    good |= {"replaced": ["", ""]}
    columns = {**good, "split": ["train", "test"], **change}
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        write_table("pairs", pa.table(columns), catalog, tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_bad_tables(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(UserError, match="no column 'category'"):
        write_table("categories", pa.table({"item": [0], "label": [0], "split": ["train"]}), catalog, tmp_path / "t")
    two = {"item": [0, 1], "label": [0, 0], "category": ["a", "b"], "split": ["train", "train"]}
    with pytest.raises(UserError, match="row 2: label 0 is 'b' here and 'a' before"):
        write_table("categories", pa.table(two), catalog, tmp_path / "t")
    with pytest.raises(UserError, match="number the categories 0, 1, 2"):
        write_table("categories", pa.table({**two, "label": [0, 5]}), catalog, tmp_path / "t")
    with pytest.raises(UserError, match="no such file"):
        Table(tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="not a task table"):
        Table(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="cannot be derived"):
        derive_table("pairs", catalog, tmp_path / "t.parquet")
