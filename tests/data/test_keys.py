"""Batches that say which samples are the same product, and samples without what is incomplete."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from mbsd.batch import NO_KEY, Batch
from mbsd.catalog.keys import KeyOptions, ProductColumn, open_keys, write_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config.data import DataConfig
from mbsd.config.run import BaseConfig, RunConfig
from mbsd.config.scoring import EmbedConfig, EvaluateConfig
from mbsd.data.batch_builder import BatchBuilder, Prepared
from mbsd.data.decode_torchvision import TorchvisionDecoder
from mbsd.data.inputs import Builders, open_catalog, split_samples
from mbsd.data.loader import TrainLoader, eval_batches
from mbsd.data.order import Order
from mbsd.data.samples import CatalogSamples, Sample, WithMissing
from mbsd.data.spec import BatchSpec, SameProduct, Targets
from mbsd.errors import UserError
from mbsd.model.config import BackboneConfig
from mbsd.tools.plan.shapes import num_samples
from tests.catalog.helpers import write_jsonl
from tests.data.conftest import IMAGE_SIZE, NUM_ITEMS, PATCHES, ranks, sizes, tensors_of

VIEWS = ("text", "image")
SAME = ("product", "title", "picture")


@pytest.fixture(scope="module")
def keyed(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The catalogue with keys; every third item is of the same product as the one before it."""
    folder = tmp_path_factory.mktemp("keyed")
    shutil.copytree(catalog.path, folder / "catalog")
    source = write_jsonl(
        folder / "items.jsonl",
        *({"item_id": f"i{n}", "title": "x", "group": f"g{n - n % 3 // 2}"} for n in range(NUM_ITEMS)),
    )
    keyed = Catalog(folder / "catalog")
    write_keys(keyed, KeyOptions(product=ProductColumn("group", source)))
    return keyed


def builder_of(
    catalog: Catalog, tokenizer: PreTrainedTokenizerBase, *, train: bool = True, **settings: Any
) -> BatchBuilder:
    data = DataConfig(
        str(catalog.path), image_size=IMAGE_SIZE, max_text_tokens=24, max_query_tokens=10,
        **{"num_workers": 0, "prefetch": 2, **settings},
    )  # fmt: skip
    spec = BatchSpec(VIEWS, SameProduct(SAME), PATCHES, train=train, seed=3)
    keys = open_keys(catalog, SAME, required=True)
    return BatchBuilder(catalog, tokenizer, data, spec, TorchvisionDecoder(IMAGE_SIZE), keys)


def build(builder: BatchBuilder, samples: list[Sample]) -> Batch:
    return builder.build(samples, np.arange(len(samples)), np.zeros(len(samples), dtype=np.int64))


@pytest.mark.parametrize("bucket", [1, 64])
def test_keys_and_shown_titles_are_those_of_each_sample(
    keyed: Catalog, tokenizer: PreTrainedTokenizerBase, bucket: int
) -> None:
    items = [3, 4, 5, 2, 7, 40, 10]  # 3 and 10 have no title, 2 and 7 no picture
    samples = [Sample(item) for item in items]
    samples[1] = Sample(4, hidden=frozenset({"title"}))
    samples[2] = Sample(5, hidden=frozenset({"image"}))
    batch = build(builder_of(keyed, tokenizer, token_bucket=bucket), samples)
    assert batch.keys_BK is not None and batch.has_text is not None
    assert batch.keys_BK.dtype == torch.int64 and batch.has_text.dtype == torch.bool
    assert np.array_equal(batch.keys_BK.numpy(), open_keys(keyed, SAME, required=True).of(np.array(items)))
    product, title, picture = batch.keys_BK.T
    assert product[1] == product[2] and len(set(product.tolist())) == len(items) - 1
    assert (title == NO_KEY).tolist() == [True, False, False, False, False, False, True]
    assert (picture == NO_KEY).tolist() == [False, False, False, True, True, False, False]
    assert batch.has_text.tolist() == [False, False, True, True, True, True, False], "a hidden title is not shown"
    assert batch.has_image.tolist() == [True, True, False, False, False, True, True]


def test_a_title_of_which_no_token_is_left_is_not_shown(
    keyed: Catalog, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = builder_of(keyed, tokenizer)
    monkeypatch.setattr(keyed, "title", lambda item: "\u200b\u0000" if item == 0 else "red")
    batch = build(builder, [Sample(0), Sample(1)])
    assert batch.has_text is not None and batch.has_text.tolist() == [False, True]
    # Nor is a query a title.
    batch = build(builder, [Sample(0, text="red dress"), Sample(1, text="red dress")])
    assert batch.has_text is not None and batch.has_text.tolist() == [False, True]


def test_a_damaged_picture_counts_as_not_shown(
    keyed: Catalog, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    shutil.copytree(keyed.path, tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    shard = catalog.path / "shards" / "000000.tar"
    data = bytearray(shard.read_bytes())
    data[catalog.table()["offset"][1].as_py() + 50] ^= 1
    shard.write_bytes(data)
    batch = build(builder_of(catalog, tokenizer), [Sample(0), Sample(1), Sample(4)])
    assert batch.has_image.tolist() == [True, False, True]
    assert batch.keys_BK is not None and batch.keys_BK.shape == (3, 3)


def test_both_items_of_a_row_have_keys(keyed: Catalog, tokenizer: PreTrainedTokenizerBase) -> None:
    batch = build(builder_of(keyed, tokenizer), [Sample(4, other=5), Sample(0, other=9)])
    assert batch.keys_BK is not None and batch.has_text is not None and len(batch.has_text) == 4
    assert np.array_equal(batch.keys_BK.numpy(), open_keys(keyed, SAME, required=True).of(np.array([4, 0, 5, 9])))
    assert batch.keys_BK[0, 0] == batch.keys_BK[2, 0]


def test_titles_that_are_taken_away_are_not_shown(keyed: Catalog, tokenizer: PreTrainedTokenizerBase) -> None:
    samples = WithMissing(CatalogSamples(keyed, None), "title", 0.5, seed=1)
    builder = builder_of(keyed, tokenizer, train=False)
    [world] = ranks(1)
    for batch in eval_batches(samples, builder, world, 8):
        assert batch.has_text is not None and batch.keys_BK is not None
        for item, shown, keys in zip(batch.items_B.tolist(), batch.has_text.tolist(), batch.keys_BK, strict=True):
            assert shown == (keyed.title(item) != "" and "title" not in samples[item].hidden)
            assert (keys[1] == NO_KEY) == (keyed.title(item) == ""), "the key is the item's, shown or not"


def _build_elsewhere(sent: bytes) -> Prepared:
    builder: BatchBuilder = pickle.loads(sent)
    return builder.prepare([Sample(item) for item in range(6)], np.arange(6), np.zeros(6, dtype=np.int64))


def test_a_spawned_process_builds_the_same(keyed: Catalog, tokenizer: PreTrainedTokenizerBase) -> None:
    builder = builder_of(keyed, tokenizer)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_build_elsewhere, (pickle.dumps(builder),))
    assert tensors_of(found.batch) == tensors_of(build(builder, [Sample(item) for item in range(6)]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_number_of_ranks_and_workers_sees_the_same_keys(
    keyed: Catalog, tokenizer: PreTrainedTokenizerBase, num_workers: int
) -> None:
    """By position of the global batch, over an epoch and a bit."""
    samples = CatalogSamples(keyed, None)
    order = Order(3, len(samples), 4, 2)

    def steps(world_size: int, workers: int) -> list[list[tuple[int, list[int], bool]]]:
        builder = builder_of(keyed, tokenizer, num_workers=workers)
        loaders = [
            iter(TrainLoader(samples, builder, order, sizes(8, 2, world_size), world)) for world in ranks(world_size)
        ]
        found = []
        for _ in range(6):
            rows: list[tuple[int, list[int], bool]] = []
            for loader in loaders:
                for _ in range(8 // 2 // world_size):
                    batch = next(loader)
                    assert batch.keys_BK is not None and batch.has_text is not None
                    rows += zip(batch.items_B.tolist(), batch.keys_BK.tolist(), batch.has_text.tolist(), strict=True)
            found.append(sorted(rows))
        return found

    assert steps(2, num_workers) == steps(1, 0)


def test_a_batch_of_another_stage_holds_no_keys_and_its_order_is_the_same(
    keyed: Catalog, catalog: Catalog, tokenizer: PreTrainedTokenizerBase
) -> None:
    with_keys = builder_of(keyed, tokenizer)
    spec = dataclasses.replace(with_keys.spec, targets=None)
    without = BatchBuilder(catalog, tokenizer, with_keys.data, spec, with_keys.decoder)
    samples = [Sample(item) for item in range(9)]
    plain, batch = build(without, samples), build(with_keys, samples)
    assert plain.keys_BK is None and plain.has_text is None
    assert tensors_of(dataclasses.replace(batch, keys_BK=None, has_text=None)) == tensors_of(plain)
    with pytest.raises(ValueError, match="expected keys for SameProduct"):
        BatchBuilder(keyed, tokenizer, with_keys.data, with_keys.spec, with_keys.decoder)


def builders(catalog: Catalog, tokenizer: PreTrainedTokenizerBase) -> Builders:
    data = DataConfig(str(catalog.path), image_size=IMAGE_SIZE, max_text_tokens=24)
    model = BackboneConfig(vocab_size=len(tokenizer), hidden_size=16, image_size=IMAGE_SIZE)
    return Builders(catalog, tokenizer, data, model, max_batch=4)


def test_builders_open_the_keys(keyed: Catalog, catalog: Catalog, tokenizer: PreTrainedTokenizerBase) -> None:
    [world] = ranks(1)

    def keys_of(source: Catalog, targets: Targets) -> Any:
        return builders(source, tokenizer).build(VIEWS, targets, world).keys

    assert keys_of(keyed, SameProduct(("title", "near_picture"))).names == ("title",)
    assert keys_of(keyed, None) is None
    assert keys_of(catalog, SameProduct(SAME, required=False)).names == ()
    with pytest.raises(UserError, match="has no identity keys, .* `mbsd catalog keys"):
        keys_of(catalog, SameProduct(SAME))


def settings(catalog: Catalog, **data: Any) -> BaseConfig:
    return BaseConfig(RunConfig("run", max_steps=1), DataConfig(str(catalog.path), **data))


def test_incomplete_items_are_left_out_where_that_is_asked_for(catalog: Catalog) -> None:
    for split in ("train", "validation", "test"):
        every = split_samples(settings(catalog), catalog, None, split)
        some = split_samples(settings(catalog, drop_incomplete=True), catalog, None, split)
        assert [every[n].item for n in range(len(every))] == catalog.indices(split).tolist()
        assert [some[n].item for n in range(len(some))] == [
            item for item in catalog.indices(split).tolist() if catalog.title(item) and catalog.has_image(item)
        ]
        if split == "train":
            assert num_samples(settings(catalog, drop_incomplete=True)) == len(some), "as planned"
    assert len(CatalogSamples(catalog, None, complete=True)) < NUM_ITEMS == len(CatalogSamples(catalog, None))


def test_drop_incomplete_beside_a_table_is_refused(catalog: Catalog, pairs: Table) -> None:
    data = DataConfig(str(catalog.path), table=str(pairs.path), drop_incomplete=True)
    with pytest.raises(UserError, match=r"data.drop_incomplete=true and data.table=.*: a table names its own items"):
        open_catalog(data, "pairs")


def test_scoring_leaves_no_item_out(catalog: Catalog, pairs: Table) -> None:
    data = DataConfig(str(catalog.path), drop_incomplete=True)
    for config in (
        EmbedConfig("model", data, "out"),
        EvaluateConfig("model", dataclasses.replace(data, table=str(pairs.path)), "out.json"),
    ):
        with pytest.raises(UserError, match="data.drop_incomplete=true: .* here every item counts: remove it"):
            config.check()


def test_a_split_without_a_complete_item_is_refused(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "is_complete", lambda: np.zeros(NUM_ITEMS, dtype=bool))
    with pytest.raises(UserError, match=r"its train split has no item with both title and picture"):
        split_samples(settings(catalog, drop_incomplete=True), catalog, None, "train")
