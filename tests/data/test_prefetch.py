"""Batches that are finished in a thread, ahead of the step."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from mbsd.batch import Batch
from mbsd.catalog.reader import Catalog
from mbsd.data.loader import TrainLoader
from mbsd.data.order import Order
from mbsd.data.prefetch import prefetched
from mbsd.data.samples import CatalogSamples
from mbsd.parallel.world import World
from tests.data.conftest import NUM_ITEMS, MakeBuilder, sizes, tensors_of

CPU = torch.device("cpu")


def batches(make_builder: MakeBuilder, catalog: Catalog, device: torch.device, decoder: str) -> Iterator[Batch]:
    samples, order = CatalogSamples(catalog, None), Order(1, NUM_ITEMS)
    builder = make_builder(decoder=decoder, num_workers=1)
    return iter(TrainLoader(samples, builder, order, sizes(6, 6), World(0, 1, 0, device)))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader-ahead"]


def test_the_order_is_kept_and_the_thread_ends_with_its_reader(make_builder: MakeBuilder, catalog: Catalog) -> None:
    ready = list(itertools.islice(batches(make_builder, catalog, CPU, "torchvision"), 6))
    started: list[int] = []

    def finish(number: int) -> Batch:
        started.append(number)
        return ready[number]

    reader = prefetched(iter(range(6)), finish, CPU, depth=2)
    assert tensors_of(next(reader)) == tensors_of(ready[0])
    deadline = time.monotonic() + 30
    while len(started) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert started == [0, 1, 2, 3], "two are ready, one more waits for its place, and no more than that"
    assert [tensors_of(batch) for batch in reader] == [tensors_of(batch) for batch in ready[1:]]
    assert threads() == []
    reader = prefetched(itertools.repeat(0), finish, CPU)
    next(reader)
    assert len(threads()) == 1
    reader.close()  # type: ignore[attr-defined]
    assert threads() == []


def test_what_fails_ahead_is_raised_at_its_place(make_builder: MakeBuilder, catalog: Catalog) -> None:
    batch = next(batches(make_builder, catalog, CPU, "torchvision"))

    def finish(number: int) -> Batch:
        if number == 2:
            raise RuntimeError("no more disk")
        return batch

    reader = prefetched(iter(range(5)), finish, CPU)
    next(reader), next(reader)
    with pytest.raises(RuntimeError, match="no more disk"):
        next(reader)
    assert threads() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("decoder", ["torchvision", "dali"])
def test_a_gpu_gets_the_same_batches(make_builder: MakeBuilder, catalog: Catalog, decoder: str) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    expected = list(itertools.islice(batches(make_builder, catalog, CPU, decoder), 20))
    for found, batch in zip(batches(make_builder, catalog, device, decoder), expected, strict=False):
        assert found.images.device == device
        # Work on the step's stream between two batches: memory that is given away too early would show.
        (torch.randn(2000, 2000, device=device) @ torch.randn(2000, 2000, device=device)).sum()
        assert tensors_of(found.to("cpu")) == tensors_of(batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_loaders_leave_no_memory_behind(make_builder: MakeBuilder, catalog: Catalog) -> None:
    """As many loaders as a run has validations reserve what the first ones did."""
    device = torch.device("cuda", torch.cuda.current_device())
    reserved = []
    for _ in range(12):
        for batch in itertools.islice(batches(make_builder, catalog, device, "torchvision"), 4):
            batch.images.float().mean()
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved(device))
    assert reserved[2:] == [reserved[2]] * 10
