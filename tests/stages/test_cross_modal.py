"""masking.cross_modal: losses and all gradients against a second evaluation in float64; whole runs on 1 and 2 ranks."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mbsd.batch import VIEW_NAMES, Batch, CrossModal, Masks
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.config.stages import MaskingConfig
from mbsd.data.shape_buckets import black_images, fill_up
from mbsd.errors import UserError
from mbsd.model.embedder import load_embedder
from mbsd.model.heads import MbsdForMaskedModelling
from mbsd.stages.masked import MASKED, MaskedObjective
from mbsd.stages.stage import Stage
from mbsd.stages.vilt import VILT
from tests.conftest import Shop
from tests.model.gradients_by_hand import targets_by_hand
from tests.model.reference import (
    Sample,
    Weights,
    affine,
    below,
    encoder,
    gelu,
    gradients_of,
    hand_batch,
    inputs_of,
    layer_norm,
    leaves,
    random_samples,
    randomise,
    represent,
    tiny_config,
    trainable,
)
from tests.model.test_stage_losses import assert_gradients_near, assert_near
from tests.ranks import launch, refused
from tests.settings import losses, stage_1_words

# Titles of several lengths, no title, no picture, one word.
LAYOUT = ((None, 8, True), (None, 3, True), (None, None, True), (None, 6, False), (None, 1, True))
STEPS = 8
CROSS_MODAL = "--masking.cross_modal=true"
OFTEN = ["--run.log_every=1", "--run.validate_every=4", "--run.validate_samples=30", "--run.seed=3"]


def batch_of(samples: list[Sample], config: Any) -> Batch:
    """In all views, nothing masked; each title's words in another order than the builder has them."""
    plain = hand_batch(samples, VIEW_NAMES, config)
    words, titles, shares, pictures, asked = [], [], [], [], []
    for b, sample in enumerate(samples):
        pictures.append(sum(other.image is not None for other in samples[:b]))
        both = bool(sample.title) and sample.image is not None
        asked.append(float(both))
        if both:
            own = sorted(set(sample.title), reverse=True)
            words += own
            titles += [b] * len(own)
            shares += [1 / len(own)] * len(own)
    pictures = [number if sample.image is not None else 0 for number, sample in zip(pictures, samples, strict=True)]
    none, patches = torch.zeros(0, dtype=torch.int64), plain.images.shape[0] * config.num_patches
    return dataclasses.replace(
        plain,
        masks=Masks(none, none, torch.arange(patches), none, none),
        cross_modal=CrossModal(
            torch.tensor(words, dtype=torch.int64), torch.tensor(titles, dtype=torch.int64), torch.tensor(shares),
            torch.tensor(pictures), torch.tensor(asked), int(sum(asked)),
        ),
    )  # fmt: skip


def by_hand(weights: Weights, config: Any, samples: list[Sample]) -> dict[str, Tensor]:
    """Each loss as a mean over the samples with title and picture, one sample and one word at a time."""
    body, head = below(weights, "mbsd."), below(weights, "cross_modal.")
    sequences = inputs_of(body, config, samples, VIEW_NAMES)
    h = dict(zip(((v, b) for v in VIEW_NAMES for b in range(len(samples))), sequences, strict=True))
    h = {key: represent(body, config, encoder(body, config, x)) for key, x in h.items()}
    found: dict[str, list[Tensor]] = {}
    for b, sample in enumerate(samples):
        if not sample.title or sample.image is None:
            continue
        x = gelu(affine(h["image", b], head, "title_transform.dense"))
        x = layer_norm(x, head, "title_transform.LayerNorm", config.layer_norm_eps)
        logits = body["embeddings.word_embeddings.weight"] @ x + head["title_bias"]
        surprise = [logits.exp().sum().log() - logits[word] for word in sorted(set(sample.title))]
        found.setdefault("loss_title", []).append(torch.stack(surprise).mean())
        for view in ("full", "text"):
            true = torch.from_numpy(targets_by_hand(sample.image.numpy(), config.patch_side)).flatten()
            found.setdefault(f"loss_picture_{view}", []).append(
                (affine(h[view, b], head, "picture") - true).square().mean()
            )
    return {name: torch.stack(values).mean() for name, values in found.items()}


@pytest.mark.parametrize("representation", ["pooled", "cls"])
@pytest.mark.parametrize("bucket", [1, 16])
def test_losses_and_gradients(representation: str, bucket: int) -> None:
    """Also of a batch that is filled up, where nothing of what is filled in counts."""
    config = tiny_config(
        cross_modal=True, representation=representation, mpm_target="hog", patchify_strides=(4, 2, 2),
        patchify_channels=(6, 8),
    )  # fmt: skip
    model = MbsdForMaskedModelling(config).eval()
    randomise(model, seed=5)
    samples = random_samples(LAYOUT, seed=6)
    batch = batch_of(samples, config)
    if bucket > 1:
        images = batch.images.shape[0]
        batch = fill_up(batch, bucket, num_images=images, fill_images=1, patches_per_image=config.num_patches)
        batch = dataclasses.replace(batch, images=black_images(batch.images, images + 1))
        assert batch.cross_modal is not None and batch.cross_modal.words_U.shape[0] % bucket == 0
    found = MaskedObjective(model)(batch)
    weights = leaves(model, torch.float64)
    expected = by_hand(weights, config, samples)
    assert set(found) == {"loss", "loss_mlm", "loss_mpm", *expected} and len(expected) == 3
    for name, value in expected.items():
        assert_near(found[name], value)
    total = sum(expected.values())
    assert_near(found["loss"], total)  # nothing is masked
    moved = trainable(model)
    assert ("mbsd.pooler.dense.weight" in moved) == (representation == "pooled")
    assert_gradients_near(
        gradients_of(found["loss"], moved), gradients_of(total, {name: weights[name] for name in moved})
    )


def test_a_batch_without_pictures_asks_nothing() -> None:
    config = tiny_config(cross_modal=True)
    model = MbsdForMaskedModelling(config).eval()
    randomise(model, seed=5)
    found = MaskedObjective(model)(batch_of(random_samples([(None, 4, False), (None, 2, False)], seed=6), config))
    assert {name: value.item() for name, value in found.items()} == dict.fromkeys(found, 0.0)
    assert not any(gradient.any() for gradient in gradients_of(found["loss"], trainable(model)).values())


def test_patches_that_cannot_be_cut_into_cells_are_refused_by_the_setting_that_asks() -> None:
    config = tiny_config(cross_modal=True, image_size=48, patchify_strides=(4, 3), patchify_channels=(6,))
    with pytest.raises(UserError, match=r"^masking\.cross_modal=true: .* patches 12, .* multiple of 8"):
        MbsdForMaskedModelling(config)


def words(run: Path, shop: Shop, *more: object, **ds: Any) -> list[object]:
    return stage_1_words(run, shop.catalog, STEPS, *OFTEN, CROSS_MODAL, *more, **ds)


@pytest.fixture(scope="module")
def runs(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One rank with two micro-steps; two ranks with filled batches and workers."""
    folder = tmp_path_factory.mktemp("cross_modal")
    launch(1, words(folder / "one", shop, gradient_accumulation_steps=2), folder / "log")
    launch(2, words(folder / "two", shop, "--data.num_workers=1", "--data.token_bucket=32"), folder / "log")
    return {name: folder / name for name in ("one", "two")}


@pytest.mark.distributed
def test_ranks_and_filled_batches_learn_the_same(runs: dict[str, Path]) -> None:
    one, two = (losses(runs[name]) for name in ("one", "two"))
    assert sorted(one) == sorted(two) == list(range(1, STEPS + 1))
    for step, values in one.items():
        assert two[step] == pytest.approx(values, rel=1e-4, abs=1e-6), step
        assert values["loss"] == pytest.approx(sum(v for name, v in values.items() if name != "loss"), rel=1e-5)
    for step, values in losses(runs["one"], "validation/").items():
        assert len(values) == 6
        assert losses(runs["two"], "validation/")[step] == pytest.approx(values, rel=1e-4, abs=1e-6)
    for name in ("loss_title", "loss_picture_text", "loss_picture_full"):
        assert one[STEPS][name] < one[1][name] - 0.02, name


@pytest.mark.distributed
def test_its_vectors_are_h(runs: dict[str, Path]) -> None:
    folder = runs["one"] / "checkpoints" / f"step-{STEPS:08d}" / "model"
    assert load_embedder(folder, 32).vector == "h"


@pytest.mark.distributed
def test_a_run_keeps_it_and_another_begins_without(runs: dict[str, Path], shop: Shop, tmp_path: Path) -> None:
    shutil.copytree(runs["one"], tmp_path / "one")
    (tmp_path / "one" / "DONE").unlink()  # as if it had been stopped
    off = "--masking.cross_modal=false"
    command = words(tmp_path / "one", shop, "--run.max_steps=12", off, gradient_accumulation_steps=2)
    error = refused(1, command, tmp_path / "log")
    assert "'cross_modal': True" in error and "set it back" in error
    start = launch(1, words(tmp_path / "next", shop, off, "--run.init_from", runs["one"]), tmp_path / "log")
    assert "patch_decoder, word_bias, word_transform; dropped cross_modal" in start.printed()


@pytest.mark.parametrize(
    ("stage", "kind", "said"),
    [
        (MASKED, "bert", "cross_modal=true: stage=masked of model.architecture=bert does not read words and patches"),
        (MASKED, "vit", "cross_modal=true: stage=masked of model.architecture=vit does not"),
        (MASKED, "fashionbert", "cross_modal=true: stage=masked of model.architecture=fashionbert does not"),
        (VILT, "vilt", "cross_modal=true: stage=vilt does not"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_cannot_ask_it_says_so(stage: Stage, kind: Any, said: str) -> None:
    config = PretrainConfig(
        RunConfig("", max_steps=1),
        DataConfig(""),
        ModelConfig(architecture=kind),
        masking=MaskingConfig(cross_modal=True),
    )
    with pytest.raises(UserError, match=said):
        stage.needs(config)
