"""Pictures that rot on disk: a run goes on without a few of them, and stops where they are many."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mbsd.catalog.reader import Catalog
from tests.checkpoint.runs import STEPS, arguments
from tests.conftest import Shop
from tests.ranks import Ranks, launch


@pytest.fixture(scope="module")
def rotten(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A copy of the shop's catalogue in which a bit of three training pictures has fallen over; and these items.

    So it has in the first held-out picture, which is one of those that TensorBoard shows.
    """
    folder = tmp_path_factory.mktemp("rotten") / "catalog"
    shutil.copytree(shop.catalog, folder)
    catalog = Catalog(folder)
    items = [item for item in catalog.indices("train").tolist() if catalog.has_image(item)][5:8]
    shown = int(catalog.indices("validation")[0])
    assert catalog.has_image(shown)
    table = catalog.table()
    for item in [*items, shown]:
        shard, offset = (int(table[name][item].as_py()) for name in ("shard", "offset"))
        with (folder / "shards" / f"{shard:06d}.tar").open("r+b") as file:
            file.seek(offset + 99)
            byte = file.read(1)[0]
            file.seek(offset + 99)
            file.write(bytes([byte ^ 16]))
    return folder, items


@pytest.mark.distributed
def test_a_few_damaged_pictures_are_named_and_counted(rotten: tuple[Path, list[int]], tmp_path: Path) -> None:
    catalog, items = rotten
    start = launch(2, arguments(tmp_path / "run", catalog), tmp_path / "log")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = [line["corrupt_images"] for line in lines if "corrupt_images" in line]
    named = [line for line in start.lines("shown without its picture")]
    assert {item for item in items for line in named if f"item {item}:" in line} == set(items)
    # 14 steps are an epoch and a bit: each once, and some again; and the held-out one at each validation that reads it.
    assert counts == sorted(counts) and 3 <= counts[-1] <= len(named) <= 8
    assert max(line["step"] for line in lines) == STEPS


@pytest.mark.distributed
def test_a_run_stops_where_more_are_damaged_than_allowed(rotten: tuple[Path, list[int]], tmp_path: Path) -> None:
    catalog, _ = rotten
    start = Ranks(2, arguments(tmp_path / "run", catalog, "--data.max_corrupt=0"), tmp_path / "log")
    assert start.wait(patience=30) == [2, 2], start.printed()[-3000:]
    errors = start.errors()
    assert len(errors) == 1 and "pictures read are damaged on disk" in errors[0] and "data.max_corrupt=0" in errors[0]
    assert not (tmp_path / "run" / "DONE").exists()
