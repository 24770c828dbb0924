"""Builds that are killed, stopped, resumed or refused, and what they report."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mbsd.catalog.build.build import BuildOptions, BuildSummary, build_catalog
from mbsd.catalog.build.unfinished import UnfinishedBuild
from mbsd.catalog.inspection import inspect_catalog
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.cli.main import main
from mbsd.errors import UserError
from tests.catalog.helpers import image_folder, items_of, picture, quarantine, write_jsonl
from tests.ranks import ROOT

COUNT = 90
ROWS = 300
SHARD = 7


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 pictures, of which one is broken, one is missing and two are the same."""
    folder = image_folder(tmp_path_factory.mktemp("pictures") / "images", COUNT)
    (folder / "013.jpg").write_bytes(b"broken")
    (folder / "055.jpg").unlink()
    (folder / "071.jpg").write_bytes((folder / "004.jpg").read_bytes())
    return folder


def rows() -> list[Item]:
    """`COUNT` items with a repeated one in the middle, and many more rows than are ever in flight."""
    items = items_of(COUNT)
    texts = [Item(f"text-{n}", f"text {n}") for n in range(ROWS - COUNT - 1)]
    return [*items[:40], Item("id-3", "another title", "003.jpg"), *items[40:], *texts]


def build(
    out: Path, images: Path | None, items: list[Item] | Iterator[Item] | None = None, **options: object
) -> BuildSummary:
    settings: dict[str, object] = {"items_per_shard": SHARD, "workers": 1, "progress": False, **options}
    return build_catalog(rows() if items is None else items, images, out, BuildOptions(**settings))  # type: ignore[arg-type]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> dict[str, str]:
    """The files of a build that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "c"
    build(folder, images)
    return digests(folder)


BUILD = """
import sys
from pathlib import Path
from mbsd.catalog.build.build import BuildOptions, build_catalog
from tests.catalog.test_build import SHARD, rows
import time

def slowly(items):
    for item in items:
        time.sleep(0.002)
        yield item

if __name__ == "__main__":
    out, images, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    options = BuildOptions(items_per_shard=SHARD, workers=workers, progress=False)
    build_catalog(slowly(rows()), images, out, options)
"""


def test_killed_at_any_moment_it_resumes(tmp_path: Path, images: Path, whole: dict[str, str]) -> None:
    """Real SIGKILLs after 2 and 20 shards, each start has another number of workers, and a shard is damaged."""
    out, script = tmp_path / "c", tmp_path / "build.py"
    script.write_text(BUILD)
    parts = tmp_path / "c.building" / "parts"

    def start(workers: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(script), str(out), str(images), str(workers)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    for kill_at, workers in ((2, 2), (20, 1)):
        process = start(workers)
        deadline = time.monotonic() + 120
        while len(list(parts.glob("*.json"))) < kill_at:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not psutil.wait_procs(started, timeout=20)[1], "workers outlive a killed build"
        assert not out.exists()
    # The last committed shard but two is not what was written: it and what follows is made again.
    damaged = tmp_path / "c.building" / "catalog" / "shards" / f"{len(list(parts.glob('*.json'))) - 3:06d}.tar"
    data = bytearray(damaged.read_bytes())
    data[600] ^= 1
    damaged.write_bytes(data)
    assert 17 * SHARD <= build(out, images, workers=2).resumed_from < ROWS
    assert digests(out) == whole and not (tmp_path / "c.building").exists()


def test_an_interrupted_source_and_an_exception(tmp_path: Path, images: Path, whole: dict[str, str]) -> None:
    def breaks(after: int) -> Iterator[Item]:
        yield from rows()[:after]
        raise UserError("line 200: broken")

    for after in (200, 250, 3):  # the last one breaks before the rows that were already processed
        with pytest.raises(UserError, match="line 200"):
            build(tmp_path / "c", images, breaks(after))
        assert (tmp_path / "c.building" / "parts" / "000001.json").exists()
    summary = build(tmp_path / "c", images)
    assert summary.resumed_from > 150 and digests(tmp_path / "c") == whole


def test_what_does_not_belong_together_is_refused(tmp_path: Path, images: Path, whole: dict[str, str]) -> None:
    def half() -> Iterator[Item]:
        yield from rows()[:200]
        raise KeyboardInterrupt

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "c", images, half())

    interrupted()
    with pytest.raises(UserError, match=r"c\.building: an unfinished build with max_side 320, now 64; .*--restart"):
        build(tmp_path / "c", images, max_side=64)
    with pytest.raises(UserError, match=r"unfinished build with images \".*images\", now null"):
        build(tmp_path / "c", None)
    changed = [Item("id-0", "another"), *rows()[1:]]
    with pytest.raises(UserError, match=r"the first \d+ rows of the source are not those .* --restart"):
        build(tmp_path / "c", images, changed)
    with pytest.raises(UserError, match=r"the first \d+ rows of the source are not those"):
        build(tmp_path / "c", images, rows()[:10])
    assert build(tmp_path / "c", images).resumed_from > 0 and digests(tmp_path / "c") == whole

    (tmp_path / "c").rename(tmp_path / "old")
    interrupted()
    summary = build(tmp_path / "c", images, restart=True, max_side=64)
    assert summary.resumed_from == 0 and Catalog(tmp_path / "c").meta["options"]["max_side"] == 64


def test_one_process_at_a_time(tmp_path: Path, images: Path) -> None:
    with UnfinishedBuild(tmp_path / "c", {}, restart=False):
        for restart in (False, True):
            with pytest.raises(UserError, match="another process is building this catalogue"):
                build(tmp_path / "c", images, restart=restart)
    build(tmp_path / "c", images)


def test_a_kill_between_the_last_two_steps_leaves_no_rubbish(tmp_path: Path) -> None:
    with UnfinishedBuild(tmp_path / "c", {}, restart=False) as unfinished:
        (unfinished.catalog / "catalog.json").write_text("{}")
        unfinished.catalog.rename(tmp_path / "c")  # what `publish` does first
        unfinished.commits.append(None)  # type: ignore[arg-type]
    assert (tmp_path / "c.building").exists()
    with pytest.raises(UserError, match="already there and not an empty folder"):
        build(tmp_path / "c", None)
    assert not (tmp_path / "c.building").exists()


def test_too_many_rejects_stop_the_build(tmp_path: Path, images: Path) -> None:
    """Of 93 rows that name a picture 5 are rejected, for two reasons; a repeated row is no reject."""
    items = [*rows(), *(Item(f"gone-{n}", "title", f"gone-{n}.jpg") for n in range(3)), Item("text", "only text")]
    with pytest.raises(UserError) as stopped:
        build(tmp_path / "c", images, items, max_rejects=0.05)
    line = str(stopped.value)
    listed = tmp_path / "c.building" / "quarantine.jsonl"
    assert "5 of the 93 rows that name a picture were rejected (5.4%; --max-rejects is 0.05)" in line
    assert "4 x not found below the image root, 1 x not a picture in a known format (JPEG" in line
    assert str(listed) in line and "--restart" in line and "higher --max-rejects" in line and "\n" not in line
    rejected = [json.loads(text) for text in listed.read_text().splitlines()]
    assert [entry["row"] for entry in rejected] == [14, 41, 57, 301, 302, 303]
    assert not (tmp_path / "c").exists()

    with pytest.raises(UserError, match="5 of the 93 rows"):
        build(tmp_path / "c", images, items, max_rejects=0.05)
    with pytest.raises(UserError, match="the source has more rows"):
        build(tmp_path / "c", images, [*items, Item("more", "more")], max_rejects=1)
    summary = build(tmp_path / "c", images, items, max_rejects=0.06)
    assert summary.resumed_from == len(items) == ROWS + 4 and summary.quarantined == 6
    build(tmp_path / "again", images, items, max_rejects=1)
    assert digests(tmp_path / "c") == digests(tmp_path / "again")
    assert quarantine(tmp_path / "c") == rejected


def test_a_wrong_image_root_stops_early(tmp_path: Path, images: Path) -> None:
    given = 0

    def many() -> Iterator[Item]:
        nonlocal given
        for given in range(1, 50_000):
            yield Item(f"id-{given}", "title", f"elsewhere/{given}.jpg" if given % 2 else "")

    with pytest.raises(UserError, match="1000 of the 1000 rows that name a picture were rejected"):
        build(tmp_path / "c", images, many(), items_per_shard=300)
    assert given < 2500
    listed = (tmp_path / "c.building" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == list(range(1, 2000, 2))


def test_without_an_image_root_nothing_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The samples that the model's authors released name pictures which nobody has."""
    write_jsonl(tmp_path / "items.jsonl", *({"title": f"title {n}", "image": f"{n}.jpg"} for n in range(20)))
    (tmp_path / "none").mkdir()

    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mbsd", "catalog", *words])
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    code, printed, _ = command("build", "items.jsonl", "--out", "c")
    assert code == 0 and "20 items, 0 with an image, 0 quarantined" in printed and "no picture was looked up" in printed
    code, _, error = command("build", "items.jsonl", "--images", "none", "--out", "d")
    assert code == 2 and "20 of the 20 rows" in error and len(error.splitlines()) == 1
    code, printed, _ = command("build", "items.jsonl", "--images", "none", "--out", "d", "--max-rejects", "1")
    assert code == 0 and "20 quarantined" in printed and "continued behind row 20" in printed
    shown = json.loads(command("inspect", "d")[1])
    assert shown["quarantined"] == 20 and shown["quarantine_reasons"] == {"not found below the image root": 20}


def test_duplicates_are_reported(tmp_path: Path, images: Path) -> None:
    summary = build(tmp_path / "c", images)
    lines = [json.loads(line) for line in (tmp_path / "c" / "duplicates.jsonl").read_text().splitlines()]
    assert lines == [
        {"same": "item_id", "row": 41, "item_id": "id-3", "as_row": 4},
        {"same": "picture", "item": 71, "item_id": "id-71", "as_item": 4, "as_item_id": "id-4"},
    ]
    assert (summary.repeated, summary.same_picture) == (1, 1)
    shown = inspect_catalog(tmp_path / "c")
    assert (shown["repeated_item_ids"], shown["same_pictures"], shown["quarantined"]) == (1, 1, 3)


def test_many_equal_pictures_name_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.jpg").write_bytes(picture((200, 30, 40) if n % 2 else (10, 200, 10)))
    items = [
        Item("text", "no picture"),
        Item("more", "no picture"),
        *(Item(f"i{n}", "t", f"{n}.jpg") for n in range(6)),
    ]
    assert build(tmp_path / "c", folder, items, items_per_shard=2).same_picture == 4
    lines = [json.loads(line) for line in (tmp_path / "c" / "duplicates.jsonl").read_text().splitlines()]
    assert [(line["item"], line["as_item"]) for line in lines] == [(4, 2), (5, 3), (6, 2), (7, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rejects": 1.5}, "max_rejects is 1.5; expected a share from 0"),
        ({"max_side": 0}, "max_side is 0; expected at least 1"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path / "c", None, **options)
    assert list(tmp_path.iterdir()) == []
