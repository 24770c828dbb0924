from __future__ import annotations

import itertools
import multiprocessing
import pickle
import subprocess
from dataclasses import replace

import pytest
import torch

from mbsd.batch import Batch
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config.stages import MaskingConfig
from mbsd.data.loader import TrainLoader, eval_batches
from mbsd.data.order import Order
from mbsd.data.samples import CatalogSamples, Sample, Samples, TableSamples
from mbsd.errors import UserError
from mbsd.parallel.world import World
from tests.data.conftest import DECODERS, NUM_ITEMS, MakeBuilder, ranks, sizes, tensors_of

MASKING = MaskingConfig(mpm_corruption="bert")
ORDER = Order(1, NUM_ITEMS, block=4, window=3)


def train_loader(
    make_builder: MakeBuilder,
    catalog: Catalog,
    decoder: str = "torchvision",
    order: Order = ORDER,
    micro_batch: int = 3,
    world: World | None = None,
    **settings: int,
) -> TrainLoader:
    builder, rank = make_builder(masking=MASKING, decoder=decoder, **settings), world or ranks(1)[0]
    cut = sizes(12, micro_batch, rank.size)
    return TrainLoader(CatalogSamples(catalog, None), builder, order, cut, rank)


def leaves(batches: list[Batch]) -> list[dict[str, object]]:
    return [tensors_of(batch) for batch in batches]


def take(loader: TrainLoader, count: int) -> list[dict[str, object]]:
    return leaves(list(itertools.islice(loader, count)))


def test_world_sizes_and_accumulation_read_the_same_global_batches(make_builder: MakeBuilder, catalog: Catalog) -> None:
    steps = 7  # 84 positions of 41 samples: two epochs and a bit
    by_world: dict[tuple[int, int], list[list[int]]] = {}
    for world_size, micro_batch in [(1, 12), (1, 3), (2, 3), (2, 6), (3, 2), (4, 3), (4, 1)]:
        batches: list[list[int]] = [[] for _ in range(steps)]
        loaders = [
            train_loader(make_builder, catalog, world=world, micro_batch=micro_batch) for world in ranks(world_size)
        ]
        micro_steps = 12 // (micro_batch * world_size)
        taken = [list(itertools.islice(loader, steps * micro_steps)) for loader in loaders]
        for number in range(steps * micro_steps):
            for rank in taken:
                batches[number // micro_steps] += rank[number].items_B.tolist()
        by_world[world_size, micro_batch] = batches
    first = by_world[1, 12]
    assert all(batches == first for batches in by_world.values())
    flat = list(itertools.chain(*first))
    assert sorted(flat[:NUM_ITEMS]) == sorted(flat[NUM_ITEMS : 2 * NUM_ITEMS]) == list(range(NUM_ITEMS))


def test_a_sample_is_the_same_at_every_world_size(make_builder: MakeBuilder, catalog: Catalog) -> None:
    alone = next(iter(train_loader(make_builder, catalog, micro_batch=12)))
    halves = [next(iter(train_loader(make_builder, catalog, micro_batch=6, world=world))) for world in ranks(2)]
    assert torch.equal(alone.images, torch.cat([half.images for half in halves]))
    assert torch.equal(alone.input_ids_N, torch.cat([half.input_ids_N for half in halves]))
    assert alone.masks is not None and halves[0].masks is not None and halves[1].masks is not None
    labels = torch.cat([halves[0].masks.mlm_labels_K, halves[1].masks.mlm_labels_K])
    assert torch.equal(alone.masks.mlm_labels_K, labels)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_resumed_run_sees_the_same_batches(
    make_builder: MakeBuilder, catalog: Catalog, decoder: str, num_workers: int
) -> None:
    steps, micro_steps = 5, 4
    uninterrupted = take(train_loader(make_builder, catalog, decoder), steps * micro_steps)
    resume_at = range(steps) if num_workers == 0 else (0, 3)
    for step in resume_at:
        first = train_loader(make_builder, catalog, decoder, num_workers=num_workers, prefetch=3)
        assert take(first, step * micro_steps) == uninterrupted[: step * micro_steps]
        state = pickle.loads(pickle.dumps(first.state_dict()))
        found = state["epoch"] * NUM_ITEMS + state["position"]
        assert found == step * 12, "what workers hold ready is not counted"
        second = train_loader(make_builder, catalog, decoder, num_workers=num_workers)
        second.load_state_dict(state)
        rest = (steps - step) * micro_steps
        assert take(second, rest) == uninterrupted[step * micro_steps :]


def test_a_resumed_run_may_have_another_world_size(make_builder: MakeBuilder, catalog: Catalog) -> None:
    first = train_loader(make_builder, catalog)
    take(first, 8)
    after_two = first.state_dict()
    later = [batch.items_B.tolist() for batch in itertools.islice(first, 4)]
    items = []
    for world in ranks(2):
        loader = train_loader(make_builder, catalog, micro_batch=6, world=world)
        loader.load_state_dict(after_two)
        items += next(iter(loader)).items_B.tolist()
    assert items == list(itertools.chain(*later))


def test_a_step_that_was_not_finished_comes_again(make_builder: MakeBuilder, catalog: Catalog) -> None:
    loader = train_loader(make_builder, catalog)
    taken = take(loader, 4 + 3)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (0, 12)
    loader.load_state_dict(state)
    assert take(loader, 3) == taken[4:]


def test_the_state_of_another_order_is_refused(make_builder: MakeBuilder, catalog: Catalog) -> None:
    state = train_loader(make_builder, catalog).state_dict()
    for name, value in (("seed", 2), ("block", 5), ("window", 4)):
        with pytest.raises(UserError, match=f"{name}={value}.*{name}={state[name]}"):
            train_loader(make_builder, catalog, order=replace(ORDER, **{name: value})).load_state_dict(state)


def test_a_signal_to_all_processes_leaves_the_workers_at_work(make_builder: MakeBuilder, catalog: Catalog) -> None:
    expected = take(train_loader(make_builder, catalog), 40)
    batches = iter(train_loader(make_builder, catalog, num_workers=2, prefetch=1))
    got = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for name in ("TERM", "USR1", "INT"):  # as a scheduler sends them: not from the parent
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    got += list(itertools.islice(batches, 39))
    assert leaves(got) == expected
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()  # the parent's own word counts
    workers[0].join(10)
    assert workers[0].exitcode == 0


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (3, 0), (4, 0), (3, 2)])
def test_evaluation_sees_every_sample_once(
    make_builder: MakeBuilder, pairs: Table, world_size: int, num_workers: int
) -> None:
    builder = make_builder(("full", "text", "image"), train=False, label_dtype=torch.float32, num_workers=num_workers)
    for split, micro_batch in (("train", 4), ("test", 5)):  # 23 and 7 rows
        samples = TableSamples(pairs, split)
        seen: list[tuple[int, float]] = []
        for world in ranks(world_size):
            for batch in eval_batches(samples, builder, world, micro_batch):
                assert batch.labels_B is not None and 0 < batch.num_samples <= micro_batch
                seen += zip(batch.items_B.tolist(), batch.labels_B.tolist(), strict=True)
        expected = [(samples[i].item, float(samples[i].label or 0)) for i in range(len(samples))]
        assert sorted(seen) == sorted(expected)


def test_evaluation_masks_do_not_depend_on_the_world(make_builder: MakeBuilder, catalog: Catalog) -> None:
    samples = CatalogSamples(catalog, None)
    builder = make_builder(masking=MASKING, train=False)
    alone = list(eval_batches(samples, builder, ranks(1)[0], 1))
    of_rank = [list(eval_batches(samples, builder, world, 1)) for world in ranks(3)]
    merged = [of_rank[i % 3][i // 3] for i in range(NUM_ITEMS)]
    assert leaves(alone) == leaves(merged)


def test_a_limit_holds_over_all_ranks_and_is_spread_over_the_whole(make_builder: MakeBuilder, catalog: Catalog) -> None:
    samples = CatalogSamples(catalog, None)
    builder = make_builder(train=False)
    seen = [
        item
        for world in ranks(3)
        for batch in eval_batches(samples, builder, world, 4, limit=10)
        for item in batch.items_B.tolist()
    ]
    assert len(seen) == len(set(seen)) == 10
    assert max(seen) > NUM_ITEMS // 2
    beyond = eval_batches(samples, builder, ranks(1)[0], 64, limit=1000)
    assert [batch.num_samples for batch in beyond] == [NUM_ITEMS]
    none_left = eval_batches(samples, builder, ranks(3)[2], 4, limit=2)
    assert list(none_left) == []


def test_an_empty_split_is_the_users_mistake(make_builder: MakeBuilder) -> None:
    class Empty:
        def __len__(self) -> int:
            return 0

        def __getitem__(self, index: int, /) -> Sample:
            raise IndexError(index)

    empty: Samples = Empty()
    with pytest.raises(UserError, match="no samples"):
        TrainLoader(empty, make_builder(), ORDER, sizes(4, 4), ranks(1)[0])
    with pytest.raises(UserError, match="no samples"):
        eval_batches(empty, make_builder(train=False), ranks(1)[0], 4)
