"""Whatever happens to a run, the global batches are those of one rank that was never stopped, pixels included."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbsd.batch import Batch
from mbsd.catalog.reader import Catalog
from mbsd.config.stages import MaskingConfig
from mbsd.data.loader import TrainLoader
from mbsd.data.order import Order
from mbsd.data.samples import CatalogSamples
from mbsd.parallel.world import World
from tests.data.conftest import NUM_ITEMS, MakeBuilder, ranks, sizes

STEPS = 6
MASKING = MaskingConfig(mpm_corruption="bert")


def content(batches: list[Batch]) -> list[bytes]:
    """What a global batch holds, sample after sample, without the plan that depends on how it is cut."""
    parts = [
        [batch.items_B for batch in batches],
        [batch.images for batch in batches],
        [batch.input_ids_N for batch in batches],
        [batch.position_ids_N for batch in batches],
        [batch.masks.mlm_labels_K for batch in batches if batch.masks is not None],
        [batch.views.cu_seqlens.diff() for batch in batches],
    ]
    return [torch.cat(part).numpy().tobytes() for part in parts]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_kills_and_other_world_sizes_change_nothing(
    data: st.DataObject, make_builder: MakeBuilder, catalog: Catalog
) -> None:
    global_batch = data.draw(st.sampled_from([24, 56, 60]), "global batch")
    order = Order(data.draw(st.integers(0, 10**6), "seed"), NUM_ITEMS, block=4, window=3)

    def make(micro_batch: int, world: World, workers: int = 0) -> TrainLoader:
        builder, cut = make_builder(masking=MASKING, num_workers=workers), sizes(global_batch, micro_batch, world.size)
        return TrainLoader(CatalogSamples(catalog, None), builder, order, cut, world)

    undisturbed = [content([batch]) for batch in itertools.islice(make(global_batch, ranks(1)[0]), STEPS)]
    seen, items, state = [], [], None
    while len(seen) < STEPS:
        world_size = data.draw(st.sampled_from([w for w in range(1, 9) if global_batch % w == 0]), "world size")
        micro_batch = (
            global_batch
            // world_size
            // data.draw(st.sampled_from([m for m in (1, 2, 3) if global_batch // world_size % m == 0]), "micro-steps")
        )
        workers = data.draw(st.integers(0, 3 if world_size <= 2 else 1), "workers")  # processes of each rank
        loaders = [make(micro_batch, world, workers) for world in ranks(world_size)]
        micro_steps = global_batch // (micro_batch * world_size)
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        readers = [iter(loader) for loader in loaders]
        for _ in range(data.draw(st.integers(1, STEPS - len(seen)), "steps until it is killed")):
            step = [next(reader) for _ in range(micro_steps) for reader in readers]
            seen.append(content(step))
            items += [item for batch in step for item in batch.items_B.tolist()]
        state = loaders[0].state_dict()
        if micro_steps > 1:
            next(readers[-1])  # the last rank had begun the step in which all died
        assert all(loader.state_dict() == state for loader in loaders)
    assert seen == undisturbed
    for start in range(0, len(items) - NUM_ITEMS + 1, NUM_ITEMS):
        assert sorted(items[start : start + NUM_ITEMS]) == list(range(NUM_ITEMS)), "every sample once an epoch"
