"""Several catalogues in one run: exact shares, whole epochs of each, the same samples however a run is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from mbsd.batch import Batch
from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.concat import concat_tables
from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Table, write_table
from mbsd.config.catalogs import PERIOD, CatalogConfig, slots_of
from mbsd.config.data import DataConfig
from mbsd.config.stages import MaskingConfig
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.decode_dali import make_decoder
from mbsd.data.inputs import catalog_samples, open_catalog, open_items
from mbsd.data.loader import TrainLoader
from mbsd.data.mixture import MixedOrder, Source, order_of
from mbsd.data.order import Order, derived_seed
from mbsd.data.samples import CatalogSamples, Samples, TableSamples
from mbsd.data.spec import BatchSpec, Labelled, Masked
from mbsd.errors import UserError
from mbsd.parallel.world import World
from tests.data.conftest import IMAGE_SIZE, NUM_ITEMS, PATCHES, picture, ranks, sizes, tensors_of
from tests.data.test_elastic import content

SIZES = {"large": NUM_ITEMS, "small": 17, "tiny": 5}
WEIGHTS = {"large": 5.0, "small": 3.0, "tiny": 1.0}
weights = st.lists(st.floats(0.1, 100.0), min_size=1, max_size=6)


def named(weights: Sequence[float]) -> list[CatalogConfig]:
    return [CatalogConfig(f"catalog{place}", weight) for place, weight in enumerate(weights)]


def mixture(
    weights: Sequence[float], counts: Sequence[int], seed: int = 0, block: int = 4, window: int = 3
) -> MixedOrder:
    slots = slots_of(named(weights))
    return MixedOrder(
        tuple(
            Source(f"catalog{place}", slots[place], Order(derived_seed(seed, place), count, block, window))
            for place, count in enumerate(counts)
        )
    )


def reference(weights: Sequence[float], counts: Sequence[int], orders: Sequence[Order], length: int) -> list[int]:
    """The sample at each position from 0, one after the other: at each slot the source whose turn is the earliest."""
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) / total * 10_000 for weight in weights]
    slots = [share.numerator // share.denominator for share in exact]
    while sum(slots) < 10_000:
        most = max(range(len(slots)), key=lambda place: (exact[place] - slots[place], -place))
        slots[most] += 1
    turns, pattern = [0] * len(slots), []
    for _ in range(10_000):
        left = (place for place in range(len(slots)) if turns[place] < slots[place])
        next_one = min(left, key=lambda place: (Fraction(2 * turns[place] + 1, slots[place]), place))
        turns[next_one] += 1
        pattern.append(next_one)
    own = [iter(order.samples_at(np.arange(length)).tolist()) for order in orders]
    places = itertools.islice(itertools.cycle(pattern), length)
    return [sum(counts[:place]) + next(own[place]) for place in places]


@settings(max_examples=40, deadline=None)
@given(weights=weights, start=st.integers(0, 10**9), length=st.integers(1, 12_000))
def test_every_window_has_each_share(weights: list[float], start: int, length: int) -> None:
    order = mixture(weights, [1] * len(weights))
    of_window = np.bincount(order.sources_at(np.arange(start, start + PERIOD)), minlength=len(weights))
    shares = np.array(weights) / sum(weights)
    assert np.abs(of_window - PERIOD * shares).max() < 1
    assert of_window.tolist() == list(slots_of(named(weights)))
    # A shorter or longer one is nearly even.
    part = np.bincount(order.sources_at(np.arange(start, start + length)), minlength=len(weights))
    exact = of_window / PERIOD
    assert (np.abs(part - length * exact) <= 1 + len(weights) * exact + 1e-9).all()


@settings(max_examples=10, deadline=None)
@given(data=st.data(), weights=st.lists(st.floats(0.05, 20.0), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_it_is_what_one_gets_by_counting(data: st.DataObject, weights: list[float], seed: int) -> None:
    counts = data.draw(st.lists(st.integers(1, 90), min_size=len(weights), max_size=len(weights)))
    order, length = mixture(weights, counts, seed), 10_700
    assert order.num_samples == sum(counts)
    expected = reference(weights, counts, [source.order for source in order.sources], length)
    assert order.samples_at(np.arange(length)).tolist() == expected
    places = [data.draw(st.integers(0, length - 1)) for _ in range(5)]
    assert [int(order.samples_at(np.array([place]))[0]) for place in places] == [expected[place] for place in places]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), weights=st.lists(st.floats(0.05, 20.0), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_every_epoch_of_every_source_is_a_permutation(data: st.DataObject, weights: list[float], seed: int) -> None:
    counts = data.draw(st.lists(st.integers(1, 300), min_size=len(weights), max_size=len(weights)))
    order, length = mixture(weights, counts, seed), 23_000
    positions = np.arange(length)
    samples, places = order.samples_at(positions), order.sources_at(positions)
    after = order.epochs_after(length)
    for place, count in enumerate(counts):
        own = samples[places == place] - sum(counts[:place])
        assert after[f"catalog{place}"] == len(own) / count
        for start in range(0, len(own) - count + 1, count):
            assert sorted(own[start : start + count].tolist()) == list(range(count))
    # Two epochs are two orders, and two sources of one size have two.
    epochs, at = order.draws_at(positions)
    assert len({*zip(epochs.tolist(), at.tolist(), strict=True)}) == length, "no two samples draw the same numbers"
    with_counts = np.concatenate([epochs[places == place] for place in range(len(counts))])
    expected = [np.arange((places == place).sum()) // count for place, count in enumerate(counts)]
    assert with_counts.tolist() == np.concatenate(expected).tolist()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(-(2**63), 2**64), count=st.integers(1, 400), weight=st.floats(0.01, 100))
def test_one_catalogue_of_several_is_as_one_alone(seed: int, count: int, weight: float) -> None:
    positions = np.arange(25_000)
    alone, order = Order(seed, count, 4, 3), mixture([weight], [count], seed)
    assert np.array_equal(order.samples_at(positions), alone.samples_at(positions))
    assert all(np.array_equal(*pair) for pair in zip(order.draws_at(positions), alone.draws_at(positions), strict=True))


def test_sources_of_one_size_have_different_orders() -> None:
    order = mixture([1, 1, 1], [400] * 3)
    positions = np.arange(1200)
    samples, places = order.samples_at(positions), order.sources_at(positions)
    first, second, third = (samples[places == place] - 400 * place for place in range(3))
    assert (first == second).sum() < 15 and (first == third).sum() < 15 and (second == third).sum() < 15


@pytest.fixture(scope="module")
def paths(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three catalogues; ids of the second and third are the first's too."""
    found = {"large": catalog.path}
    for name in ("small", "tiny"):
        folder, rng = tmp_path_factory.mktemp(name), np.random.default_rng(len(name))
        items = []
        for number in range(SIZES[name]):
            picture(rng, 90, 80).save(folder / f"{number}.jpg", quality=90)
            items.append(Item(item_id=f"i{number}", title=f"summer dress {name} {number}", image=f"{number}.jpg"))
        build_catalog(items, folder, folder / name, BuildOptions(items_per_shard=8, workers=1, progress=False))
        found[name] = folder / name
    return found


def settings_of(paths: dict[str, Path], **more: object) -> DataConfig:
    entries = tuple(CatalogConfig(str(path), WEIGHTS[name]) for name, path in paths.items())
    return DataConfig(
        catalogs=tuple(CatalogConfig(e.path, e.weight, n) for e, n in zip(entries, paths, strict=True)),
        **{
            "image_size": IMAGE_SIZE, "max_text_tokens": 24, "max_query_tokens": 10, "num_workers": 0, "prefetch": 2,
            "shuffle_block": 4, "shuffle_window": 2, **more,
        },  # type: ignore[arg-type]
    )  # fmt: skip


def builder_of(data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, labelled: bool = False) -> BatchBuilder:
    targets = Labelled(torch.float32) if labelled else Masked(MaskingConfig(mpm_corruption="bert"))
    spec = BatchSpec(("full",), targets, PATCHES, False, True, seed=3)
    return BatchBuilder(open_items(data), tokenizer, data, spec, make_decoder("torchvision", IMAGE_SIZE, max_batch=4))


def rows_of(loaders: list[TrainLoader], micro_steps: int, steps: int) -> list[list[Batch]]:
    readers = [iter(loader) for loader in loaders]
    return [[next(reader) for _ in range(micro_steps) for reader in readers] for _ in range(steps)]


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_kills_and_other_world_sizes_change_nothing(
    data: st.DataObject, paths: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    config, global_batch, steps = settings_of(paths), 24, 8
    catalog, seed = open_items(config), data.draw(st.integers(0, 10**6), "seed")
    samples, order = order_of(CatalogSamples(catalog, None), catalog, config, seed)

    def make(micro_batch: int, world: World, workers: int = 0) -> TrainLoader:
        builder = builder_of(settings_of(paths, num_workers=workers), tokenizer)
        return TrainLoader(samples, builder, order, sizes(global_batch, micro_batch, world.size), world)

    undisturbed = [content(step) for step in rows_of([make(global_batch, ranks(1)[0])], 1, steps)]
    seen: list[list[bytes]] = []
    state = None
    while len(seen) < steps:
        world_size = data.draw(st.sampled_from([1, 2, 3, 4, 6]), "world size")
        micro_batch = data.draw(st.sampled_from([m for m in (1, 2, 4) if global_batch % (m * world_size) == 0]))
        workers = data.draw(st.integers(0, 1), "workers") if world_size <= 2 else 0
        loaders = [make(micro_batch, world, workers) for world in ranks(world_size)]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        number = data.draw(st.integers(1, steps - len(seen)), "steps until it is killed")
        seen += [content(step) for step in rows_of(loaders, global_batch // (micro_batch * world_size), number)]
        state = loaders[-1].state_dict()
    assert seen == undisturbed


def test_batches_of_one_entry_are_those_of_data_catalog(
    paths: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    several = settings_of({"large": paths["large"]})
    alone = DataConfig(
        str(paths["large"]), image_size=IMAGE_SIZE, max_text_tokens=24, max_query_tokens=10, num_workers=0,
        shuffle_block=4, shuffle_window=2,
    )  # fmt: skip
    found = []
    for config in (several, alone):
        catalog = open_items(config)
        samples, order = order_of(CatalogSamples(catalog), catalog, config, 11)
        loader = TrainLoader(samples, builder_of(config, tokenizer), order, sizes(12, 12), ranks(1)[0])
        found.append([tensors_of(batch) for batch in itertools.islice(loader, 6)])
    assert found[0] == found[1]


def test_another_mixture_does_not_resume(paths: dict[str, Path], tokenizer: PreTrainedTokenizerBase) -> None:
    config = settings_of(paths)
    catalog = open_items(config)

    def loader(order: MixedOrder | Order, samples: Samples) -> TrainLoader:
        return TrainLoader(samples, builder_of(config, tokenizer), order, sizes(8, 8), ranks(1)[0])

    samples, order = order_of(CatalogSamples(catalog, None), catalog, config, 0)
    assert isinstance(order, MixedOrder)
    state = loader(order, samples).state_dict()
    first, *others = order.sources
    other = MixedOrder(
        (
            Source("large", first.slots - 1, first.order),
            Source("small", others[0].slots + 1, others[0].order),
            others[1],
        )
    )
    with pytest.raises(UserError, match=r"sources=\[\[41, 5555\], \[17, 3334\], \[5, 1111\]\].*41, 5556"):
        loader(other, samples).load_state_dict(state)
    alone = Order(0, order.num_samples, order.sources[0].order.block, order.sources[0].order.window)
    with pytest.raises(UserError, match="sources="):
        loader(order, samples).load_state_dict(loader(alone, samples).state_dict())


@pytest.fixture(scope="module")
def pairs(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows an item, neighbours, of the items 0 to 9 (of tiny: 0 to 4), all of them in train."""
    folder, parts = tmp_path_factory.mktemp("pairs"), []
    for name, path in paths.items():
        items = np.repeat(np.arange(min(10, SIZES[name])), 4)
        rows = len(items)
        columns = {
            "text": [f"query {row}" for row in range(rows)], "item": items, "label": [row % 2 for row in range(rows)],
            "source": [name] * rows, "evidence": [2] * rows, "replaced": [""] * rows, "split": ["train"] * rows,
        }  # fmt: skip
        write_table("pairs", pa.table(columns), Catalog(path), folder / f"{name}.parquet")
        parts.append((folder / f"{name}.parquet", name))
    concat_tables(parts, folder / "all.parquet")
    return folder


def test_weights_apply_to_the_rows_of_a_table(paths: dict[str, Path], pairs: Path) -> None:
    config = settings_of(paths, table=str(pairs / "all.parquet"))
    catalog, table = open_catalog(config, "pairs")
    assert isinstance(catalog, Catalogs) and table is not None
    samples, order = order_of(TableSamples(table), catalog, config, 5)
    assert isinstance(order, MixedOrder) and [source.order.num_samples for source in order.sources] == [40, 40, 20]
    of_row = np.array(table.column("source"))
    found = [samples[index] for index in order.samples_at(np.arange(1000, 11_000)).tolist()]
    sources = [catalog.names[catalog.member(sample.item)[0]] for sample in found]
    assert [sources.count(name) for name in paths] == [5556, 3333, 1111]
    assert of_row.tolist() == ["large"] * 40 + ["small"] * 40 + ["tiny"] * 20
    # The rows in another order, not catalogue after catalogue: the same shares.
    shuffled = np.random.default_rng(0).permutation(100)
    write_table("pairs", table.take(shuffled), catalog, pairs / "shuffled.parquet")
    mixed = Table(pairs / "shuffled.parquet", catalog)
    samples, order = order_of(TableSamples(mixed), catalog, config, 5)
    found = [samples[index] for index in order.samples_at(np.arange(10_000)).tolist()]
    sources = [catalog.names[catalog.member(sample.item)[0]] for sample in found]
    assert [sources.count(name) for name in paths] == [5556, 3333, 1111]
    texts = {(sample.item, sample.text) for sample in found}
    assert texts == {(int(table.column("item")[row]), table.column("text")[row]) for row in range(100)}


def test_rows_of_one_item_show_one_picture(
    paths: dict[str, Path], pairs: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    more: dict[str, object] = {"table": str(pairs / "all.parquet"), "shuffle_block": 8, "shuffle_window": 1}
    config = settings_of(paths, share_images=True, **more)
    catalog, table = open_catalog(config, "pairs")
    assert table is not None
    samples, order = order_of(TableSamples(table), catalog, config, 5)
    builder = builder_of(config, tokenizer, labelled=True)
    loader = TrainLoader(samples, builder, order, sizes(90, 90), ranks(1)[0])
    pictures: dict[tuple[int, int], bytes] = {}
    shown = 0
    for number, batch in enumerate(itertools.islice(loader, 4)):
        positions = np.arange(90 * number, 90 * (number + 1))
        items, epochs = batch.items_B.numpy(), order.draws_at(positions)[0]
        with_picture = [catalog.has_image(item) for item in items.tolist()]
        of_sample = {*zip(epochs[with_picture].tolist(), items[with_picture].tolist(), strict=True)}
        assert len(batch.images) == len(of_sample), "one picture of each item and each epoch of its catalogue"
        shown += len(batch.images)
        for key, image in zip(
            dict.fromkeys(zip(epochs[with_picture].tolist(), items[with_picture].tolist(), strict=True)),
            batch.images,
            strict=True,
        ):
            # Rows of an item that fall into two micro-batches show the same crop.
            assert pictures.setdefault(key, image.numpy().tobytes()) == image.numpy().tobytes()
    assert shown < 360 / 2.5  # each picture stands for up to four rows


def test_items_that_tables_test_are_left_out_of_each(paths: dict[str, Path], tmp_path: Path) -> None:
    """A table of one catalogue by its fingerprint, and one of two by their names."""
    tested = {"large": [3, 4], "small": [0, 5], "tiny": [2]}
    for name, items in tested.items():
        rows = [
            {"text": "q", "item": item, "label": 1, "source": "", "evidence": 0, "replaced": "", "split": "test"}
            for item in items
        ]
        write_table("pairs", pa.Table.from_pylist(rows), Catalog(paths[name]), tmp_path / f"{name}.parquet")
    concat_tables([(tmp_path / f"{name}.parquet", name) for name in ("tiny", "large")], tmp_path / "two.parquet")
    config = settings_of(paths, held_out=(str(tmp_path / "small.parquet"), str(tmp_path / "two.parquet")))
    catalog = open_items(config)
    assert isinstance(catalog, Catalogs)
    left = set(catalog.indices("train").tolist()) - set(catalog_samples(config, catalog, "train").items.tolist())
    own = {name: set(Catalog(path).indices("train").tolist()) for name, path in paths.items()}
    assert left == {catalog.number(name, i) for name, items in tested.items() for i in items if i in own[name]} != set()


def test_a_catalogue_without_training_samples_is_refused(paths: dict[str, Path], pairs: Path) -> None:
    config = settings_of(paths, table=str(pairs / "large.parquet"))
    catalog, table = open_catalog(config, "pairs")
    assert table is not None
    with pytest.raises(UserError, match=r"'small' .*has a weight, and table .*large.parquet has no training row of it"):
        order_of(TableSamples(table), catalog, config, 5)
