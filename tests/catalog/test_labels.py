"""Labels that repeat or contradict each other, and rows that are wrong, named by file and row as users count them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Kind, LabelOptions, Table, build_table
from mbsd.errors import UserError
from tests.catalog.helpers import items_of, small_catalog, write_jsonl, write_lines

NAN = float("nan")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return small_catalog(tmp_path_factory.mktemp("labels") / "catalog", items_of(12))


def tag(text: str, item: int, label: Any, **more: Any) -> dict[str, Any]:
    return {"text": text, "item_id": f"id-{item}", "label": label, **more}


def same_item(item: int, category: str) -> dict[str, Any]:
    return {"item_id": f"id-{item}", "category": category}


def pair(a: int, b: int, label: int) -> dict[str, Any]:
    return {"item_id_a": f"id-{a}", "item_id_b": f"id-{b}", "label": label}


CONTRADICTIONS: list[tuple[Kind, list[dict[str, Any]], str]] = [
    ("attributes", [tag("red", 0, 1), tag("red", 0, 0)], r"row 2: \(red, id-0\) is 0, row 1 said 1"),
    ("pairs", [tag("Red  Dress", 0, 1), tag("red dress", 0, 0)], r"row 2: \(red dress, id-0\) is 0, row 1 said 1"),
    (
        "pairs",
        [tag("q", 0, 1, split="test"), tag("q", 0, 1, split="train")],
        r"row 2: \(q, id-0\) is 1 in train, row 1 said 1 in test",
    ),
    ("categories", [same_item(0, "a"), same_item(0, "b")], r"row 2: \(id-0\) is 'b', row 1 said 'a'"),
    ("alignment", [pair(0, 1, 1), pair(1, 0, 0)], r"row 2: \(id-0, id-1\) is 0, row 1 said 1"),
]
OTHER: dict[Kind, dict[str, Any]] = {
    "attributes": tag("blue", 3, 1), "pairs": tag("blue", 3, 1), "categories": {"item_id": "id-3", "category": "c"},
    "alignment": {"item_id_a": "id-3", "item_id_b": "id-4", "label": 1},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "records", "message"), CONTRADICTIONS)
def test_contradictions(
    tmp_path: Path, catalog: Catalog, kind: Kind, records: list[dict[str, Any]], message: str
) -> None:
    source, out = write_jsonl(tmp_path / "labels.jsonl", *records, records[0], OTHER[kind]), tmp_path / "t.parquet"
    with pytest.raises(UserError, match=f"labels.jsonl, {message}; keep one of them, or give --contradictions drop"):
        build_table(kind, source, catalog, out)
    summary = build_table(kind, source, catalog, out, LabelOptions(contradictions="drop"))
    assert summary.count.left_out == {"contradicting label": 3} and summary.rows == len(Table(out)) == 1
    assert summary.count.read == 4 and summary.count.first["contradicting label"].endswith("row 1, against row 2")


@pytest.mark.parametrize("kind", list(OTHER))
def test_repeats(tmp_path: Path, catalog: Catalog, kind: Kind) -> None:
    source = write_jsonl(tmp_path / "labels.jsonl", OTHER[kind], OTHER[kind], OTHER[kind])
    summary = build_table(kind, source, catalog, tmp_path / "t.parquet")
    assert len(Table(tmp_path / "t.parquet")) == 1
    assert "left out: 2 repeated label (the first: " in summary.describe() and "row 2, as row 1)" in summary.describe()


def test_the_same_text_of_two_items_is_no_repeat(tmp_path: Path, catalog: Catalog) -> None:
    source = write_jsonl(tmp_path / "labels.jsonl", tag("red", 0, 1), tag("red", 1, 0), tag("blue", 0, 0))
    assert build_table("attributes", source, catalog, tmp_path / "t.parquet").rows == 3


def test_numbers_as_pandas_writes_them(tmp_path: Path, catalog: Catalog) -> None:
    """A column of integers with one gap becomes a column of floats."""
    columns = {
        "text": ["q", "r"],
        "item_id": ["id-0", "id-1"],
        "label": [1.0, 0.0],
        "evidence": [3.0, NAN],
        "split": ["test", None],
    }
    pq.write_table(pa.table({**columns, "price": [1, 2]}), tmp_path / "a.parquet")
    summary = build_table("pairs", tmp_path / "a.parquet", catalog, tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet")
    assert table.column("label").tolist() == [1, 0] and table.column("evidence").tolist() == [3, 0]
    assert summary.count.notes == ["columns not read: price"]


def test_categories_that_are_numbers(tmp_path: Path, catalog: Catalog) -> None:
    (tmp_path / "a.jsonl").write_text('{"item_id": "id-0", "category": 1}\n{"item_id": "id-1", "category": 1.0}\n')
    build_table("categories", tmp_path / "a.jsonl", catalog, tmp_path / "t.parquet")
    assert Table(tmp_path / "t.parquet").class_names == ["1"]


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("attributes", tag("red", 1, 0, split="valid"), r"split is 'valid'; expected train \| validation \| test"),
        ("attributes", tag("red", 1, 0, where="picture"), r"where is 'picture'; expected image \| title"),
        ("attributes", tag("red", 1, NAN), "no 'label'; a row of attributes needs item_id, text, label"),
        ("categories", {"item_id": "id-1", "category": NAN}, "no 'category'"),
        ("pairs", tag("red", 1, 0.5), "the label is 0.5; expected 0"),
        ("pairs", tag("red", 1, 1, evidence=-1), "'evidence' is -1; expected a count"),
        ("pairs", tag("red", 1, 1, evidence=2**31), "'evidence' is 2147483648"),
        ("pairs", tag("red", 1, 1, evidence=1.5), "'evidence' is 1.5"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, catalog: Catalog, kind: Kind, record: dict[str, Any], message: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", OTHER[kind], record)
    with pytest.raises(UserError, match=f"a.jsonl, row 2: {message}"):
        build_table(kind, source, catalog, tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_a_tsv_of_labels_for_a_catalogue_with_ids(tmp_path: Path, catalog: Catalog) -> None:
    source = write_lines(
        tmp_path / "a.tsv", "tag\ttitle\timage\tlabel", "red\ttitle 0\t000.jpg\t1", "\ttitle 0\t000.jpg\t1"
    )
    with pytest.raises(UserError, match="a.tsv, row 3: the tag is empty"):
        build_table("attributes", source, catalog, tmp_path / "t.parquet")
    write_lines(source, "red\ttitle 0\t000.jpg\t1")
    with pytest.raises(
        UserError,
        match="none of its 1 rows names .*a TSV names an item by its title and image.*first id is 'id-0'.*item_id",
    ):
        build_table("attributes", source, catalog, tmp_path / "t.parquet")


def test_labels_in_a_folder(tmp_path: Path, catalog: Catalog) -> None:
    for split in ("train", "test"):
        (tmp_path / f"labels/split={split}").mkdir(parents=True)
        item = 0 if split == "train" else 1
        pq.write_table(pa.Table.from_pylist([tag("red", item, 1)]), tmp_path / f"labels/split={split}/p.parquet")
    build_table("attributes", tmp_path / "labels", catalog, tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet")
    assert dict(zip(table.column("item").tolist(), table.column("split"), strict=True)) == {0: "train", 1: "test"}
