"""A catalogue behind a URL: the same items as on a disk, through a cache that many processes share within its bound."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbsd.catalog.reader import Catalog, DamagedRecord
from mbsd.catalog.remote import cache_warning, open_catalog_at
from mbsd.catalog.several import Catalogs
from mbsd.config.catalogs import CatalogConfig
from mbsd.config.data import DataConfig
from mbsd.data.inputs import open_items
from mbsd.errors import RunFailed, UserError
from tests.web import Store

ITEMS = 60


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of 60 items in 6 shards."""
    from mbsd.catalog.build.build import BuildOptions, build_catalog
    from mbsd.catalog.sources import read_items
    from mbsd.catalog.synthetic.shop import ShopOptions, synthesise

    folder = tmp_path_factory.mktemp("remote")
    synthesise(folder / "raw", ShopOptions(num_items=ITEMS, seed=3, image_side=64), workers=1)
    options = BuildOptions(workers=1, items_per_shard=10, progress=False)
    build_catalog(read_items(folder / "raw" / "items.jsonl"), folder / "raw" / "images", folder / "catalog", options)
    return folder / "catalog"


@pytest.fixture
def store(built: Path) -> Iterator[Store]:
    made = Store(built)
    yield made
    made.close()


def size_of_shards(built: Path, count: int) -> float:
    """GB of the largest `count` shards."""
    return sum(sorted(path.stat().st_size for path in built.glob("shards/*.tar"))[-count:]) / 1e9


def held(cache: Path) -> int:
    """Bytes of shards that are there or on their way."""
    sizes = []
    for path in [*cache.glob("*/shards/*.tar"), *cache.glob("*/shards/*.part")]:
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue  # removed meanwhile
    return sum(sizes)


def test_one_of_several_catalogues_may_lie_behind_a_url(built: Path, store: Store, tmp_path: Path) -> None:
    here = {"path": str(built), "name": "here"}
    there = {"path": store.url, "name": "there", "weight": 3}
    data = DataConfig(
        catalogs=tuple(CatalogConfig(**one) for one in (here, there)), cache=str(tmp_path / "cache"), cache_gb=1.0
    )
    both, alone = open_items(data), Catalog(built)
    assert isinstance(both, Catalogs) and len(both) == 2 * len(alone)
    for item in range(len(alone)):
        copy = both.number("there", item)
        assert both.image(item) == both.image(copy) == alone.image(item)
        assert both.title(item) == both.title(copy) == alone.title(item)
    assert store.shards()


def test_items_are_those_of_the_folder(built: Path, store: Store, tmp_path: Path) -> None:
    here, there = Catalog(built), open_catalog_at(store.url, str(tmp_path / "cache"), 1.0)
    assert there.fingerprint == here.fingerprint and len(there) == len(here) > 50
    for copy in (there, pickle.loads(pickle.dumps(there))):
        assert all(copy[item] == here[item] for item in range(len(here)))
    for split in ("train", "validation", "test"):
        assert np.array_equal(there.indices(split), here.indices(split))
    assert sorted(store.shards()) == sorted(f"shards/{path.name}" for path in built.glob("shards/*.tar"))
    before = len(store.asked)
    again = open_catalog_at(store.url, str(tmp_path / "cache"), 1.0)
    assert [again.image(item) for item in range(len(again))] == [here.image(item) for item in range(len(here))]
    assert store.asked[before:] == ["catalog.json", "keys/keys.json"]  # is it still the same one?


def test_the_shards_that_were_read_the_longest_ago_are_removed(built: Path, store: Store, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    there = open_catalog_at(store.url, str(cache), size_of_shards(built, 3))
    item_of = [next(item for item in range(10 * shard, 10 * shard + 10) if there.has_image(item)) for shard in range(6)]
    for shard in (0, 1, 2, 0, 3):
        there.image(item_of[shard])
        assert held(cache) <= size_of_shards(built, 3) * 1e9
    kept = {path.stem for path in cache.glob("*/shards/*.tar")}
    assert "000000" in kept and "000003" in kept and "000001" not in kept
    with pytest.raises(UserError, match=r"data.cache_gb=.*shards/000004.tar alone has"):
        open_catalog_at(store.url, str(cache), 1e-6).image(item_of[4])


def test_a_cache_that_is_too_small_for_the_order_of_samples_is_said_to_be(
    built: Path, store: Store, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    small, large = (open_catalog_at(store.url, cache, gigabytes) for gigabytes in (size_of_shards(built, 4), 1.0))
    warning = cache_warning(small, 64, 512)
    assert warning is not None and "reads 6:" in warning and "data.shuffle_block to 10" in warning, warning
    assert cache_warning(small, 10, 2) is None and cache_warning(large, 64, 512) is None
    assert cache_warning(Catalog(built), 64, 512) is None


def read_all(url: str, cache: str, gigabytes: float, seed: int, out: Any) -> None:
    """Every item in an order of its own; sends a checksum of what was read."""
    there = open_catalog_at(url, cache, gigabytes)
    order = np.random.default_rng(seed).permutation(len(there)).tolist()
    found = {item: there.image(item) for item in order}
    out.put(hash(tuple(len(found[item] or b"") for item in range(len(there)))))


def test_many_processes_share_it_within_its_bound(built: Path, store: Store, tmp_path: Path) -> None:
    cache, gigabytes = tmp_path / "cache", size_of_shards(built, 3)
    here, context = Catalog(built), multiprocessing.get_context("fork")
    expected = hash(tuple(len(here.image(item) or b"") for item in range(len(here))))
    open_catalog_at(store.url, str(cache), gigabytes).image(0)  # a connection that children must not share
    answers = context.Queue()
    readers = [
        context.Process(target=read_all, args=(store.url, str(cache), gigabytes, seed, answers)) for seed in range(4)
    ]
    for reader in readers:
        reader.start()
    most = 0
    while any(reader.is_alive() for reader in readers):
        most = max(most, held(cache))
        time.sleep(0.001)
    assert [reader.exitcode for reader in readers] == [0, 0, 0, 0]
    assert {answers.get(timeout=5) for _ in readers} == {expected}
    assert size_of_shards(built, 1) * 1e9 <= most <= gigabytes * 1e9


def killed_while_fetching(store: Store, cache: Path, gigabytes: float, item: int) -> None:
    """A process that is killed once its request for a shard has come."""
    context = multiprocessing.get_context("fork")
    store.asked.clear()
    store.delay = 0.5
    reader = context.Process(target=lambda: open_catalog_at(store.url, str(cache), gigabytes).image(item))
    reader.start()
    deadline = time.monotonic() + 60
    while not list(cache.glob("*/shards/*.room")):
        assert time.monotonic() < deadline and reader.is_alive()
        time.sleep(0.005)
    os.kill(reader.pid or 0, signal.SIGKILL)
    reader.join()
    store.delay = 0.0


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_behind(
    built: Path, store: Store, tmp_path: Path
) -> None:
    cache, gigabytes = tmp_path / "cache", size_of_shards(built, 1)
    here, there = Catalog(built), open_catalog_at(store.url, str(cache), gigabytes)
    first, other = (next(item for item in range(start, ITEMS) if here.has_image(item)) for start in (0, 10))
    killed_while_fetching(store, cache, gigabytes, first)
    assert list(cache.glob("*/shards/*.room")) and not list(cache.glob("*/shards/*.tar"))
    # The bound has room for one shard: another one gets what the killed process had reserved.
    assert there.image(other) == here.image(other)
    assert not list(cache.glob("*/shards/*.room")) and not list(cache.glob("*/shards/*.part"))
    assert there.image(first) == here.image(first)


def test_a_spoiled_download_is_fetched_again(built: Path, store: Store, tmp_path: Path) -> None:
    here, there = Catalog(built), open_catalog_at(store.url, str(tmp_path / "cache"), 1.0)
    store.damage["shards/000001.tar"] = 1
    assert [there.image(item) for item in range(10, 20)] == [here.image(item) for item in range(10, 20)]
    assert store.shards() == ["shards/000001.tar"] * 2
    # What rots on this machine's disk is fetched again too; what is damaged at its source costs its pictures alone.
    (path,) = tmp_path.glob("cache/*/shards/000001.tar")
    path.write_bytes(bytes(path.stat().st_size))
    assert [there.image(item) for item in range(10, 20)] == [here.image(item) for item in range(10, 20)]
    store.damage["shards/000002.tar"] = 100
    whole = 0
    for item in range(20, 30):
        try:
            whole += there.image(item) == here.image(item)
        except DamagedRecord as error:
            assert f"000002.tar, item {item}" in str(error)
    assert 1 <= whole < 10


def test_a_spoiled_index_and_a_store_that_does_not_answer_are_named(built: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set data.cache to a folder"):
        open_catalog_at(store.url, None, 1.0)
    with pytest.raises(UserError, match=rf"{store.url}/nowhere: no catalogue can be read there"):
        open_catalog_at(f"{store.url}/nowhere", str(tmp_path / "cache"), 1.0)
    store.damage["index.arrow"] = 1
    with pytest.raises(UserError, match=rf"data.catalog={store.url}: its index cannot be fetched .*index.arrow"):
        open_catalog_at(store.url, str(tmp_path / "cache"), 1.0)
    there = open_catalog_at(store.url, str(tmp_path / "cache"), 1.0)
    item = next(item for item in range(10) if there.has_image(item))
    store.refuses = True
    with pytest.raises(RunFailed, match=rf"{store.url}/shards/000000.tar: .*start again"):
        there.image(item)
    store.refuses, store.folder = False, tmp_path
    with pytest.raises(DamagedRecord, match=rf"000000.tar, item {item}: cannot be read"):
        there.image(item)
