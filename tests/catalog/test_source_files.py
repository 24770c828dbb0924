"""Which files a path, folder or pattern means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mbsd.catalog.source_files import find_files, partition_of
from mbsd.errors import UserError

FORMATS = {".parquet": "Parquet", ".csv": "CSV"}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_in(source: Path | str, folder: Path) -> list[str]:
    return [os.path.relpath(file.path, folder) for file in find_files(str(source), FORMATS).files]


def test_a_folder_as_spark_writes_it(tmp_path: Path) -> None:
    touch(tmp_path / "log.parquet", "part-0.snappy.parquet", "day=1/part-1.parquet", "_SUCCESS", ".part-0.parquet.crc",
          "_temporary/0/part-0.parquet", ".hidden/x.parquet", "day=1/README.md", "_kind=1/p.parquet")  # fmt: skip
    expected = ["_kind=1/p.parquet", "day=1/part-1.parquet", "part-0.snappy.parquet"]
    found = find_files(str(tmp_path / "log.parquet"), FORMATS)
    assert sorted(os.path.relpath(file.path, tmp_path / "log.parquet") for file in found.files) == expected
    assert found.ignored == ("day=1/README.md",)
    assert sorted(names_in(tmp_path / "*.parquet", tmp_path / "log.parquet")) == expected


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    names = ["a[1].parquet", "a*.parquet", "a?.parquet", "a1.parquet", "ab.parquet"]
    touch(tmp_path, *names)
    assert sorted(names_in(tmp_path, tmp_path)) == sorted(names)
    for name in names:
        assert names_in(tmp_path / name, tmp_path) == [name]
    assert names_in(tmp_path / "a[[]*.parquet", tmp_path) == ["a[1].parquet"]


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "log/a.csv", "log/_SUCCESS", "log/old/b.csv", "log/_temporary/c.csv", "log/day=1/d.csv")
    assert names_in(tmp_path / "log/*", tmp_path) == ["log/a.csv", "log/day=1/d.csv"]
    assert names_in(tmp_path / "log/**/*.csv", tmp_path) == ["log/a.csv", "log/day=1/d.csv", "log/old/b.csv"]
    assert names_in(tmp_path / "log/_temporary/*", tmp_path) == ["log/_temporary/c.csv"]
    assert names_in(tmp_path / "l*", tmp_path) == ["log/a.csv", "log/day=1/d.csv", "log/old/b.csv"]


def test_columns_in_the_folders_names() -> None:
    assert partition_of("/x=0/log/day=2024-03-01/kind=add%20to%3Dcart/p.parquet") == {
        "day": "2024-03-01",
        "kind": "add to=cart",
    }
    assert partition_of("kind=__HIVE_DEFAULT_PARTITION__/p.parquet") == {"kind": None}
    assert partition_of("/user=me/log.d/p.parquet") == partition_of("p.parquet") == {}


@pytest.mark.parametrize("marker", ["_delta_log/0.json", ".hoodie/x", "metadata/version-hint.text"])
def test_a_folder_that_holds_deleted_rows(tmp_path: Path, marker: str) -> None:
    touch(tmp_path, "a.parquet", marker)
    with pytest.raises(UserError, match="an? (Delta|Hudi|Iceberg) table, whose files hold rows that it no longer has"):
        find_files(str(tmp_path), FORMATS)


def test_a_link_to_a_folder_above(tmp_path: Path) -> None:
    touch(tmp_path, "log/a.csv")
    (tmp_path / "log/again").symlink_to(tmp_path / "log")
    assert names_in(tmp_path / "log", tmp_path) == ["log/a.csv"]


def test_users_mistakes(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "b.parquet", "c.txt", "empty/README.md")
    for source, message in (
        ("none.csv", "no such file"), ("c.txt", "unknown kind of file '.txt'; expected a file that ends in .parquet"),
        ("empty", "a folder without a file that ends in"), ("*", r"files of different formats \(CSV, Parquet\)"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            find_files(str(tmp_path / source), FORMATS)
    assert find_files(str(tmp_path / "c.txt"), FORMATS, otherwise="Parquet").files[0].format == "Parquet"
