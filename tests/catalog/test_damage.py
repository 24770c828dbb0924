"""Damage on disk: what is read because it is there is compared with the checksum that was recorded of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Table, derive_table
from mbsd.errors import UserError
from tests.catalog.helpers import image_folder, items_of, small_catalog
from tests.damage import damage

COUNT = 60


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    catalog = small_catalog(folder / "c", items_of(COUNT))
    found = {}
    for kind in ("attributes", "categories"):
        found[kind] = folder / f"{kind}.parquet"
        derive_table(kind, catalog, found[kind])
    return found


@pytest.mark.parametrize("kind", ["attributes", "categories"])
def test_a_table_with_a_bit_that_fell_over_is_never_another_table(
    kind: str, tables: dict[str, Path], tmp_path: Path
) -> None:
    """At any byte: refused in one line that names the file, or read as it was (bits that say nothing)."""
    whole, data = Table(tables[kind]), tables[kind].read_bytes()
    facts = (whole.kind, whole.fingerprint, whole.class_names, whole.split_by)
    columns = {name: list(whole.column(name)) for name in whole._table.column_names}
    file, refused, tried = tmp_path / "table.parquet", 0, range(0, len(data), 29)
    for at in tried:
        changed = bytearray(data)
        changed[at] ^= 16
        file.write_bytes(changed)
        try:
            found = Table(file)
        except UserError as error:
            assert str(error).startswith(f"table {file}") and "\n" not in str(error), error
            refused += 1
            continue
        assert (found.kind, found.fingerprint, found.class_names, found.split_by) == facts, at
        assert {name: list(found.column(name)) for name in columns} == columns, at
    assert refused > 0.4 * len(tried)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        UserError, match=r"table .*table.parquet: not a Parquet file, or a damaged one .*; make it again"
    ):
        Table(file)


def flip(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert data.count(old) >= 1 and len(old) == len(new)
    file.write_bytes(data.replace(old, new, 1))


READS: dict[str, Callable[[Catalog], object]] = {
    "record": lambda catalog: catalog.record(13),
    "title": lambda catalog: catalog.title(13),
    "picture": lambda catalog: catalog.image(13),
    "table": lambda catalog: catalog.table(),
    "id": lambda catalog: catalog.item_number("id-13"),
}


@pytest.mark.parametrize("read", READS)
def test_a_damaged_index_is_named_by_whatever_reads_it(read: str, tmp_path: Path) -> None:
    """A title that became another one; items of other shards are read as before."""
    small_catalog(tmp_path / "c", items_of(COUNT), items_per_shard=10)
    flip(tmp_path / "c" / "index.arrow", b"title 13", b"title 18")
    catalog = Catalog(tmp_path / "c")
    with pytest.raises(UserError, match=r"index.arrow: damaged, the rows of shard 1 are not what was written; bring"):
        READS[read](catalog)
    assert catalog.title(25) == "title 25" and catalog.record(5).item_id == "id-5"


def test_other_files_of_the_index(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", items_of(COUNT))
    for name, read in (
        ("numbers/train.npy", lambda catalog: catalog.indices("train")),
        ("numbers/id_item.npy", READS["id"]),
        ("numbers/id_hash.npy", READS["id"]),
    ):
        given = (tmp_path / "c" / name).read_bytes()
        damage(tmp_path / "c" / name, at=0.9)
        with pytest.raises(UserError, match=f"{name}: damaged, its bytes are not those that were written"):
            read(Catalog(tmp_path / "c"))
        (tmp_path / "c" / name).write_bytes(given)
        read(Catalog(tmp_path / "c"))
    flip(tmp_path / "c" / "catalog.json", b'"without_image": 60', b'"without_image": 61')
    with pytest.raises(UserError, match=r"catalog.json: damaged, its content is not what was written"):
        Catalog(tmp_path / "c")


def test_a_catalogue_without_checksums_is_read_as_before(tmp_path: Path) -> None:
    """One that an older version built."""
    small_catalog(tmp_path / "c", items_of(COUNT))
    file = tmp_path / "c" / "catalog.json"
    meta = json.loads(file.read_text())
    del meta["checksums"], meta["checksum"]
    file.write_text(json.dumps(meta))
    catalog = Catalog(tmp_path / "c")
    assert catalog.item_number("id-7") == 7 and len(catalog.table()) == COUNT


OPTIONS = BuildOptions(10, workers=1, progress=False)
MANY = [*items_of(COUNT), *(Item(f"text-{n}", "text") for n in range(400))]  # more than are ever in flight


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures, and a catalogue of them that nobody interrupted."""
    folder = tmp_path_factory.mktemp("built")
    images = image_folder(folder / "images", COUNT)
    build_catalog(MANY, images, folder / "whole", OPTIONS)
    return images, folder / "whole"


@pytest.mark.parametrize("what", ["shards/000002.tar", "parts/000001.json", "missing"])
def test_damaged_parts_of_an_unfinished_build_are_named_and_built_again(
    what: str, built: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, whole = built

    def interrupted() -> Iterator[Item]:
        yield from MANY
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_catalog(interrupted(), images, tmp_path / "c", OPTIONS)
    building = tmp_path / "c.building"
    assert len(list(building.glob("parts/*.json"))) > 4 and "WARNING" not in capfd.readouterr().err
    if what == "missing":
        (building / "parts/000002.json").unlink()
        number, named = 2, "the commit before 000003.json is gone"
    elif what.endswith(".json"):
        flip(building / what, b'"rows": 20', b'"rows": 30')
        number, named = 1, f"{what} is not as it was written"
    else:
        file = building / ("catalog" if what.endswith("tar") else "") / what
        damage(file)
        number, named = int(file.stem), f"{file.relative_to(building)} is not as it was written"
    summary = build_catalog(MANY, images, tmp_path / "c", OPTIONS)
    line = f"WARNING: {building}: {named}: part {number} and what follows it are built again\n"
    assert line in capfd.readouterr().err and summary.resumed_from == 10 * number
    found = {str(file.relative_to(whole)): file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    assert {name: (tmp_path / "c" / name).read_bytes() for name in found} == found
