"""Batches that are filled up: few sizes, and losses and gradients of every weight as before."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.config.stages import SdmiConfig
from mbsd.data.shape_buckets import black_images, fill_up
from mbsd.metrics.throughput import padded_lengths
from mbsd.model.heads import MbsdForMaskedModelling, MbsdForMatching
from mbsd.stages.masked import MaskedObjective
from mbsd.stages.matching import MatchingObjective
from tests.model.reference import MIXED, Corruption, gradients_of, hand_batch, random_samples, randomise, tiny_config

TITLES = ((None, 5, True), (None, 9, False), (None, 2, True), (None, None, True))
# Two patches of each of the three images, as a builder masks them.
CORRUPTION = Corruption(
    {(0, 2): 4, (1, 3): 7, (1, 5): 4, (2, 1): 4},
    {(0, 0): "mask", (0, 3): "mask", (1, 1): "mask", (1, 2): (1, 0), (2, 0): "keep", (2, 3): "mask"},
)


def filled(batch: Batch, bucket: int) -> Batch:
    images, patches = batch.images.shape[0], 4
    more = batch.num_samples - images
    batch = fill_up(batch, bucket, num_images=images, fill_images=more, patches_per_image=patches)
    return dataclasses.replace(batch, images=black_images(batch.images, batch.num_samples))


@pytest.mark.parametrize("image_cls", [False, True])
@pytest.mark.parametrize("bucket", [2, 8, 64])
@pytest.mark.parametrize("stage", ["masked", "masked gradients", "matching"])
def test_what_is_filled_in_changes_no_number(stage: str, bucket: int, image_cls: bool) -> None:
    masked = stage != "matching"
    config = tiny_config(image_cls=image_cls, mpm_target="hog" if stage == "masked gradients" else "pixels")
    if masked:
        step = MaskedObjective(MbsdForMaskedModelling(config))
        batch = hand_batch(random_samples(TITLES, seed=2), ("full",), config, CORRUPTION)
    else:
        step = MatchingObjective(MbsdForMatching(config), SdmiConfig())
        labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
        batch = hand_batch(random_samples(MIXED, seed=2), VIEW_NAMES, config, labels=labels)
    randomise(step, seed=1)
    weights = {name: p for name, p in step.named_parameters() if p.requires_grad}
    more = filled(batch, bucket)
    tokens = more.views.source_T.shape[0]
    assert tokens % bucket == 0 and more.input_ids_N.shape[0] % bucket == 0 and tokens > batch.num_tokens
    assert more.images.shape[0] == batch.num_samples
    assert more.views.cu_seqlens[-1] == tokens == sum(more.views.lengths)
    assert more.num_tokens == batch.num_tokens and padded_lengths(more.views) == padded_lengths(batch.views)
    assert torch.equal(more.has_image, batch.has_image)
    if masked:
        assert batch.masks is not None and more.masks is not None
        assert more.masks.mlm_index_K.shape[0] % max(1, bucket // 8) == 0
        assert more.masks.mpm_patch_Q.shape[0] == 2 * batch.num_samples
        assert (more.masks.num_words, more.masks.num_patches) == (4, 6)

    norms = torch.tensor([4.0, 6.0]) if masked else None
    losses, again = step(batch, norms), step(more, norms)
    for name, value in losses.items():
        assert again[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-7), name
    expected, found = gradients_of(losses["loss"], weights), gradients_of(again["loss"], weights)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_a_batch_without_images() -> None:
    config = tiny_config()
    samples = random_samples([(None, 5, False), (None, 3, False)], seed=2)
    batch = hand_batch(samples, ("full",), config, Corruption({(0, 2): 4}))
    more = filled(batch, 16)
    step = MaskedObjective(MbsdForMaskedModelling(config))
    norms = torch.ones(2)
    assert step(more, norms)["loss"].item() == pytest.approx(step(batch, norms)["loss"].item(), rel=1e-5)
