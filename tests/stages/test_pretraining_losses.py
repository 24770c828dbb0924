"""Stage `masked` of the baselines and stage `vilt`: losses and all gradients against a second evaluation in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mbsd.batch import NO_KEY, NO_MATCH, Batch
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.config.stages import MaskingConfig
from mbsd.data.shape_buckets import black_images, fill_up
from mbsd.stages.masked import MASKED
from mbsd.stages.negatives import SHOWN
from mbsd.stages.vilt import VILT
from tests.model.reference import CLS, MASK, SEP, gradients_of, leaves, random_samples, randomise, trainable
from tests.model.test_stage_losses import assert_gradients_near, assert_near
from tests.stages.pretraining_by_hand import (
    PATCHES,
    VIEW_OF,
    Masked,
    Network,
    batch_of,
    config_of,
    masked_losses,
    text_of,
)

# Titles of several lengths; the third sample has no title, the fourth no picture.
LAYOUT = ((None, 8, True), (None, 3, True), (None, None, True), (None, 6, False), (None, 5, True), (None, 4, True))
MASKS = (
    Masked({2: MASK, 5: MASK}, {0: None, 3: 1}),
    Masked({1: 7}, {1: 1, 2: None}),
    Masked({}, {0: None, 2: 3}),
    Masked({4: MASK, 6: 9}),
    Masked({3: MASK}, {1: None, 3: None}),
    Masked({1: MASK}, {0: None, 1: 0}),
)


def run_of(stage: str, kind: str) -> PretrainConfig:
    return PretrainConfig(RunConfig("", max_steps=1), DataConfig(""), ModelConfig(architecture=kind), stage=stage)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bert", {}),
        ("vit", {}),
        ("vit", {"mpm_target": "hog"}),
        ("vilt", {}),
        ("vilt", {"mpm_target": "hog"}),
        ("fashionbert", {}),
    ],
    ids=["bert", "vit", "vit of gradients", "vilt", "vilt of gradients", "fashionbert"],
)
def test_masked(kind: str, changes: dict[str, Any]) -> None:
    """Words and patches, words alone, patches alone."""
    config = config_of(kind, **{name: value for name, value in changes.items() if name != "mpm_target"})
    masking = MaskingConfig(mpm_target=changes.get("mpm_target", "pixels"))
    run = dataclasses.replace(run_of("masked", kind), masking=masking)
    objective = MASKED.outline(run, config).eval()
    randomise(objective, seed=3)
    needs = MASKED.needs(run)
    assert needs.views == (VIEW_OF.get(kind, "full"),)
    samples = random_samples(LAYOUT, seed=4, side=config.image_size)
    batch = batch_of(samples, MASKS, config, needs.views, patches=needs.targets.patches)
    losses = objective(batch)
    if kind == "fashionbert":  # its network is not written again: words alone are asked for, and reach its ResNet
        assert set(losses) == {"loss", "loss_mlm"} and not any("patch_decoder" in n for n in trainable(objective))
        assert gradients_of(losses["loss"], trainable(objective))["model.mbsd.crops.resnet.conv1.weight"].any()
        return
    weights = leaves(objective.model, torch.float64)
    words, patches = masked_losses(Network(weights, objective.model.config), samples, MASKS)
    by_hand = {"loss_mlm": words, "loss_mpm": patches}
    expected = {name: torch.stack(found).mean() for name, found in by_hand.items() if found}
    assert set(expected) == {"bert": {"loss_mlm"}, "vit": {"loss_mpm"}, "vilt": {"loss_mlm", "loss_mpm"}}[kind]
    assert set(losses) == {"loss", *expected}
    for name, value in expected.items():
        assert_near(losses[name], value)
    moved = trainable(objective.model)
    assert set(weights) - set(moved) == {"mbsd.pooler.dense.weight", "mbsd.pooler.dense.bias"}
    found = gradients_of(losses["loss"], moved)
    if "mask_D" in moved:
        assert found["mask_D"].norm() > 1e-3
    assert_gradients_near(found, gradients_of(sum(expected.values()), {name: weights[name] for name in moved}))


def matching_by_hand(
    network: Network, pairs: list[tuple[list[int], Tensor]], labels: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of texts beside pictures, and their cross-entropies."""
    logits = [network.pooled(network.hidden(ids, image)) @ network.weights["match.weight"][0]
              + network.weights["match.bias"][0] for ids, image in pairs]  # fmt: skip
    losses = [(1 + (-z if y else z).exp()).log() for z, y in zip(logits, labels, strict=True)]
    return logits, losses


def check_vilt(objective: Any, batch: Batch, by_hand: Any) -> None:
    """Loss terms, share of right answers and gradients of a batch against `by_hand(network)`: words, logits, losses."""
    weights = leaves(objective.model, torch.float64)
    words, logits, matches, labels = by_hand(Network(weights, objective.model.config))
    losses = objective(batch)
    mlm, itm = torch.stack(words).mean(), torch.stack(matches).mean()
    assert_near(losses["loss_mlm"], mlm)
    assert_near(losses["loss_itm"], itm)
    right = sum((z > 0) == bool(y) for z, y in zip(logits, labels, strict=True)) / len(labels)
    assert losses["accuracy_full"].item() == pytest.approx(float(right))
    moved = trainable(objective.model)
    expected = gradients_of(mlm + itm, {name: weights[name] for name in moved})
    assert expected["match.weight"].norm() > 1e-3
    assert_gradients_near(gradients_of(losses["loss"], moved), expected)


@pytest.mark.parametrize("kind", ["mbsd", "vilt"])
def test_vilt_with_random_negatives(kind: str) -> None:
    """Sample 1 is shown the picture of sample 4, and 4 that of 0; nothing is asked of what is incomplete."""
    config = config_of(kind)
    objective = VILT.outline(run_of("vilt", kind), config).eval()
    randomise(objective, seed=5)
    samples = random_samples(LAYOUT, seed=6, side=config.image_size)
    other = {1: 4, 4: 0}
    shown = [dataclasses.replace(s, image=samples[other.get(b, b)].image) for b, s in enumerate(samples)]
    masks = [dataclasses.replace(masked, asked=b not in other) for b, masked in enumerate(MASKS)]
    labels = [1, 0, NO_MATCH, NO_MATCH, 0, 1]
    batch = batch_of(shown, masks, config, ("full",), patches=False)
    batch = dataclasses.replace(batch, labels_B=torch.tensor(labels, dtype=torch.float32))

    def by_hand(network: Network) -> tuple[Any, ...]:
        asked = [b for b, label in enumerate(labels) if label != NO_MATCH]
        pairs = [(text_of(shown[b], masks[b]), shown[b].image) for b in asked]
        words = []
        for sample, masked in zip(shown, masks, strict=True):
            hidden = network.hidden(text_of(sample, masked), sample.image)
            words += [network.word_loss(hidden[k], text_of(sample)[k]) for k in masked.words if masked.asked]
        asked_labels = [int(labels[b]) for b in asked]
        return words, *matching_by_hand(network, pairs, asked_labels), asked_labels

    check_vilt(objective, batch, by_hand)


@pytest.mark.parametrize("kind", ["mbsd", "vilt"])
def test_vilt_with_hard_negatives(kind: str) -> None:
    """Samples 0 and 4 are one product by a key, and 5 has no key; each is matched again with the most similar other."""
    config = config_of(kind)
    objective = VILT.outline(run_of("vilt", kind), config).eval()
    randomise(objective, seed=7)
    samples = random_samples(LAYOUT, seed=8, side=config.image_size)
    keys = torch.tensor([[1, 5], [2, 6], [3, 7], [4, 8], [9, 5], [NO_KEY, NO_KEY]])
    batch = batch_of(samples, MASKS, config, SHOWN, patches=False)
    has_text = torch.tensor([bool(sample.title) for sample in samples])
    batch = dataclasses.replace(batch, keys_BK=keys, has_text=has_text)
    whole = [b for b, sample in enumerate(samples) if sample.title and sample.image is not None]
    assert whole == [0, 1, 4, 5]
    texts = [text_of(sample, masked) for sample, masked in zip(samples, MASKS, strict=True)]

    def hardest(network: Network) -> dict[int, int]:
        views = [[network.pooled(network.hidden(ids, None)) for ids in texts],
                 [network.pooled(network.hidden([CLS, SEP], sample.image)) for sample in samples]]  # fmt: skip
        unit = []
        for h in views:
            centred = torch.stack(h) - torch.stack(h).mean(0)
            unit.append(centred / centred.norm(dim=1, keepdim=True))
        allowed = {b: [c for c in whole if c != b and {b, c} != {0, 4}] for b in whole}
        return {b: max(others, key=lambda c: sum(float(u[b] @ u[c]) for u in unit)) for b, others in allowed.items()}

    chosen: dict[int, int] = {}

    def by_hand(network: Network) -> tuple[Any, ...]:
        with torch.no_grad():
            chosen.update(hardest(network))
        pairs = [(texts[b], samples[b].image) for b in whole] + [(texts[b], samples[chosen[b]].image) for b in whole]
        labels = [1] * len(whole) + [0] * len(whole)
        words = []
        for sample, ids, masked in zip(samples, texts, MASKS, strict=True):
            hidden = network.hidden(ids, sample.image)
            words += [network.word_loss(hidden[k], text_of(sample)[k]) for k in masked.words]
        return words, *matching_by_hand(network, pairs, labels), labels

    check_vilt(objective, batch, by_hand)
    assert chosen[0] != 4 and chosen[4] != 0 and len(set(chosen.values())) > 1


def test_a_micro_batch_without_pictures_asks_for_words_alone() -> None:
    config = config_of("vilt")
    objective = VILT.outline(run_of("vilt", "vilt"), config).eval()
    samples = [dataclasses.replace(s, image=None) for s in random_samples(LAYOUT, seed=8, side=32)]
    batch = batch_of(samples, MASKS, config, SHOWN, patches=False)
    keys, has_text = torch.zeros(len(samples), 0, dtype=torch.int64), torch.ones(len(samples), dtype=torch.bool)
    losses = objective(dataclasses.replace(batch, keys_BK=keys, has_text=has_text))
    assert losses["loss_itm"] == 0 and losses["loss"] == losses["loss_mlm"] > 1


@pytest.mark.parametrize(("stage", "kind"), [("masked", "vilt"), ("masked", "vit"), ("vilt", "vilt")])
def test_what_fills_up_changes_no_number(stage: str, kind: str) -> None:
    """Batches filled up to a multiple of 16 tokens, those with hard negatives too."""
    config, run = config_of(kind), run_of(stage, kind)
    objective = (MASKED if stage == "masked" else VILT).outline(run, config).eval()
    randomise(objective, seed=3)
    samples = random_samples(LAYOUT, seed=8, side=config.image_size)
    views = SHOWN if stage == "vilt" else MASKED.needs(run).views
    has_text = torch.tensor([bool(sample.title) for sample in samples])
    batch = batch_of(samples, MASKS, config, views, patches=stage == "masked")
    batch = dataclasses.replace(batch, keys_BK=torch.arange(len(samples))[:, None], has_text=has_text)
    images, fill = len(batch.images), len(samples) - len(batch.images)
    more = fill_up(batch, 16, num_images=images, fill_images=fill, patches_per_image=PATCHES)
    more = dataclasses.replace(more, images=black_images(batch.images, len(samples)))
    assert fill and more.views.num_fill and len(more.input_ids_N) > len(batch.input_ids_N)
    counts, weights = torch.tensor([8.0, 8.0]), trainable(objective)
    losses, again = objective(batch, counts), objective(more, counts)
    for name, value in losses.items():
        assert again[name].item() == pytest.approx(value.item(), rel=1e-5), name
    found, expected = (gradients_of(terms["loss"], weights) for terms in (again, losses))
    assert_gradients_near(found, expected)
