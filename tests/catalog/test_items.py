"""Items as shops send them: missing values, numbers as ids, ids under another name, headers, folders of files."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.layout import QUARANTINE_FILE
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item, Items, item_id_of, read_items
from mbsd.errors import UserError
from tests.catalog.helpers import quarantine, write_jsonl, write_lines

NAN = float("nan")


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def both(folder: Path, *records: dict[str, Any]) -> tuple[Path, Path]:
    """The same records as JSONL and as Parquet."""
    pq.write_table(pa.Table.from_pylist(list(records)), folder / "a.parquet")
    return write_jsonl(folder / "a.jsonl", *records), folder / "a.parquet"


def notes_of(items: Items) -> list[str]:
    assert list(items)
    return items.notes()


def test_missing_is_missing_and_whole_is_an_integer(tmp_path: Path) -> None:
    records = [
        {"item_id": NAN, "title": "a", "category": NAN, "attributes": {"size": NAN}},
        {"item_id": NAN, "title": "b", "category": 3.0, "attributes": {"size": 40.0}},
        {"item_id": 7.0, "title": None, "category": 3.5, "attributes": {"size": 40.5}},
    ]
    for record in records:
        record["image"] = "i.jpg"
    for source in both(tmp_path, *records):
        assert list(read_items(source)) == [
            Item(item_id_of("a", "i.jpg"), "a", "i.jpg"),
            Item(item_id_of("b", "i.jpg"), "b", "i.jpg", "3", {"size": "40"}),
            Item("7", "", "i.jpg", "3.5", {"size": "40.5"}),
        ]


def test_ids_of_every_type(tmp_path: Path) -> None:
    for array, ids in (
        (pa.array([1.0, 2.0]), ["1", "2"]), (pa.array([1, 2], pa.uint64()), ["1", "2"]),
        (pa.array([0.1, 3.0], pa.float32()), ["0.1", "3"]),
        (pa.array([Decimal("1.00"), Decimal("2.50")]), ["1", "2.5"]), (pa.array([b"x", b"y"]), ["x", "y"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]), (pa.array([True, False]), ["true", "false"]),
    ):  # fmt: skip
        assert [
            item.item_id for item in read_items(parquet(tmp_path / "a.parquet", item_id=array, title=["a", "b"]))
        ] == ids


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array([1.0, 2.0**53]),
            r"row 2: 'item_id' is 9007199254740992.0, .* at or above 2\*\*53, .* write it as text",
        ),
        (pa.array([1.0, 2.0**24], pa.float32()), r"row 2: 'item_id' is 16777216.0, .* at or above 2\*\*24"),
        (pa.array([b"a", b"\xff"]), "row 2: 'item_id' is bytes that are not UTF-8"),
        (pa.array([["a"], ["b"]]), "row 1: 'item_id' is a list; expected text or a number"),
    ],
)
def test_ids_that_are_refused(tmp_path: Path, column: Any, message: str) -> None:
    source = parquet(tmp_path / "a.parquet", item_id=column, title=["a", "b"])
    with pytest.raises(UserError, match=f"a.parquet, {message}"):
        list(read_items(source))


def test_a_float_that_has_lost_digits_in_jsonl(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", '{"title": "a"}', '{"title": "b", "attributes": {"size": 1e21}}')
    with pytest.raises(UserError, match=r"a.jsonl, row 2: 'attributes.size' is 1e\+21"):
        list(read_items(source))


def test_a_map_that_says_two_things(tmp_path: Path) -> None:
    pairs = pa.array([[("shade", "red"), ("shade", "red"), ("size", "4")]], pa.map_(pa.string(), pa.string()))
    assert next(iter(read_items(parquet(tmp_path / "a.parquet", title=["t"], attributes=pairs)))).attributes == {
        "shade": "red",
        "size": "4",
    }
    pairs = pa.array([[("shade", "red"), ("shade", "blue")]], pa.map_(pa.string(), pa.string()))
    with pytest.raises(UserError, match="row 1: the attribute 'shade' is both 'red' and 'blue'"):
        list(read_items(parquet(tmp_path / "a.parquet", title=["t"], attributes=pairs)))


@pytest.mark.parametrize("name", ["id", "SKU", "product_id"])
def test_an_id_under_another_name(tmp_path: Path, name: str) -> None:
    for source in both(tmp_path, {name: "A1", "title": "red dress"}, {name: "A2", "title": "red dress"}):
        with pytest.raises(
            UserError, match=f"row 1: no column 'item_id', and '{name}' would not be read .* --column item_id={name}"
        ):
            list(read_items(source))
        assert [item.item_id for item in read_items(source, {"item_id": name})] == ["A1", "A2"]


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    for source in both(tmp_path, {"title": "a", "price": 1}, {"title": "b", "price": 2}):
        assert notes_of(read_items(source)) == [
            "2 rows without 'item_id': their ids are made of title and image", "columns not read: price",
        ]  # fmt: skip
    for source in both(tmp_path, {"name": "a", "item_id": "x"}):
        assert [item.title for item in read_items(source, {"title": "name"})] == ["a"]
        assert notes_of(read_items(source, {"title": "name"})) == []
    with pytest.raises(UserError, match="column 'name'; items have item_id, title"):
        read_items(tmp_path / "a.jsonl", {"name": "title"})


def test_a_header_of_a_tsv(tmp_path: Path) -> None:
    for header in ("title\timage\tcategory", "Title\tImage\tCategory\r"):
        source = write_lines(tmp_path / "a.tsv", header, "red dress\ta.jpg\tdress")
        items = read_items(source)
        assert [item.title for item in items] == ["red dress"]
        assert items.notes() == [f"{source}, line 1: a header, skipped"]
    items = read_items(write_lines(tmp_path / "a.tsv", "tag\ttitle\timage\tlabel", "red\tdress\ta.jpg\t1"))
    assert [item.title for item in items] == ["dress"]
    pair = write_lines(tmp_path / "a.tsv", "title_a\timage_a\ttitle_b\timage_b\tlabel", "a\t1\tb\t2\t1")
    assert [item.title for item in read_items(pair)] == ["a", "b"]
    with pytest.raises(
        UserError, match="line 1: a header of image, title; a TSV's columns are title, image, in this order"
    ):
        list(read_items(write_lines(tmp_path / "a.tsv", "image\ttitle", "a.jpg\tred dress")))
    source = write_lines(tmp_path / "a.tsv", "red dress\ta.jpg", "title\timage")
    assert len(list(read_items(source))) == 2  # no first line


def test_folders_and_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "items.parquet"
    parquet(folder / "category=shoes/part-0.parquet", item_id=["1"], title=["a"])
    parquet(folder / "category=__HIVE_DEFAULT_PARTITION__/part-0.parquet", item_id=["2"], title=["b"])
    parquet(folder / "part-1.parquet", item_id=[3], title=["c"], category=["hats"])
    (folder / "_SUCCESS").touch()
    (folder / ".part-1.parquet.crc").write_bytes(b"crc")
    expected = {("1", "shoes"), ("2", ""), ("3", "hats")}
    for source in (folder, tmp_path / "*.parquet", folder / "**/*.parquet"):
        assert {(item.item_id, item.category) for item in read_items(source)} == expected
    (folder / "part-2.parquet").touch()
    with pytest.raises(UserError, match="part-2.parquet: not a Parquet file but an empty one"):
        list(read_items(folder))


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    source = parquet(tmp_path / "a.parquet", title=[f"{number * 7919 % 10_007}" for number in range(10_000)])
    damaged = bytearray(source.read_bytes())
    damaged[20_000:20_500] = bytes(500)
    source.write_bytes(damaged)
    with pytest.raises(UserError, match=r"a.parquet: cannot be read behind row \d+ \("):
        list(read_items(source))


def test_compressed_and_other_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"title": "a"}\r{"title": "b"}\r'))
    assert [item.title for item in read_items(tmp_path / "a.jsonl.gz")] == ["a", "b"]
    (tmp_path / "b.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-9])
    (tmp_path / "c.tsv").write_bytes("lamp\tl.jpg\n".encode("utf-16"))
    for name, message in (("b.jsonl.gz", "cannot be read"), ("c.tsv", "UTF-16; convert")):
        with pytest.raises(UserError, match=f"{name}: {message}"):
            list(read_items(tmp_path / name))


def test_every_row_is_an_item_or_left_out(tmp_path: Path) -> None:
    rows = [
        {"item_id": "1", "title": "a"},
        {"item_id": "1", "title": "b"},
        {"item_id": "2", "title": " "},
        {"item_id": 2, "title": "c"},
    ]
    source = write_lines(tmp_path / "a.jsonl", *map(json.dumps, rows[:2]), "", *map(json.dumps, rows[2:]))
    summary = build_catalog(read_items(source), None, tmp_path / "c", BuildOptions(workers=1, progress=False))
    assert summary.count.used == summary.items == len(Catalog(tmp_path / "c")) == 1 and summary.count.read == 4
    assert summary.count.left_out == {"same item id": 2, "neither title nor usable image": 1}
    # Lines count as an editor shows them, with the empty one.
    assert summary.count.first == {"same item id": "a.jsonl, row 2", "neither title nor usable image": "a.jsonl, row 4"}
    assert {(line["place"], line["kept"]) for line in quarantine(tmp_path / "c")} == {
        (f"a.jsonl, row {n}", False) for n in (2, 4, 5)
    }
    assert (tmp_path / "c" / QUARANTINE_FILE).is_file()
