"""What loaders need of shared memory and open files: computed from their settings, and held against what they take."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config.stages import MaskingConfig
from mbsd.data import room
from mbsd.data.loader import TrainLoader, eval_need, one_batch
from mbsd.data.order import Order
from mbsd.data.room import Need, largest_batch, require_room
from mbsd.data.samples import CatalogSamples, TableSamples
from mbsd.data.transport import pack
from mbsd.errors import UserError
from tests.data.conftest import IMAGE_SIZE, NUM_ITEMS, MakeBuilder, ranks, sizes, tensors_of
from tests.ranks import call

MASKING = MaskingConfig(mpm_corruption="bert")


@pytest.mark.parametrize("bucket", [1, 32])
@pytest.mark.parametrize("views", [("full",), ("full", "text", "image"), ("text",)])
def test_no_batch_is_larger_than_what_is_asked_for(
    bucket: int, views: tuple[str, ...], make_builder: MakeBuilder, catalog: Catalog, pairs: Table
) -> None:
    masking = MASKING if views == ("full",) else None
    builder = make_builder(views=views, masking=masking, token_bucket=bucket)
    samples = CatalogSamples(catalog, None) if masking else TableSamples(pairs, "train")
    packed = pack(builder.prepare([samples[n] for n in range(12)], *([torch.arange(12).numpy()] * 2)))
    bound = largest_batch(builder, 12)
    assert packed.buffer.nbytes <= bound
    if views != ("text",):  # pictures are nearly all of it
        assert 12 * 3 * IMAGE_SIZE**2 < bound < 1.4 * 12 * 3 * IMAGE_SIZE**2
    else:
        assert bound < 50_000


def test_a_batch_arrives_as_it_was_sent(make_builder: MakeBuilder, catalog: Catalog) -> None:
    """One piece of shared memory, so one open file; every tensor with its type, shape and values."""
    builder, samples = make_builder(masking=MASKING), CatalogSamples(catalog, None)
    numbers = torch.arange(9).numpy()
    prepared = builder.prepare([samples[n] for n in range(9)], numbers, numbers)
    packed = pack(prepared)
    assert packed.buffer.is_shared() and packed.rest.batch.images.numel() == 0
    assert tensors_of(packed.unpack().batch) == tensors_of(prepared.batch)
    assert packed.unpack().num_read == prepared.num_read > 0


def test_the_needs_of_a_run(make_builder: MakeBuilder, catalog: Catalog) -> None:
    """Workers times what each holds ready, and what the step and the validation hold in their hands."""
    builder, samples = make_builder(num_workers=3, prefetch=5), CatalogSamples(catalog, None)
    cut, (world,) = sizes(12, 3), ranks(1)
    loader = TrainLoader(samples, builder, Order(1, NUM_ITEMS), cut, world)
    assert loader.need == Need(3, 3 * 5 + cut.accumulation + 1, largest_batch(builder, 3))
    assert eval_need(samples, builder, 3) == Need(3, 3 * 2 + 2, largest_batch(builder, 3))
    alone = make_builder(num_workers=0)
    assert eval_need(samples, alone, 3) == Need(0, 0, 0)


def test_shared_memory_that_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    free = room.free_shared_memory()
    assert free is not None and free > 0
    needs = [Need(2, 10, free // 14), Need(2, 3, free // 14)]
    require_room(needs)
    with pytest.raises(UserError, match=r"/dev/shm: has \d+ MB free and the loaders need up to \d+ MB, for 2 ranks"):
        require_room(needs, ranks_here=2)
    monkeypatch.setattr(room, "SHARED_MEMORY", Path("/nowhere"))  # as on systems that have none
    require_room(needs, ranks_here=2)


def raise_limit(rank: int, world_size: int) -> tuple[int, int, str]:
    """The limit after a need that the hard limit allows, and the message of one that it does not."""
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 20, opened + 300))
    require_room([Need(2, 40, 1)])
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        require_room([Need(10, 400, 1)])
    except UserError as error:
        return opened, soft, str(error)
    raise AssertionError("not refused")


def test_open_files_are_raised_to_what_is_needed_where_they_can_be() -> None:
    ((opened, soft, refusal),) = call(raise_limit, 1)
    needed = 2 * room.OPEN_FILES_A_WORKER + 40 + room.OPEN_FILES
    assert opened + needed <= soft <= opened + needed + 2
    assert f"may open {opened + 300} files here" in refusal and "lower data.num_workers or data.prefetch" in refusal


def test_few_open_files_are_no_damaged_pictures(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that finds no file handle closes its other shards; one that has none says so, and blames no picture."""
    given, opened = os.open, []

    def scarce(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if str(path).endswith(".tar"):
            if len(opened) >= allowed:
                opened.clear()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            opened.append(path)
        return given(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", scarce)
    allowed = 1
    reader = Catalog(catalog.path)
    expected = [catalog.image(item) for item in range(NUM_ITEMS)]
    assert [reader.image(item) for item in range(NUM_ITEMS)] == expected and any(expected)
    allowed = 0
    with pytest.raises(UserError, match=r"shards/000000.tar: cannot be opened \(Too many open files\); .*ulimit -n"):
        next(filter(None, map(Catalog(catalog.path).image, range(NUM_ITEMS))))


def test_one_batch_needs_no_workers(make_builder: MakeBuilder, catalog: Catalog) -> None:
    samples = CatalogSamples(catalog, None)
    batch = one_batch(make_builder(num_workers=2), [samples[0]], torch.device("cpu"))
    assert not batch.images.is_shared()
