"""Samples that are shown another item's picture, and masks in other views than full."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from mbsd.batch import NO_MATCH, Batch
from mbsd.catalog.keys import open_keys, write_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs
from mbsd.config.stages import MaskingConfig
from mbsd.data.loader import TrainLoader, eval_batches
from mbsd.data.mismatch import Mismatch
from mbsd.data.order import Order
from mbsd.data.samples import CatalogSamples, Sample
from mbsd.data.spec import Masked
from tests.data.conftest import DECODERS, NUM_ITEMS, PATCHES, MakeBuilder, ranks, sizes, tensors_of

HALF = Masked(MaskingConfig(mlm_probability=0.4), mismatched=0.5)


def drawn(catalog: Any, keys: Any = None, share: float = 1.0, seed: int = 0) -> list[Sample]:
    samples = CatalogSamples(catalog, None)
    mismatch = Mismatch(samples, catalog, keys, share, seed)
    at = np.arange(len(samples))
    return mismatch.of([samples[n] for n in range(len(samples))], at, np.zeros_like(at))


@given(share=st.floats(0.01, 1), seed=st.integers(0, 2**40), epoch=st.integers(0, 9), part=st.lists(
    st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=12))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_another_picture_follows_seed_epoch_and_position_alone(
    catalog: Catalog, share: float, seed: int, epoch: int, part: list[int]
) -> None:
    samples = CatalogSamples(catalog, None)
    mismatch = Mismatch(samples, catalog, None, share, seed)
    at = np.arange(len(samples))
    whole = mismatch.of([samples[n] for n in at], at, np.full_like(at, epoch))
    some = mismatch.of([samples[n] for n in part], np.array(part), np.full(len(part), epoch))
    assert some == [whole[n] for n in part]
    for own, sample in zip((samples[n] for n in at), whole, strict=True):
        assert dataclasses.replace(sample, picture_of=None) == own
        if sample.picture_of is not None:
            titles = {catalog.title(sample.item), catalog.title(sample.picture_of)}
            assert catalog.has_image(sample.item) and catalog.has_image(sample.picture_of)
            assert len(titles) == 2 and catalog.title(sample.item)


def test_the_share_and_who_keeps_what_it_has(catalog: Catalog) -> None:
    whole = drawn(catalog)
    keeps = [sample.item for sample in whole if sample.picture_of is None]
    assert keeps == [item for item in range(NUM_ITEMS) if not (catalog.title(item) and catalog.has_image(item))]
    others = {sample.picture_of for sample in whole} - {None}
    assert len(others) > 12, "drawn from the whole split"
    half = [sum(s.picture_of is not None for s in drawn(catalog, share=0.5, seed=seed)) for seed in range(20)]
    assert np.mean(half) == pytest.approx(0.5 * (NUM_ITEMS - len(keeps)), rel=0.15)
    assert drawn(catalog, share=0.0) == [Sample(item) for item in range(NUM_ITEMS)]


def test_items_of_one_product_are_never_mismatched(catalog: Catalog, tmp_path: Path) -> None:
    """Where every other item has the same key, a sample keeps its own picture."""
    shutil.copytree(catalog.path, tmp_path / "catalog")
    copy = Catalog(tmp_path / "catalog")
    write_keys(copy)
    keys = open_keys(copy, ("picture",), required=True)
    array = np.load(next((tmp_path / "catalog/keys").glob("picture.*.npy")), mmap_mode="r+")
    groups = np.arange(NUM_ITEMS) % 2
    array[:] = groups
    mismatched = [sample for sample in drawn(copy, keys) if sample.picture_of is not None]
    assert len(mismatched) > 20
    assert all(groups[sample.item] != groups[sample.picture_of or 0] for sample in mismatched)
    array[:] = 0
    assert all(sample.picture_of is None for sample in drawn(copy, keys))


def test_several_catalogues_lend_each_other_pictures(catalog: Catalog, tmp_path: Path) -> None:
    shutil.copytree(catalog.path, tmp_path / "catalog")
    both = Catalogs({"a": catalog, "b": tmp_path / "catalog"})
    mismatched = [sample for sample in drawn(both) if sample.picture_of is not None]
    crossed = [sample for sample in mismatched if (sample.item < NUM_ITEMS) != (sample.picture_of < NUM_ITEMS)]
    assert 0 < len(crossed) < len(mismatched)
    assert all(both.title(sample.item) != both.title(sample.picture_of) for sample in mismatched)


def held_out(make_builder: MakeBuilder, catalog: Catalog, world_size: int, **more: Any) -> list[list[Batch]]:
    builder = make_builder(masking=HALF, train=False, **more)
    samples = CatalogSamples(catalog, None)
    return [list(eval_batches(samples, builder, world, 8)) for world in ranks(world_size)]


def test_a_batch_of_matched_and_mismatched_samples(make_builder: MakeBuilder, catalog: Catalog) -> None:
    """Its pictures, labels and masks, against batches in which nothing is mismatched and nothing is masked."""
    samples = CatalogSamples(catalog, None)
    (batch,) = eval_batches(samples, make_builder(masking=HALF, train=False), ranks(1)[0], NUM_ITEMS)
    clean = make_builder(train=False)
    shown = drawn(catalog, share=0.5, seed=3)
    at = np.arange(NUM_ITEMS)
    plain = clean.build(shown, at, np.zeros_like(at))
    assert batch.labels_B is not None and batch.masks is not None and batch.labels_B.dtype == torch.float32
    asked = [bool(catalog.title(item)) and catalog.has_image(item) for item in range(NUM_ITEMS)]
    expected = [float(s.picture_of is None) if ask else NO_MATCH for s, ask in zip(shown, asked, strict=True)]
    assert batch.labels_B.tolist() == expected and set(expected) == {0.0, 1.0, NO_MATCH}
    assert batch.items_B.tolist() == list(range(NUM_ITEMS))
    assert batch.keys_BK is not None and batch.keys_BK.shape == (NUM_ITEMS, 0), "this catalogue has no keys"
    # Titles are the samples' own, pictures those of the others.
    rows = {item: clean.build([Sample(item)], at[:1], at[:1]) for item in range(NUM_ITEMS)}
    pictures = [rows[s.item if s.picture_of is None else s.picture_of].images for s in shown]
    assert torch.equal(batch.images, torch.cat(pictures)) and torch.equal(batch.images, plain.images)
    assert torch.equal(plain.input_ids_N, torch.cat([rows[item].input_ids_N for item in range(NUM_ITEMS)]))
    # Words and patches of samples with their own picture alone are asked for, the same as where all have theirs.
    alone = make_builder(masking=HALF.masking, train=False).build([Sample(n) for n in at], at, np.zeros_like(at))
    owner = torch.repeat_interleave(torch.arange(NUM_ITEMS), torch.tensor(batch.views.lengths))
    matched = torch.tensor([s.picture_of is None for s in shown])
    for index, labels in (("mlm_index_K", "mlm_labels_K"), ("mpm_index_Q", None)):
        kept = matched[owner[getattr(alone.masks, index)]]
        assert 0 < kept.sum() < len(kept)
        assert torch.equal(getattr(batch.masks, index), getattr(alone.masks, index)[kept])
        if labels is not None:
            assert torch.equal(getattr(batch.masks, labels), getattr(alone.masks, labels)[kept])
    # What is hidden does not tell which samples these are.
    assert torch.equal(batch.input_ids_N, alone.input_ids_N)
    hidden = (batch.masks.patch_source != torch.arange(len(batch.masks.patch_source))).view(-1, PATCHES).sum(1)
    assert (hidden == PATCHES // 2).all()


def test_ranks_do_not_change_what_is_shown(make_builder: MakeBuilder, catalog: Catalog) -> None:
    """Held-out labels of one rank and of three; training batches of two ranks and of two micro-steps."""
    (one,), three = held_out(make_builder, catalog, 1), held_out(make_builder, catalog, 3)
    labels = torch.cat([batch.labels_B for batch in one])
    for rank, batches in enumerate(three):
        assert torch.equal(torch.cat([batch.labels_B for batch in batches]), labels[rank::3])
    samples = CatalogSamples(catalog, "train")

    def first_batches(world_size: int) -> list[list[dict[str, object]]]:
        found = []
        for world in ranks(world_size):
            order, builder = Order(5, len(samples)), make_builder(masking=HALF)
            loader = iter(TrainLoader(samples, builder, order, sizes(8, 4, world_size), world))
            found.append([tensors_of(next(loader)) for _ in range(4 // world_size)])
        return found

    (alone,), two = first_batches(1), first_batches(2)
    assert alone == [two[0][0], two[1][0], two[0][1], two[1][1]]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_bucket_has_as_many_patches_to_predict_however_many_are_matched(
    make_builder: MakeBuilder, catalog: Catalog, decoder: str
) -> None:
    samples = CatalogSamples(catalog, None, complete=True)
    builder = make_builder(masking=HALF, token_bucket=32, decoder=decoder)
    loader = iter(TrainLoader(samples, builder, Order(1, len(samples)), sizes(8, 8), ranks(1)[0]))
    for _ in range(3):
        batch = next(loader)
        assert batch.masks is not None and batch.labels_B is not None
        assert len(batch.masks.mpm_index_Q) == 8 * PATCHES // 2 and len(batch.images) == 8
        assert batch.masks.num_patches == (batch.labels_B == 1).sum() * PATCHES // 2


def test_words_in_the_view_text_and_patches_in_the_view_image(
    make_builder: MakeBuilder, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The same draws as in the view full, as rows of the view that shows them."""
    masking = MaskingConfig(mlm_probability=0.4, mpm_corruption="bert")
    samples, at = [Sample(item) for item in range(NUM_ITEMS)], np.arange(NUM_ITEMS)

    def build(views: tuple[str, ...], target: Masked) -> Batch:
        return make_builder(views, masking=target, image_cls=True).build(samples, at, np.zeros_like(at))

    full = build(("full",), Masked(masking))
    text = build(("text",), Masked(masking, patches=False))
    image = build(("image",), Masked(masking, words=False))
    both = build(("image", "text"), Masked(masking))
    for batch in (text, both):
        assert torch.equal(batch.masks.mlm_labels_K, full.masks.mlm_labels_K)
        read, expected = (b.input_ids_N[b.views.source_T[b.masks.mlm_index_K]] for b in (batch, full))
        assert torch.equal(read, expected)
    assert text.masks.patch_source is None and not len(text.masks.mpm_index_Q) and not len(text.images)
    for batch in (image, both):
        assert torch.equal(batch.masks.patch_source, full.masks.patch_source)
        assert torch.equal(batch.masks.mpm_patch_Q, full.masks.mpm_patch_Q)
        read, expected = (
            b.views.source_T[b.masks.mpm_index_Q] - len(b.input_ids_N) for b in (batch, full)
        )  # fmt: skip
        assert torch.equal(read, expected)
    assert not len(image.masks.mlm_index_K) and tokenizer.mask_token_id not in image.input_ids_N


def test_words_alone_may_be_masked_where_pictures_are_shared(make_builder: MakeBuilder) -> None:
    rows = [Sample(0, "red"), Sample(0, "blue"), Sample(4, "shoe", picture_of=0)]
    target = Masked(MaskingConfig(), patches=False, mismatched=0.5)
    at = np.arange(3)
    batch = make_builder(masking=target, share_images=True).build(rows, at, np.zeros_like(at))
    assert len(batch.images) == 1 and batch.labels_B is not None and batch.labels_B.tolist() == [1, 1, 0]


def test_mismatched_pictures_need_a_view_that_shows_both(make_builder: MakeBuilder) -> None:
    with pytest.raises(ValueError, match="mismatched pictures need the view full"):
        make_builder(("text",), masking=Masked(MaskingConfig(), patches=False, mismatched=0.5))
