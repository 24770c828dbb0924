"""What Kaleido-BERT's puzzles do to pictures: drawn of each sample alone, with crops of other products."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from mbsd.batch import NO_CLASS, Batch
from mbsd.catalog.reader import Catalog
from mbsd.config.stages import MaskingConfig
from mbsd.data.loader import TrainLoader, eval_batches
from mbsd.data.mismatch import Mismatch
from mbsd.data.order import Order
from mbsd.data.puzzles import ORDERS, draw_puzzles
from mbsd.data.samples import CatalogSamples, Sample
from mbsd.data.spec import Masked, PuzzleSpec
from tests.data.conftest import DECODERS, NUM_ITEMS, PATCHES, MakeBuilder, ranks, sizes, tensors_of

SPEC = PuzzleSpec(grey=2, blank=3)
PUZZLED = Masked(MaskingConfig(), patches=False, mismatched=0.5, puzzles=SPEC)


def test_every_answer_comes_and_places_differ() -> None:
    drawn = [draw_puzzles(np.random.default_rng(seed), SPEC) for seed in range(2000)]
    for name, classes in (("rotation", 4), ("jigsaw", 24), ("camouflage", 9)):
        counts = np.bincount([getattr(one, name) for one in drawn], minlength=classes)
        assert len(counts) == classes and counts.min() > 0.6 * 2000 / classes
    for name, places, count in (("grey", 16, 2), ("blank", 25, 3)):
        rows = np.stack([getattr(one, name) for one in drawn])
        assert rows.shape == (2000, count) and (np.diff(rows) > 0).all() and set(rows.ravel()) == set(range(places))
    assert len(set(ORDERS)) == 24 and all(sorted(order) == [0, 1, 2, 3] for order in ORDERS)


def test_a_crop_is_lent_by_another_product(make_builder: MakeBuilder, catalog: Catalog) -> None:
    """The pictures that lend crops, and where they are put; the title's mismatch is drawn as without puzzles."""
    samples, at = CatalogSamples(catalog, None), np.arange(NUM_ITEMS)
    builder = make_builder(masking=PUZZLED, train=False)
    (batch,) = eval_batches(samples, builder, ranks(1)[0], NUM_ITEMS)
    shown, plain = (
        Mismatch(samples, catalog, builder.keys, 0.5, 3, crops).of([Sample(n) for n in at], at, np.zeros_like(at))
        for crops in (True, False)
    )
    assert [dataclasses.replace(sample, crop_of=None) for sample in shown] == plain
    pictured = [sample for sample in shown if catalog.has_image(sample.pictured)]
    puzzles, clean = batch.puzzles, make_builder(train=False)
    assert puzzles is not None and puzzles.num_images == len(pictured) == len(batch.images) == len(puzzles.others)
    assert puzzles.num_camouflaged == len(pictured) and (puzzles.camouflage_I != NO_CLASS).all()
    for n, sample in enumerate(pictured):
        assert sample.crop_of is not None and sample.crop_of != sample.pictured
        titles = [catalog.title(item) for item in (sample.crop_of, sample.pictured)]
        assert titles[0] != titles[1] or titles == ["", ""]
        lender = clean.build([Sample(sample.crop_of)], at[:1], at[:1])
        assert torch.equal(lender.images[0], puzzles.others[n])
    # A picture's first crop is the first packed row behind its text.
    is_patch = batch.views.source_T >= len(batch.input_ids_N)
    assert is_patch[puzzles.first_I].all() and not is_patch[puzzles.first_I - 1].any()
    assert torch.equal(
        batch.views.source_T[puzzles.first_I] - len(batch.input_ids_N), PATCHES * torch.arange(len(pictured))
    )


def test_a_picture_without_a_lender_is_asked_for_the_others(make_builder: MakeBuilder, catalog: Catalog) -> None:
    with_image = [item for item in range(NUM_ITEMS) if catalog.has_image(item)][:3]
    lenders = (None, with_image[0], None)
    samples = [Sample(item, crop_of=other) for item, other in zip(with_image, lenders, strict=True)]
    at = np.arange(3)
    batch = make_builder(masking=PUZZLED, train=False).build(samples, at, np.zeros_like(at))
    assert batch.puzzles is not None and batch.puzzles.num_camouflaged == 1
    assert (batch.puzzles.camouflage_I == NO_CLASS).tolist() == [True, False, True]
    assert [bool(other.any()) for other in batch.puzzles.others] == [False, True, False]


def test_ranks_do_not_change_the_puzzles(make_builder: MakeBuilder, catalog: Catalog) -> None:
    samples = CatalogSamples(catalog, "train")

    def first_batches(world_size: int) -> list[list[dict[str, object]]]:
        found = []
        for world in ranks(world_size):
            loader = TrainLoader(
                samples, make_builder(masking=PUZZLED), Order(5, len(samples)), sizes(8, 4, world_size), world
            )
            batches = iter(loader)
            found.append([tensors_of(next(batches)) for _ in range(4 // world_size)])
        return found

    (alone,), two = first_batches(1), first_batches(2)
    assert alone == [two[0][0], two[1][0], two[0][1], two[1][1]]
    assert "puzzles.others" in alone[0] and alone[0] != alone[2]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_bucket_fills_up_puzzles_too(make_builder: MakeBuilder, catalog: Catalog, decoder: str) -> None:
    samples = CatalogSamples(catalog, "train")

    def batches(**more: Any) -> list[Batch]:
        loader = TrainLoader(
            samples, make_builder(masking=PUZZLED, **more), Order(1, len(samples)), sizes(8, 8), ranks(1)[0]
        )
        made = iter(loader)
        return [next(made) for _ in range(3)]

    some_fill = False
    for plain, filled in zip(batches(), batches(token_bucket=32, decoder=decoder), strict=True):
        real = plain.puzzles
        assert real is not None and filled.puzzles is not None and real.num_fill == 0
        asked = real.num_images
        some_fill |= asked < 8
        assert filled.puzzles.num_images == asked and filled.puzzles.num_camouflaged == real.num_camouflaged
        assert len(filled.images) == len(filled.puzzles.others) == 8 and not filled.puzzles.others[asked:].any()
        for field in dataclasses.fields(real):
            value, full = (getattr(of, field.name) for of in (real, filled.puzzles))
            if isinstance(value, torch.Tensor):
                assert len(full) == 8
                apart = (full[:asked].float() - value.float()).abs()
                of_decoders = field.name == "others" and decoder == "dali"
                assert apart.mean() < 1 if of_decoders else not apart.any()
        assert (filled.puzzles.camouflage_I[asked:] == NO_CLASS).all()
    assert some_fill


def test_puzzles_need_pictures_of_their_own(make_builder: MakeBuilder) -> None:
    with pytest.raises(ValueError, match="share_images"):
        make_builder(masking=PUZZLED, share_images=True)
