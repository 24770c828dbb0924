"""A catalogue that is built in parts and merged: byte for byte the one that is built at once."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbsd.catalog.build.build import BuildOptions, BuildSummary, PartOf, build_catalog
from mbsd.catalog.build.merge import merge_catalog
from mbsd.catalog.sources import Item
from mbsd.cli.main import main
from mbsd.errors import UserError
from tests.catalog.helpers import image_folder, items_of, picture, quarantine, write_jsonl
from tests.damage import damage
from tests.ranks import ROOT

PICTURES = ["a.jpg", "b.jpg", "same-as-a.jpg", "big.png", "broken.jpg", "empty.jpg", "missing.jpg", "../out.jpg", ""]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a.jpg").write_bytes(picture((200, 30, 40)))
    (folder / "same-as-a.jpg").write_bytes(picture((200, 30, 40)))
    (folder / "b.jpg").write_bytes(picture((10, 200, 40)))
    (folder / "big.png").write_bytes(picture((10, 20, 200), (500, 40), format="PNG"))
    (folder / "broken.jpg").write_bytes(picture()[:300])
    (folder / "empty.jpg").touch()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def build(items: list[Item] | Iterator[Item], images: Path | None, out: Path, **options: object) -> BuildSummary:
    settings: dict[str, object] = {"workers": 1, "progress": False, "max_rejects": 1.0, **options}
    return build_catalog(items, images, out, BuildOptions(**settings))  # type: ignore[arg-type]


def build_parts(items: list[Item], images: Path | None, out: Path, count: int, **options: object) -> list[Path]:
    """The folders of all parts of a catalogue, in blocks of 3 rows unless `options` say otherwise."""
    block = int(str(options.pop("block", 3)))
    for number in range(1, count + 1):
        build(items, images, out / str(number), part=PartOf(number, count, block), **options)
    return [out / str(number) for number in range(1, count + 1)]


def merge(parts: list[Path], out: Path, max_rejects: float = 1.0, **options: bool) -> BuildSummary:
    return merge_catalog(parts, out, max_rejects=max_rejects, progress=False, **options)


def facts(summary: BuildSummary) -> dict[str, object]:
    return {name: value for name, value in vars(summary).items() if name not in ("seconds", "images_per_s")}


def broken_off(items: list[Item], after: int) -> Iterator[Item]:
    yield from items[:after]
    raise InterruptedError


ROWS = st.lists(
    st.builds(
        Item,
        item_id=st.integers(0, 30).map("id {}".format),
        title=st.sampled_from(["", " ", "red dress", "连衣裙 \u2028", "blue shoe"]),
        image=st.sampled_from(PICTURES),
        category=st.sampled_from(["", "shoes"]),
        attributes=st.dictionaries(st.sampled_from(["z", "a"]), st.sampled_from(["1", "2"])),
    ),
    max_size=40,
)


def compare(images: Path | None, items: list[Item], data: st.DataObject) -> None:
    """Drawn parts, drawn shards, drawn interruptions, merged in a drawn order."""
    count, block, shard = (data.draw(st.integers(1, most)) for most in (6, 5, 8))
    options = {"items_per_shard": shard, "attribute_where": {"z": "image", "a": "title"}}
    with TemporaryDirectory() as name:
        folder = Path(name)
        numbers = list(range(1, count + 1))
        for number in data.draw(st.permutations(numbers)):
            part = PartOf(number, count, block)
            if data.draw(st.booleans()):
                with pytest.raises(InterruptedError):
                    stop = data.draw(st.integers(0, len(items)))
                    build(broken_off(items, stop), images, folder / str(number), part=part, **options)
            build(items, images, folder / str(number), part=part, **options)
        parts = [folder / str(number) for number in data.draw(st.permutations(numbers))]
        try:
            expected = build(items, images, folder / "whole", **options)
        except UserError as error:
            with pytest.raises(UserError, match="an empty catalogue") as refused:
                merge(parts, folder / "merged")
            assert str(refused.value) == str(error)
            assert not (folder / "merged").exists() and not (folder / "merged.building").exists()
            return
        found = merge(parts, folder / "merged")
        assert files(folder / "merged") == files(folder / "whole")
        assert facts(found) == facts(expected)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.data())
def test_any_parts_of_any_texts_are_the_whole(items: list[Item], data: st.DataObject) -> None:
    compare(None, items, data)


@settings(max_examples=12, deadline=None)
@given(ROWS, st.data())
def test_any_parts_of_any_pictures_are_the_whole(images: Path, items: list[Item], data: st.DataObject) -> None:
    compare(images, items, data)


def test_duplicates_are_found_across_parts(tmp_path: Path, images: Path) -> None:
    """Rows 1, 2 and 3 are of three parts: the second repeats the first's id, the third its picture."""
    items = [Item("x", "first", "a.jpg"), Item("x", "second", "b.jpg"), Item("y", "third", "same-as-a.jpg")]
    parts = build_parts(items, images, tmp_path, 3, block=1)
    assert merge(parts, tmp_path / "merged").same_picture == 1
    assert (tmp_path / "merged" / "duplicates.jsonl").read_text().splitlines() == [
        '{"same": "item_id", "row": 2, "item_id": "x", "as_row": 1}',
        '{"same": "picture", "item": 1, "item_id": "y", "as_item": 0, "as_item_id": "x"}',
    ]
    assert [line["reason"] for line in quarantine(tmp_path / "merged")] == ["same item id as row 1"]


def test_more_parts_than_files_may_be_open(tmp_path: Path) -> None:
    items = items_of(60)
    parts = build_parts(items, None, tmp_path, 30, block=1)
    build(items, None, tmp_path / "whole")
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, most))
    try:
        merge(parts, tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    assert files(tmp_path / "merged") == files(tmp_path / "whole")


BUILD = """
import sys, time
from pathlib import Path
from mbsd.catalog.build.build import BuildOptions, PartOf, build_catalog
from mbsd.catalog.build.merge import merge_catalog
from tests.catalog.test_parts import MANY, SHARD

def slowly(items):
    for item in items:
        time.sleep(0.001)
        yield item

if __name__ == "__main__":
    out, images, *parts = map(Path, sys.argv[1:])
    if parts:
        merge_catalog(parts, out, max_rejects=1.0, progress=False)
    else:
        part = PartOf(int(out.name), 3, 3)
        options = BuildOptions(items_per_shard=SHARD, workers=2, progress=False, max_rejects=1.0, part=part)
        build_catalog(slowly(MANY), images, out, options)
"""
SHARD = 9
MANY = [*items_of(40), Item("id-3", "repeated", "a.jpg"), *(Item(f"t-{n}", f"text {n}") for n in range(900))]


def killed(script: Path, out: Path, at: int, *words: object) -> None:
    """Start the script and SIGKILL it when it has committed so many shards."""
    process = subprocess.Popen(
        [sys.executable, str(script), str(out), *map(str, words)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 120
    while len(list((out.parent / f"{out.name}.building" / "parts").glob("*.json"))) < at:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not out.exists()


def test_killed_parts_and_a_killed_merge_resume(tmp_path: Path) -> None:
    pictures = image_folder(tmp_path / "pictures", 40)
    (pictures / "013.jpg").write_bytes(b"broken")
    build(MANY, pictures, tmp_path / "whole", items_per_shard=SHARD)
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    parts = [tmp_path / str(number) for number in (1, 2, 3)]
    for part, kills in zip(parts, ((2, 25), (15,), ()), strict=True):
        for kill_at in kills:
            killed(script, part, kill_at, pictures)
        own = PartOf(int(part.name), 3, 3)
        summary = build(MANY, pictures, part, items_per_shard=SHARD, part=own)
        assert (summary.resumed_from > 0) == bool(kills)
    merged = tmp_path / "merged"
    for kill_at in (1, 20, 60):
        killed(script, merged, kill_at, pictures, *parts)
    # A shard that was copied before the kill is damaged: it and what follows is copied again.
    damage(tmp_path / "merged.building" / "catalog" / "shards" / "000040.tar")
    summary = merge(parts, merged)
    assert 0 < summary.resumed_from < 41 * SHARD + 2 and files(merged) == files(tmp_path / "whole")
    assert merge(parts, tmp_path / "again").resumed_from == 0


def test_a_finished_part_is_not_built_again(tmp_path: Path, images: Path) -> None:
    items = items_of(20)
    first = facts(build(items, images, tmp_path / "1", part=PartOf(1, 2, 3)))
    before = files(tmp_path / "1")
    again = facts(build(broken_off(items, 0), images, tmp_path / "1", part=PartOf(1, 2, 3)))
    assert again == {**first, "resumed_from": 20} and files(tmp_path / "1") == before
    with pytest.raises(UserError, match=r"/1: a finished part with max_side 320, now 64; .* remove it"):
        build(items, images, tmp_path / "1", part=PartOf(1, 2, 3), max_side=64)
    with pytest.raises(UserError, match=r"a finished part with part .*\"number\": 1}, now .*\"number\": 2}"):
        build(items, images, tmp_path / "1", part=PartOf(2, 2, 3))
    for options in ({"restart": True, "part": PartOf(1, 2, 3)}, {}):
        with pytest.raises(UserError, match="already there and not an empty folder"):
            build(items, images, tmp_path / "1", **options)
    with pytest.raises(InterruptedError):
        build(broken_off(items_of(300), 300), None, tmp_path / "2", part=PartOf(2, 2, 3), items_per_shard=9)
    with pytest.raises(UserError, match=r"2\.building: an unfinished build with part .* now .*"):
        build(items_of(300), None, tmp_path / "2", part=PartOf(2, 3, 3), items_per_shard=9)
    with pytest.raises(UserError, match="the first .* rows of the source are not those"):
        build(items_of(3), None, tmp_path / "2", part=PartOf(2, 2, 3), items_per_shard=9)


def refused(parts: list[Path], out: Path) -> str:
    with pytest.raises(UserError) as error:
        merge(parts, out)
    assert not out.exists() and not out.with_name(f"{out.name}.building").exists()
    line = str(error.value)
    assert line.startswith("these parts are not one catalogue: ") and "\n" not in line
    return line.removeprefix("these parts are not one catalogue: ")


def test_parts_that_do_not_fit_are_named(tmp_path: Path, images: Path) -> None:
    items = items_of(30)
    one, two, three = build_parts(items, images, tmp_path, 3)
    out = tmp_path / "out"
    assert refused([one, three], out) == "of 3 parts, 2 is missing; give the folder of each part once"
    assert refused([two], out) == "of 3 parts, 1, 3 are missing; give the folder of each part once"
    copy = tmp_path / "copy"
    build(items, images, copy, part=PartOf(2, 3, 3))
    assert refused([one, two, three, copy], out) == (
        f"{two} and {copy} are both part 2 of 3; give the folder of each part once"
    )

    def other(items: list[Item] = items, part: PartOf = PartOf(2, 3, 3), **options: object) -> str:  # noqa: B008
        folder = tmp_path / f"other-{random.random()}"
        build(items, options.pop("images", images), folder, part=part, **options)  # type: ignore[arg-type]
        line = refused([one, folder, three], out)
        assert line.startswith(f"{folder}: ") and line.endswith(f" in {one}; build all parts alike")
        return line.removeprefix(f"{folder}: ").removesuffix(f" in {one}; build all parts alike")

    assert other(part=PartOf(2, 4, 3)) == "number of parts 4, but 3"
    assert other(part=PartOf(2, 3, 4)) == "block of rows 4, but 3"
    assert other(max_side=64) == "max_side 64, but 320"
    assert other(items_per_shard=64) == "items_per_shard 64, but 4096"
    assert other(attribute_where={"z": "image"}) == 'attribute_where {"z": "image"}, but {}'
    assert other(images=None) == f"images null, but {images}"
    assert other(items[:29]).startswith("items 29 rows with sha256 ")
    changed = other([*items[:-1], Item("id-29", "another title", "b.jpg")])
    assert changed.startswith("items 30 rows with sha256 ") and ", but 30 rows with sha256 " in changed


def test_folders_that_are_no_finished_parts_are_named(tmp_path: Path, images: Path) -> None:
    """All at once, in one line."""
    items = items_of(30)
    one, two, three = build_parts(items, images, tmp_path, 3)
    whole = tmp_path / "whole"
    build(items, images, whole)
    with pytest.raises(InterruptedError):
        build(broken_off(items_of(400), 400), None, tmp_path / "u", part=PartOf(2, 3, 3), items_per_shard=9)
    unfinished = "an unfinished part; run its command again, which resumes it"
    for folder in (tmp_path / "u", tmp_path / "u.building"):
        assert refused([one, folder, three], tmp_path / "out") == f"{folder}: {unfinished}"
    line = refused([one, whole, tmp_path / "nowhere", tmp_path / "u"], tmp_path / "out")
    assert line == (
        f"{whole}: not a finished part: it has no part.json; give folders written by `mbsd catalog build --part K/N`; "
        f"{tmp_path / 'nowhere'}: no such folder; build this part; {tmp_path / 'u'}: {unfinished}"
    )
    with pytest.raises(UserError, match="whole: already there and not an empty folder"):
        merge([one, two, three], whole)


DAMAGED = [
    "catalog/shards/000001.tar", "catalog/shards/000000.idx", "parts/000001.arrow", "parts/000000.quarantine.jsonl",
    "parts/000001.json", "part.json", "emptied", "gone",
]  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_named_and_a_part_that_is_built_again_mends_it(what: str, tmp_path: Path, images: Path) -> None:
    items = [Item(f"id-{n}", f"title {n}", PICTURES[n % 3 if n > 4 else 6]) for n in range(30)]
    parts = build_parts(items, images, tmp_path, 2, items_per_shard=4)
    build(items, images, tmp_path / "whole", items_per_shard=4)
    file = parts[1] / {"gone": "catalog/shards/000001.tar", "emptied": "part.json"}.get(what, what)
    if what == "gone":
        file.unlink()
    elif what == "emptied":
        file.write_text("{}")
    elif what.endswith(".json"):
        file.write_bytes(file.read_bytes().replace(b'"rows"', b'"rowz"'))
    else:
        damage(file)
    with pytest.raises(UserError, match=f"{file}: damaged, .*; remove the folder and build this part again"):
        merge(parts, tmp_path / "merged")
    for path in sorted(parts[1].rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    build(items, images, parts[1], part=PartOf(2, 2, 3), items_per_shard=4)
    merge(parts, tmp_path / "merged")
    assert files(tmp_path / "merged") == files(tmp_path / "whole")


def test_rejects_count_over_all_parts(tmp_path: Path, images: Path) -> None:
    """A part of few rows says nothing about the whole, a wrong root is found out by any part."""
    items = [Item(f"id-{n}", "title", "missing.jpg" if n < 3 else "a.jpg") for n in range(30)]
    parts = build_parts(items, images, tmp_path, 2, max_rejects=0.05)
    with pytest.raises(UserError) as error:
        merge(parts, tmp_path / "merged", max_rejects=0.05)
    listed = tmp_path / "merged.building" / "quarantine.jsonl"
    assert str(error.value).startswith(
        "3 of the 30 rows that name a picture were rejected (10.0%; --max-rejects is 0.05): 3 x not found below the "
        f"image root; all are listed in {listed}; mend the pictures and build the parts again, or give a higher"
    )
    assert len(listed.read_text().splitlines()) == 3
    assert merge(parts, tmp_path / "merged", max_rejects=0.1).quarantined == 3
    with pytest.raises(UserError, match="1000 of the 1000 rows that name a picture were rejected"):
        build((Item(f"id-{n}", "title", f"{n}.jpg") for n in range(5000)), images, tmp_path / "3",
              part=PartOf(2, 3), max_rejects=0.05)  # fmt: skip


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mbsd", "catalog", *map(str, words)])
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "items.jsonl", *({"item_id": f"{n % 390}", "title": f"title {n}"} for n in range(400)))
    for number in (1, 2):
        code, printed, _ = command("build", "items.jsonl", "--out", f"parts/{number}", "--part", f"{number}/2")
        assert code == 0 and f"parts/{number}: part {number} of 2: {(256, 134)[number - 1]} items, 0 with" in printed
    assert "  144 rows of this part; left out: 10 same item id (the first: items.jsonl, row 391)" in printed
    code, printed, _ = command("merge", "parts/1", "parts/2", "--out", "c")
    assert code == 0 and printed.startswith("c: 390 items, 0 with an image, 10 quarantined, 10 rows with an item id")
    assert "  400 rows of 2 parts; left out: 10 same item id (the first: items.jsonl, row 391)\n" in printed
    assert command("build", "items.jsonl", "--out", "whole")[0] == 0 and files(Path("c")) == files(Path("whole"))
    for wrong in ("3/2", "0/2", "2", "a/b", "1/2/3", "-1/2"):
        code, _, error = command("build", "items.jsonl", "--out", "x", f"--part={wrong}")
        assert code == 2 and error == f"error: part {wrong}: expected K/N with K from 1 to N, such as 2/8\n"
    code, _, error = command("merge", "parts/1", "--out", "d")
    assert code == 2 and error.startswith("error: these parts are not one catalogue: of 2 parts, 2 is missing")
