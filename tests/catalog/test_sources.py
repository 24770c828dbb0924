from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.attribute_values import value_keys
from mbsd.catalog.sources import Item, item_id_of, read_items
from mbsd.catalog.task_rows import read_task_rows
from mbsd.errors import UserError
from tests.catalog.helpers import write_jsonl, write_lines


def test_stage1_tsv(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.tsv", 'He said "hi", ok\ta/1.jpg', " padded \tb.jpg", "\tonly.jpg", "no image\t")
    items = list(read_items(source))
    assert [(i.title, i.image) for i in items] == [
        ('He said "hi", ok', "a/1.jpg"),
        (" padded ", "b.jpg"),
        ("", "only.jpg"),
        ("no image", ""),
    ]
    assert items[0].item_id == item_id_of('He said "hi", ok', "a/1.jpg")
    assert len({i.item_id for i in items}) == 4


def test_classification_tsv(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.tsv", "lamp\tl.jpg\t灯", "cup\tc.jpg\t杯子")
    assert [i.category for i in read_items(source)] == ["灯", "杯子"]
    assert [(r.category, r.item_ids) for r in read_task_rows(source, "categories")] == [
        ("灯", (item_id_of("lamp", "l.jpg"),)),
        ("杯子", (item_id_of("cup", "c.jpg"),)),
    ]


@pytest.mark.parametrize("kind", ["pairs", "attributes"])
def test_query_and_tag_tsv(tmp_path: Path, kind: str) -> None:
    source = write_lines(tmp_path / "a.tsv", "!灯,\tlamp\tl.jpg\t1", "款式:圆\tlamp\tl.jpg\t0")
    rows = list(read_task_rows(source, kind))  # type: ignore[arg-type]
    assert [(r.text, r.label) for r in rows] == [("!灯,", 1), ("款式:圆", 0)]
    items = list(read_items(source))
    assert [i.title for i in items] == ["lamp", "lamp"]
    assert items[0] == items[1] and rows[0].item_ids == (items[0].item_id,)


def test_alignment_tsv_gives_two_items(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.tsv", "a\t1.jpg\tb\t2.jpg\t1")
    assert [i.title for i in read_items(source)] == ["a", "b"]
    (row,) = read_task_rows(source, "alignment")
    assert row.item_ids == (item_id_of("a", "1.jpg"), item_id_of("b", "2.jpg")) and row.label == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\tb", "a\tb\tc"], r"a\.tsv, line 2: 3 columns; expected 2 \(title, image\)"),
        (["one column"], r"a\.tsv, line 1: 1 columns; expected 2 = title, image"),
        (["q\tt\ti.jpg\t1", "q\tt\ti.jpg\t2"], r"a\.tsv, row 2: the label is '2'; expected 0"),
        (["t\ti\tt\ti\tyes"], r"a\.tsv, row 1: the label is 'yes'"),
    ],
)
def test_bad_tsv_names_the_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_items(write_lines(tmp_path / "a.tsv", *lines)))


def test_tsv_of_another_kind_is_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.tsv", "title\timage.jpg\tcategory")
    with pytest.raises(UserError, match="line 1: 3 columns; expected 5"):
        list(read_task_rows(source, "alignment"))


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes("\ufefflamp\tl.jpg\r\ncup\tc.jpg\r\n".encode())
    assert [(i.title, i.image) for i in read_items(tmp_path / "a.tsv")] == [("lamp", "l.jpg"), ("cup", "c.jpg")]


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"lamp\tl.jpg\n" + "灯\tl.jpg\n".encode("gbk"))
    with pytest.raises(UserError, match=r"line 2: byte 0 is not UTF-8"):
        list(read_items(tmp_path / "a.tsv"))


def test_jsonl(tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "a.jsonl",
        {"item_id": "x", "title": "t", "image": "i.jpg", "category": "c", "attributes": {"n": 3, "e": None, "w": "v"}},
        {"title": "t", "category_path": ["a", "b"]},
        {"image": "i.jpg", "item_id": 7},
    )
    assert list(read_items(source)) == [
        Item("x", "t", "i.jpg", "c", {"n": "3", "w": "v"}),
        Item(item_id_of("t", ""), "t"),
        Item("7", "", "i.jpg"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 1: not JSON"),
        ("[1]", "line 1: list; expected one JSON object"),
        ('{"name": "x"}', "line 1: neither 'title' nor 'image'; found name"),
        ('{"title": {"zh": "x"}}', "row 1: 'title' is a dict; expected text"),
        ('{"title": "\\ud800"}', "row 1: 'title' is text with half a surrogate pair"),
        ('{"title": "x", "attributes": [1]}', "row 1: 'attributes' is a list"),
        ('{"title": "x", "attributes": {"a": ["b", {"c": 1}]}}', "row 1: 'attributes.a' is a dict; expected text"),
    ],
)
def test_bad_jsonl(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_items(write_lines(tmp_path / "a.jsonl", line)))


def test_several_values_of_an_attribute(tmp_path: Path) -> None:
    """A list becomes one text, which is taken apart where values are compared."""
    attributes = {"shade": ["red", " blue", None, "", "red"], "size": [], "sizes": [38, 39.0], "one": ["x"]}
    (item,) = read_items(write_jsonl(tmp_path / "a.jsonl", {"title": "t", "attributes": attributes}))
    assert item.attributes == {"shade": "red; blue", "sizes": "38; 39", "one": "x"}
    assert value_keys(item.attributes["shade"]) == {"red", "blue"}
    table = pa.table({"title": ["t"], "attributes": pa.array([{"shade": ["red", "blue"], "size": None}])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [item.attributes for item in read_items(tmp_path / "a.parquet")] == [{"shade": "red; blue"}]


@pytest.mark.parametrize(
    "attributes",
    [
        pa.array([[("shade", "red")], None], pa.map_(pa.string(), pa.string())),
        pa.array([{"shade": "red", "size": None}, None]),
        pa.array(['{"shade": "red"}', None]),
    ],
    ids=["map", "struct", "json"],
)
def test_parquet(tmp_path: Path, attributes: pa.Array) -> None:
    table = pa.table({"item_id": ["a", "b"], "title": ["t", None], "image": ["", "i.jpg"], "attributes": attributes})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_items(tmp_path / "a.parquet")) == [
        Item("a", "t", "", "", {"shade": "red"}),
        Item("b", "", "i.jpg"),
    ]


def test_task_rows_from_jsonl_and_parquet(tmp_path: Path) -> None:
    records = [{"text": "q", "item_id": "a", "label": 1, "evidence": 3, "split": "test"}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for source in (write_jsonl(tmp_path / "a.jsonl", *records), tmp_path / "a.parquet"):
        (row,) = read_task_rows(source, "pairs")
        assert (row.text, row.item_ids, row.label, row.evidence, row.split) == ("q", ("a",), 1, 3, "test")


def test_task_row_without_a_needed_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: no 'item_id_b'"):
        list(read_task_rows(write_jsonl(tmp_path / "a.jsonl", {"item_id_a": "x", "label": 1}), "alignment"))


def test_unknown_or_missing_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.csv", "title,image")
    with pytest.raises(UserError, match="unknown kind of file '.csv'"):
        list(read_items(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="no such file"):
        list(read_items(tmp_path / "a.tsv"))
    write_lines(tmp_path / "a.parquet", "no parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        list(read_items(tmp_path / "a.parquet"))
