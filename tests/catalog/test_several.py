"""Several catalogues behind one face, tables that name their rows' catalogues, keys that do not mix."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbsd.catalog.concat import concat_tables, read_parts
from mbsd.catalog.groups import GroupOptions
from mbsd.catalog.keys import NO_KEY, KeyOptions, ProductColumn, open_keys, write_keys
from mbsd.catalog.reader import Catalog, DamagedRecord
from mbsd.catalog.several import Catalogs, called, item_columns
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import LabelOptions, Table, build_table, derive_table, write_table
from mbsd.errors import UserError
from tests.catalog.helpers import image_folder, items_of, small_catalog, write_jsonl
from tests.ranks import command

SIZES = {"hats": 13, "shoes": 40, "bags": 7}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Catalogues of items of which several have the same id, title and picture."""
    root = tmp_path_factory.mktemp("several")
    images = image_folder(root / "images", 40)
    for name, count in SIZES.items():
        items = items_of(count)
        if name == "shoes":
            items = [Item(i.item_id, i.title, i.image, f"other {n % 3}", i.attributes) for n, i in enumerate(items)]
        small_catalog(root / name, [*items, Item(f"text-{name}", f"only a title, {name}", "")], images)
    return {name: root / name for name in SIZES}


@pytest.fixture(scope="module")
def catalogs(paths: dict[str, Path]) -> Catalogs:
    return Catalogs(paths)


def test_each_item_is_that_of_its_catalogue(catalogs: Catalogs, paths: dict[str, Path]) -> None:
    members = {name: Catalog(path) for name, path in paths.items()}
    assert len(catalogs) == sum(map(len, members.values()))
    flat = 0
    table = catalogs.table()
    for place, (name, one) in enumerate(members.items()):
        for own in range(len(one)):
            assert catalogs.member(flat) == (place, own) and catalogs.number(name, own) == flat
            assert catalogs.record(flat) == one.record(own) and catalogs.title(flat) == one.title(own)
            assert catalogs.image(flat) == one.image(own) and catalogs.has_image(flat) == one.has_image(own)
            assert table["item_id"][flat].as_py() == one.record(own).item_id
            flat += 1
    for split in ("train", "validation", "test", None):
        expected = [catalogs.number(name, own) for name, one in members.items() for own in one.indices(split).tolist()]
        assert catalogs.indices(split).tolist() == expected
    assert catalogs.is_complete().tolist() == [c for one in members.values() for c in one.is_complete().tolist()]
    assert catalogs.meta["with_image"] == sum(SIZES.values())
    assert catalogs.attribute_values() == members["shoes"].attribute_values()
    for outside in (-1, len(catalogs)):
        with pytest.raises(IndexError, match=f"item {outside}"):
            catalogs.title(outside)
    again = pickle.loads(pickle.dumps(catalogs))
    assert again.fingerprint == catalogs.fingerprint and again.title(20) == catalogs.title(20)
    assert len(pickle.dumps(catalogs)) < 5000, "paths and fingerprints, not the index"


def test_the_fingerprint_is_of_content_and_order(catalogs: Catalogs, paths: dict[str, Path]) -> None:
    other_way = Catalogs(dict(reversed(paths.items())))
    fewer = Catalogs({name: paths[name] for name in ("hats", "shoes")})
    renamed = Catalogs({f"{name}2": path for name, path in paths.items()})
    assert len({catalogs.fingerprint, other_way.fingerprint, fewer.fingerprint}) == 3
    assert renamed.fingerprint == catalogs.fingerprint


def test_a_damaged_picture_is_named_by_its_catalogue(paths: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(paths["bags"], tmp_path / "bags")
    shard = tmp_path / "bags/shards/000000.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    both = Catalogs({"hats": paths["hats"], "bags": tmp_path / "bags"})
    with pytest.raises(DamagedRecord, match=f"shard {shard}, item 6: "):
        both.image(both.number("bags", 6))


def test_an_item_is_called_by_its_catalogue(catalogs: Catalogs, paths: dict[str, Path]) -> None:
    assert called(catalogs, catalogs.number("shoes", 2)) == "shoes 2"
    assert called(Catalog(paths["shoes"]), 2) == "2"


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_an_address_and_a_number_are_the_same_item(data: st.DataObject, catalogs: Catalogs) -> None:
    items = np.array(data.draw(st.lists(st.integers(0, len(catalogs) - 1), min_size=1, max_size=30)), dtype=np.int64)
    columns = item_columns(catalogs, {"item": items})
    back = [catalogs.number(name, own) for name, own in zip(columns["catalog"], columns["item"].tolist(), strict=True)]
    assert back == items.tolist()


@pytest.fixture(scope="module")
def tables(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    for name, path in paths.items():
        derive_table("attributes", Catalog(path), folder / f"attributes-{name}.parquet")
        derive_table("categories", Catalog(path), folder / f"categories-{name}.parquet")
    return folder


def rows_by_id(table: Table, catalog: Any) -> list[tuple[Any, ...]]:
    """Each row with the id of its item, and with the name of its category."""
    texts = table.column("text" if table.kind == "attributes" else "category")
    ids = [catalog.record(item).item_id for item in table.column("item").tolist()]
    labels = table.column("label").tolist()
    named = [table.class_names[label] for label in labels] if table.class_names else labels
    return list(zip(ids, texts, named, table.column("split"), strict=True))


@pytest.mark.parametrize("kind", ["attributes", "categories"])
def test_a_joined_table_has_the_rows_of_each(
    kind: str, paths: dict[str, Path], catalogs: Catalogs, tables: Path, tmp_path: Path
) -> None:
    words = [f"{tables}/{kind}-{name}.parquet={name}" for name in ("shoes", "bags", "hats")]  # in another order
    out = tmp_path / "all.parquet"
    printed = command("tables", "concat", *words, "--out", out)
    joined = Table(out, catalogs)
    assert f"{len(joined)} rows of {kind}, of shoes (41 items), bags (8 items), hats (14 items)" in printed.stdout
    parts = {name: Table(f"{tables}/{kind}-{name}.parquet", Catalog(paths[name])) for name in paths}
    expected = [row for name in ("shoes", "bags", "hats") for row in rows_by_id(parts[name], Catalog(paths[name]))]
    assert rows_by_id(joined, catalogs) == expected
    named = joined.addresses(np.arange(len(joined)))
    assert named["catalog"].tolist() == [name for name in ("shoes", "bags", "hats") for _ in range(len(parts[name]))]
    assert named["item"].tolist() == [i for n in ("shoes", "bags", "hats") for i in parts[n].column("item").tolist()]
    # In the file an item is the name of its catalogue and its number there.
    written = pq.read_table(out)
    assert written["catalog"].to_pylist() == named["catalog"].tolist()
    assert written["item"].to_pylist() == named["item"].tolist()
    again = pickle.loads(pickle.dumps(joined))
    assert again.column("item").tolist() == joined.column("item").tolist() and again.fingerprint == catalogs.fingerprint
    if kind == "categories":
        assert joined.class_names == ["kind 0", "kind 1", "other 0", "other 1", "other 2"]
    # Written again from what was read, for several catalogues, it is the same.
    write_table(joined.kind, joined.take(np.arange(len(joined))), catalogs, tmp_path / "again.parquet")
    assert rows_by_id(Table(tmp_path / "again.parquet", catalogs), catalogs) == expected


def test_a_table_of_one_catalogue_is_found_by_it(paths: dict[str, Path], catalogs: Catalogs, tables: Path) -> None:
    plain = tables / "attributes-bags.parquet"
    own, among = Table(plain, Catalog(paths["bags"])), Table(plain, catalogs)
    start = catalogs.number("bags", 0)
    assert among.column("item").tolist() == [start + item for item in own.column("item").tolist()]
    assert among.fingerprint == catalogs.fingerprint and own.fingerprint == Catalog(paths["bags"]).fingerprint
    twice = Catalogs({"bags": paths["bags"], "more": paths["bags"], "hats": paths["hats"]})
    with pytest.raises(UserError, match=r"attributes-bags.parquet: it names no catalogue, and 'bags' and 'more' of .*"
                                        r"`mbsd tables concat .*attributes-bags.parquet=bags`"):  # fmt: skip
        Table(plain, twice)
    others = Catalogs({name: paths[name] for name in ("hats", "shoes")})
    with pytest.raises(UserError, match=r"attributes-bags.parquet was made for another catalogue .*data.catalogs has "
                                        r"hats [0-9a-f]{12}, shoes "):  # fmt: skip
        Table(plain, others)


def test_what_does_not_fit_is_refused_by_row_and_value(
    paths: dict[str, Path], catalogs: Catalogs, tables: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all.parquet"
    concat_tables([(tables / f"attributes-{name}.parquet", name) for name in ("hats", "shoes")], out)
    hats = len(Table(tables / "attributes-hats.parquet"))
    with pytest.raises(UserError, match=rf"all.parquet, row {hats + 1}: catalog is 'shoes'; .*: hats, bags \(data"):
        Table(out, Catalogs({name: paths[name] for name in ("hats", "bags")}))
    with pytest.raises(UserError, match=rf"row {hats + 1}: catalog is 'shoes'; .*the one of {paths['hats']}"):
        Table(out, Catalog(paths["hats"]))
    with pytest.raises(UserError, match="was made for another catalogue 'shoes'"):
        Table(out, Catalogs({"hats": paths["hats"], "shoes": paths["bags"]}))
    # One of its catalogues alone, and only its rows.
    alone = tmp_path / "alone.parquet"
    concat_tables([(tables / "attributes-hats.parquet", "hats")], alone)
    assert Table(alone, Catalog(paths["hats"])).column("item").tolist() == (
        Table(tables / "attributes-hats.parquet").column("item").tolist()
    )
    # What somebody has changed in the file.
    for column, value, expected in (
        ("item", SIZES["hats"] + 1, rf"row 3: item is 14; expected an item number from 0 to {SIZES['hats']}"),
        ("catalog", "hat", r"row 3: catalog is 'hat'; expected one that is read here: hats, shoes, bags"),
        ("catalog", None, r"row 3: catalog is None"),
    ):
        changed = pq.read_table(out)
        values = changed[column].to_pylist()
        values[2] = value
        type_ = pa.int64() if column == "item" else pa.string()
        changed = changed.set_column(changed.column_names.index(column), column, pa.array(values, type_))
        pq.write_table(changed, tmp_path / "changed.parquet")
        with pytest.raises(UserError, match=expected):
            Table(tmp_path / "changed.parquet", catalogs)


def test_tables_that_cannot_be_joined(tables: Path, tmp_path: Path) -> None:
    hats, shoes, kinds = (tables / f"{n}.parquet" for n in ("attributes-hats", "attributes-shoes", "categories-hats"))
    for parts, expected in (
        (
            [(hats, "a"), (kinds, "a")],
            "categories-hats.parquet: holds categories, and .*attributes-hats.parquet attrib",
        ),
        ([(hats, "a"), (shoes, "a")], r"attributes-shoes.parquet: is of another catalogue .* named 'a' too"),
        ([], "no table is given"),
    ):
        with pytest.raises(UserError, match=expected):
            concat_tables(parts, tmp_path / "out.parquet")
    concat_tables([(hats, "a"), (hats, "a")], tmp_path / "out.parquet")
    assert len(Table(tmp_path / "out.parquet")) == 2 * len(Table(hats))
    with pytest.raises(UserError, match="names its catalogues already"):
        concat_tables([(tmp_path / "out.parquet", "a")], tmp_path / "more.parquet")
    assert read_parts(["x=y/t.parquet=a-b.1"]) == [(Path("x=y/t.parquet"), "a-b.1")]
    for wrong in ("t.parquet", "=a", "t.parquet=", "t.parquet=a b"):
        with pytest.raises(UserError, match=r"expected TABLE=NAME"):
            read_parts([wrong])


def test_what_was_withheld_from_all_is_withheld(paths: dict[str, Path], tmp_path: Path) -> None:
    parts = []
    for name, withheld in (("hats", ["shape", "shade"]), ("bags", ["shade"])):
        row = {"text": "q", "item": 0, "label": 1, "source": "title", "evidence": 0, "replaced": "", "split": "train"}
        made = {"withheld": withheld, "withheld_categories": name == "hats"}
        write_table("pairs", pa.Table.from_pylist([row]), Catalog(paths[name]), tmp_path / f"{name}.parquet", made=made)
        parts.append((tmp_path / f"{name}.parquet", name))
    assert concat_tables(parts, tmp_path / "all.parquet").made == {"withheld": ["shade"], "withheld_categories": False}


def test_the_same_key_in_two_catalogues_is_not_the_same_product(paths: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    copies = {name: tmp_path / name for name in paths}
    for name, path in paths.items():
        shutil.copytree(path, copies[name])
        product = ProductColumn("shape") if name != "hats" else None
        write_keys(Catalog(copies[name]), KeyOptions(product=product))
    catalogs = Catalogs(copies)
    keys = open_keys(catalogs, ("product", "title", "picture"), required=True)
    assert keys.names == ("product", "title", "picture")
    found = keys.of(np.arange(len(catalogs)))
    own = {
        name: open_keys(Catalog(path), ("product", "title", "picture"), required=True) for name, path in copies.items()
    }
    start = 0
    seen: list[set[int]] = []
    for name, of in own.items():
        size = len(Catalog(copies[name]))
        alone = of.of(np.arange(size))
        here = found[start : start + size][:, [keys.names.index(kind) for kind in of.names]]
        # Within a catalogue the same items are the same product, and the same ones have no key.
        for column in range(alone.shape[1]):
            assert np.array_equal(alone[:, column] == NO_KEY, here[:, column] == NO_KEY)
            same = alone[:, column][:, None] == alone[:, column][None, :]
            assert np.array_equal(same, here[:, column][:, None] == here[:, column][None, :])
        seen.append(set(found[start : start + size].ravel().tolist()) - {NO_KEY})
        start += size
    assert (found[: len(Catalog(copies["hats"])), 0] == NO_KEY).all(), "hats have no product"
    assert all(not a & b for n, a in enumerate(seen) for b in seen[:n]) and found.min() == NO_KEY
    assert open_keys(catalogs, ("product",), required=False).digest != keys.digest
    with pytest.raises(UserError, match=f"catalogue {copies['hats']} has keys of title, picture alone"):
        open_keys(catalogs, ("product",), required=True)


def labels(path: Path, *rows: tuple[str, str | None, int]) -> Path:
    """Tags of items: (item id, name of the catalogue, label)."""
    records: list[dict[str, Any]] = [{"item_id": i, "text": "shape:round", "label": label} for i, _, label in rows]
    named = [record | ({"catalog": name} if name else {}) for record, (_, name, _) in zip(records, rows, strict=True)]
    return write_jsonl(path, *named)


def test_labels_name_the_catalogue_of_their_item(paths: dict[str, Path], tmp_path: Path) -> None:
    source = labels(
        tmp_path / "labels.jsonl",
        ("id-3", "hats", 1), ("id-3", "bags", 0), ("id-20", None, 1), ("text-bags", None, 0), ("id-20", "hats", 1),
        ("nobody", None, 1), ("id-20", "shoes", 1),
    )  # fmt: skip
    options = [f"--catalog={name}={path}" for name, path in paths.items()]
    out = tmp_path / "tags.parquet"
    printed = command("tables", "build", "attributes", source, *options, "--out", out).stdout
    assert "4 rows" in printed and "2 item not in the catalogue" in printed and "1 repeated label" in printed
    written = pq.read_table(out)
    rows = {(r["catalog"], r["item"], r["label"]) for r in written.to_pylist()}
    assert rows == {("hats", 3, 1), ("bags", 3, 0), ("shoes", 20, 1), ("bags", 7, 0)}
    # Items that are equal in two catalogues are in one split.
    splits = {r["catalog"]: r["split"] for r in written.to_pylist() if r["item"] == 3}
    assert splits["hats"] == splits["bags"]


def test_labels_that_name_none_or_a_wrong_one(paths: dict[str, Path], tmp_path: Path) -> None:
    options = [f"--catalog={name}={path}" for name, path in paths.items()]
    cases: list[tuple[list[tuple[str, str | None, int]], str]] = [
        (
            [("id-20", None, 1), ("id-3", None, 1)],
            "labels.jsonl, row 2: 'id-3' is an item of hats and of shoes and of b",
        ),
        ([("id-3", "hat", 1)], "labels.jsonl, row 1: catalog is 'hat'; expected one of hats, shoes, bags"),
        ([("id-3", "hats", 1), ("id-3", "hats", 0)], r"row 2: \(shape:round, id-3, hats\) is 0, row 1 said 1"),
        ([("id-30", "hats", 1)], "none of its 1 rows names an item of "),
    ]
    for rows, expected in cases:
        source = labels(tmp_path / "labels.jsonl", *rows)
        with pytest.raises(UserError, match=expected):
            build_table("attributes", source, Catalogs(paths), tmp_path / "out.parquet")
    pairs = write_jsonl(tmp_path / "pairs.jsonl", {"item_id_a": "id-30", "item_id_b": "text-bags", "label": 1})
    with pytest.raises(
        UserError, match="'id-30' is of the catalogue shoes and 'text-bags' of bags; a row of alignment"
    ):
        build_table("alignment", pairs, Catalogs(paths), tmp_path / "out.parquet")
    titles = LabelOptions(group=GroupOptions(titles=tmp_path / "items.jsonl"))
    with pytest.raises(UserError, match="--group-titles .*items.jsonl: is of one catalogue's items"):
        build_table("attributes", source, Catalogs(paths), tmp_path / "out.parquet", titles)
    for wrong in (
        [options[0], f"--catalog={paths['bags']}"],
        [options[0], options[0]],
        ["--catalog=x/y=z", options[1]],
    ):
        done = command("tables", "build", "attributes", source, *wrong, "--out", tmp_path / "out.parquet")
        assert done.returncode == 2
        assert "expected NAME=FOLDER, each with a name of its own" in done.stdout + done.stderr


def test_a_row_of_two_catalogues_cannot_be_written(catalogs: Catalogs, tmp_path: Path) -> None:
    row = {"item_a": 0, "item_b": catalogs.number("bags", 0), "label": 1, "split": "train"}
    with pytest.raises(ValueError, match="items of two catalogues"):
        write_table("alignment", pa.Table.from_pylist([row]), catalogs, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_alignment_of_several(paths: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"item_id_a": f"id-{n}", "item_id_b": f"id-{n + 1}", "label": n % 2, "catalog": name}
            for name in ("bags", "shoes") for n in range(5)]  # fmt: skip
    source = write_jsonl(tmp_path / "pairs.jsonl", *rows)
    catalogs = Catalogs(paths)
    build_table("alignment", source, catalogs, tmp_path / "pairs.parquet")
    table = Table(tmp_path / "pairs.parquet", catalogs)
    named = table.addresses(np.arange(len(table)))
    found = list(zip(named["catalog"], named["item_a"].tolist(), named["item_b"].tolist(), strict=True))
    assert found == [(row["catalog"], n % 5, n % 5 + 1) for n, row in enumerate(rows)]
