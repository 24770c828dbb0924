from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.inspection import inspect_catalog
from mbsd.catalog.layout import split_of
from mbsd.catalog.reader import Catalog, DamagedRecord
from mbsd.catalog.sources import Item
from mbsd.errors import UserError
from tests.catalog.helpers import colour_of, image_folder, items_of, near, picture, pixels, quarantine, small_catalog

COUNT = 90
QUIET = BuildOptions(workers=1, progress=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("pictures") / "images", COUNT)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_bytes_for_any_number_of_workers(tmp_path: Path, images: Path) -> None:
    items = [*items_of(COUNT), Item("gone", "no picture", "none.jpg"), Item("id-3", "again", "003.jpg")]
    items.insert(40, Item("id-4", "again", "004.jpg"))
    for workers in (1, 2):
        options = BuildOptions(workers=workers, items_per_shard=20, progress=False)
        build_catalog(items, images, tmp_path / str(workers), options)
    build_catalog(items, images, tmp_path / "again", BuildOptions(workers=1, items_per_shard=20, progress=False))
    first = _digests(tmp_path / "1")
    assert len(first) == 4 + 5 + 2 * 5  # texts and index, numbers, shards
    assert first == _digests(tmp_path / "2") == _digests(tmp_path / "again")


def test_random_access(tmp_path: Path, images: Path) -> None:
    items = items_of(COUNT)
    catalog = small_catalog(tmp_path / "c", items, images, items_per_shard=16)
    assert len(catalog) == COUNT
    for number in np.random.default_rng(0).permutation(COUNT).tolist():
        record, data = catalog.record(number), catalog.image(number)
        assert data is not None and near(pixels(data).getpixel((10, 10)), colour_of(number))
        assert pixels(data).size == catalog.image_size(number) == (24 + number % 5, 20)
        assert (record.item_id, record.title, record.category) == (
            f"id-{number}",
            f"title {number}",
            f"kind {number % 2}",
        )
        assert record.attributes == items[number].attributes and record.split == split_of(record.item_id)
        assert catalog.title(number) == record.title and catalog.item_number(record.item_id) == number
        assert catalog[number] == (record, data)
    assert catalog.item_number("nobody") is None
    with pytest.raises(IndexError):
        catalog.record(COUNT)
    with pytest.raises(IndexError):
        catalog.image(-1)
    assert catalog.attribute_values() == {
        "shade": ["black", "blue", "green", "red"],
        "shape": ["flat", "round", "square"],
    }


def test_webdataset_and_dali_read_the_same_samples(tmp_path: Path, images: Path) -> None:
    items = [*items_of(10), Item("text", "text only")]
    catalog = small_catalog(tmp_path / "c", items, images)
    tar = tmp_path / "c/shards/000000.tar"
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"{n:09d}" for n in range(11)]
    assert samples[4]["jpg"] == catalog.image(4) and "jpg" not in samples[10]
    assert json.loads(samples[4]["json"])["title"] == "title 4"
    lines = (tmp_path / "c/shards/000000.idx").read_text().splitlines()
    assert lines[0] == "v1.2 11" and len(lines) == 12
    with tarfile.open(tar) as archive:
        members = {m.name: (m.offset_data, m.size) for m in archive}
    for line in lines[1:]:
        fields = line.split()
        for suffix, offset, size, name in zip(fields[::4], fields[1::4], fields[2::4], fields[3::4], strict=True):
            assert name.endswith(f".{suffix}") and members.pop(name) == (int(offset), int(size))
    assert not members


def test_tar_gives_the_same_catalogue_as_the_folder(tmp_path: Path, images: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(images, arcname=".")
    from_folder = small_catalog(tmp_path / "a", items_of(20), images)
    from_tar = small_catalog(tmp_path / "b", items_of(20), tmp_path / "images.tar")
    assert from_tar.image(7) is not None
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b") and from_folder.fingerprint == from_tar.fingerprint


def test_missing_pictures_are_kept_as_text(tmp_path: Path, images: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/bad.jpg").write_bytes(b"no picture")
    (tmp_path / "images/good.jpg").write_bytes(picture())
    items = [
        Item("a", "gone", "gone.jpg"),
        Item("b", "", "gone.jpg"),
        Item("c", "bad", "bad.jpg"),
        Item("d", "none named", ""),
        Item("e", "", "good.jpg"),
        Item("a", "again", "good.jpg"),
        Item("f", "  ", ""),
    ]
    summary = build_catalog(items, tmp_path / "images", tmp_path / "c", replace(QUIET, max_rejects=1))
    catalog = Catalog(tmp_path / "c")
    assert [catalog.record(i).item_id for i in range(len(catalog))] == ["a", "c", "d", "e"]
    assert [catalog.has_image(i) for i in range(4)] == [False, False, False, True]
    assert catalog.image(0) is None and catalog.image_size(0) == (0, 0) and catalog.title(3) == ""
    lines = quarantine(tmp_path / "c")
    by_row = {line["row"]: (line["item_id"], line["image"], line["reason"]) for line in lines}
    assert by_row[1] == ("a", "gone.jpg", "not found below the image root")
    assert by_row[2][2] == "neither title nor usable image (not found below the image root)"
    assert by_row[3][2].startswith("not a picture in a known format")
    assert by_row[6][2] == "same item id as row 1"
    assert by_row[7][2] == "neither title nor usable image (no image named)"
    assert len(lines) == len(by_row) == summary.quarantined == 5
    assert (summary.items, summary.with_image, summary.reasons["same item id as row N"]) == (4, 1, 1)
    assert catalog.meta["without_image"] == 3


def test_no_path_leaves_the_image_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(picture())
    (root / "sub/in.jpg").write_bytes(picture())
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "up").symlink_to(tmp_path)
    (root / "inside.jpg").symlink_to(root / "sub/in.jpg")
    os.mkfifo(root / "pipe.jpg")
    names = {
        "../secret.jpg": "leads out of the image root by '..'",
        "sub/../../secret.jpg": "leads out of the image root by '..'",
        str(tmp_path / "secret.jpg"): "an absolute path; images are named below the image root",
        "out.jpg": "leads out of the image root by a link",
        "up/secret.jpg": "leads out of the image root by a link",
        "pipe.jpg": "not a regular file",
        "sub": "not a regular file",
        "https://shop.example/../../secret.jpg": "leads out of the image root by '..'",
        "a\0b": "its name holds a zero byte",
        "sub/in.jpg": None,
        "inside.jpg": None,
        "https://shop.example/sub/in.jpg?size=2": None,
    }
    items = [Item(str(n), "title", name) for n, name in enumerate(names)]
    catalog = small_catalog(tmp_path / "c", items, root)
    found = {line["image"]: line["reason"] for line in quarantine(tmp_path / "c")}
    assert found == {name: reason for name, reason in names.items() if reason}
    assert [catalog.has_image(i) for i in range(len(names))] == [reason is None for reason in names.values()]


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        data = picture()
        member = tarfile.TarInfo("./a.jpg")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    catalog = small_catalog(
        tmp_path / "c", [Item("l", "t", "link.jpg"), Item("a", "t", "a.jpg")], tmp_path / "images.tar"
    )
    assert [catalog.has_image(0), catalog.has_image(1)] == [False, True]
    assert quarantine(tmp_path / "c")[0]["reason"] == "a link inside the tar"


def test_damage_is_detected(tmp_path: Path, images: Path) -> None:
    catalog = small_catalog(tmp_path / "c", items_of(6), images)
    offset = catalog.table()["offset"].to_pylist()[3]
    shard = tmp_path / "c/shards/000000.tar"
    with shard.open("r+b") as file:
        file.seek(offset + 300)
        byte = file.read(1)
        file.seek(offset + 300)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DamagedRecord, match=r"000000\.tar, item 3"):
        catalog.image(3)
    assert catalog.image(2) is not None and catalog.image(4) is not None
    os.truncate(shard, offset + 10)
    with pytest.raises(DamagedRecord, match="item 4"):
        catalog.image(4)
    shard.unlink()
    with pytest.raises(DamagedRecord, match="item 0"):
        Catalog(tmp_path / "c").image(0)


def test_survives_pickling_and_fork(tmp_path: Path, images: Path) -> None:
    catalog = small_catalog(tmp_path / "c", items_of(12), images, items_per_shard=5)
    expected = [catalog.image(i) for i in range(12)]  # opens every shard
    state = pickle.dumps(catalog)
    assert len(state) < 1000
    copy = pickle.loads(state)
    assert [copy.image(i) for i in range(12)] == expected
    pid = os.fork()
    if pid == 0:  # the child reads through the descriptors it inherited
        os._exit(0 if [catalog.image(i) for i in range(12)] == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [catalog.image(i) for i in range(12)] == expected


def test_more_shards_than_open_files(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbsd.catalog.reader.MAX_OPEN_SHARDS", 3)
    catalog = small_catalog(tmp_path / "c", items_of(12), images, items_per_shard=1)
    before = len(os.listdir("/proc/self/fd"))
    for number in [*range(12), *range(12)]:
        assert near(pixels(catalog.image(number) or b"").getpixel((10, 10)), colour_of(number))
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_splits(tmp_path: Path) -> None:
    counts = Counter(split_of(f"item {n}") for n in range(20_000))
    assert 15_600 < counts["train"] < 16_400 and 1_800 < counts["validation"] < 2_200 and 1_800 < counts["test"] < 2_200
    # These must never change: a new version would train on what an old one tested.
    assert [split_of(name) for name in "abcdef"] == ["validation", "train", "train", "test", "train", "train"]
    catalog = small_catalog(tmp_path / "c", items_of(50))
    parts = [catalog.indices(split) for split in ("train", "validation", "test")]
    assert np.array_equal(np.sort(np.concatenate(parts)), catalog.indices(None)) and catalog.indices().dtype == np.int64
    assert all(catalog.record(int(i)).split == "test" for i in parts[2]) and len(parts[0]) > 25
    with pytest.raises(UserError, match="split 'dev'; expected one of train, validation, test"):
        catalog.indices("dev")


def test_fingerprint_is_of_the_content(tmp_path: Path, images: Path) -> None:
    items = items_of(8)
    base = small_catalog(tmp_path / "a", items, images).fingerprint
    assert small_catalog(tmp_path / "b", items, images, items_per_shard=3).fingerprint == base
    others = [
        small_catalog(tmp_path / "c", items[::-1], images).fingerprint,
        small_catalog(tmp_path / "d", items, None).fingerprint,
        small_catalog(tmp_path / "e", [*items[:-1], Item("id-7", "another", "007.jpg")], images).fingerprint,
    ]
    assert len({base, *others}) == 4


def test_users_mistakes(tmp_path: Path, images: Path) -> None:
    with pytest.raises(UserError, match="an empty catalogue: no rows"):
        build_catalog([], images, tmp_path / "c", QUIET)
    with pytest.raises(UserError, match="an empty catalogue: 1 rows, none usable"):
        small_catalog(tmp_path / "c", [Item("a", "", "none.jpg")], images)
    assert list(tmp_path.iterdir()) == []  # neither a catalogue nor a half of one
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(UserError, match="already there and not an empty folder"):
        build_catalog(items_of(1), images, tmp_path / "full", QUIET)
    with pytest.raises(UserError, match="image root .*nowhere: no such folder or tar"):
        build_catalog(items_of(1), tmp_path / "nowhere", tmp_path / "c", QUIET)
    with pytest.raises(UserError, match="not an uncompressed tar"):
        build_catalog(items_of(1), tmp_path / "full/file", tmp_path / "c", QUIET)
    with pytest.raises(UserError, match="'shade' is 'back'; expected one of image"):
        build_catalog(items_of(1), None, tmp_path / "c", BuildOptions(attribute_where={"shade": "back"}))
    with pytest.raises(UserError, match="no such folder"):
        Catalog(tmp_path / "c")
    with pytest.raises(UserError, match="not a catalogue"):
        Catalog(tmp_path / "full")
    catalog = small_catalog(tmp_path / "old", items_of(1), images)
    meta = {**catalog.meta, "version": 99}
    (tmp_path / "old/catalog.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="version 99, this program reads version 2"):
        Catalog(tmp_path / "old")


def test_an_error_of_the_source_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> object:
        yield Item("a", "title")
        raise UserError("line 2: broken")

    with pytest.raises(UserError, match="line 2"):
        build_catalog(failing(), None, tmp_path / "c", QUIET)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_inspect(tmp_path: Path, images: Path) -> None:
    small_catalog(tmp_path / "c", [*items_of(30), Item("t", "text only")], images, attribute_where={"shade": "both"})
    summary = inspect_catalog(tmp_path / "c")
    assert (summary["items"], summary["with_image"], summary["categories"]) == (31, 30, 2)
    assert summary["attributes"] == {"shade": 4, "shape": 3} and summary["attribute_where"] == {"shade": "both"}
    assert summary["title_characters"]["max"] == 9 and summary["image_width"]["min"] == 24
    assert len(summary["sample_titles"]) == 10 and sum(summary["splits"].values()) == 31
    assert json.loads(json.dumps(summary)) == summary
