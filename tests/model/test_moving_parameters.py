"""Which parameters move: every one that a loss reaches, and no other; and in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mbsd.batch import Batch
from mbsd.model.heads import MbsdForClassification, MbsdForMaskedModelling, MbsdForMatching
from mbsd.model.mbsd import MbsdModel
from mbsd.objectives.masked import masked_patch_loss, masked_word_loss
from mbsd.objectives.sdmi import sdmi_loss
from tests.model.reference import (
    MASK,
    MIXED,
    Corruption,
    deviation,
    hand_batch,
    random_model,
    random_samples,
    randomise,
    tiny_config,
)

VIEWS = ("full", "text", "image")
CORRUPTION = Corruption(words={(0, 1): MASK, (2, 3): MASK}, patches={(0, 1): "mask", (1, 2): "mask"})
MODELS = (MbsdModel, MbsdForMaskedModelling, MbsdForMatching, MbsdForClassification)


def stage_1_loss(model: MbsdForMaskedModelling, batch: Batch) -> torch.Tensor:
    output = model(batch)
    words = masked_word_loss(output.word_logits, batch.masks.mlm_labels_K)
    return words + masked_patch_loss(output.patch_values, output.patch_target)


def stage_2_loss(model: MbsdForMatching, batch: Batch) -> torch.Tensor:
    output = model(batch)
    return sdmi_loss(output.logits, output.h_VBD, batch.labels_B).loss


def classification_loss(model: MbsdForClassification, batch: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch).logits[0], batch.labels_B)


FULL = ((3, 4, True), (2, 5, True), (1, 6, False))
NO_IMAGE = ((3, 4, False), (2, None, False), (1, 6, False))
MICRO_BATCHES = {
    "no image": (NO_IMAGE, Corruption(words={(0, 1): MASK})),
    "nothing masked": (FULL, Corruption()),
    "no image, nothing masked": (NO_IMAGE, Corruption()),
    "patches alone masked": (FULL, Corruption(patches={(1, 0): "mask"})),
    "all": (FULL, CORRUPTION),
}


@pytest.mark.parametrize("kind", [MbsdForMaskedModelling, MbsdForMatching, MbsdForClassification])
@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
@pytest.mark.parametrize("representation", ["pooled", "cls"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_moving_parameter_has_a_gradient(
    kind: Callable[..., nn.Module], micro_batch: str, representation: str, checkpointing: bool
) -> None:
    """ZeRO reduces every gradient on every rank: a micro-batch that lacks something gives zeros, never None or NaN."""
    config = tiny_config(image_cls=True, representation=representation, num_labels_out=3)
    model = kind(config)
    randomise(model, seed=60)
    if checkpointing:
        model.gradient_checkpointing_enable()
    layout, corruption = MICRO_BATCHES[micro_batch]
    samples = random_samples(layout, seed=61)
    if kind is MbsdForMaskedModelling:
        loss = stage_1_loss(model, hand_batch(samples, ("full",), config, corruption))
    elif kind is MbsdForMatching:
        loss = stage_2_loss(model, hand_batch(samples, VIEWS, config, labels=torch.tensor([1.0, 0.0, 1.0])))
    else:
        loss = classification_loss(model, hand_batch(samples, ("full",), config, labels=torch.tensor([2, 0, 1])))
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), name
            if micro_batch == "all" and "key.bias" not in name:
                assert parameter.grad.any(), f"{name} is reached by nothing"
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("representation", ["pooled", "cls"])
def test_what_no_loss_reaches_is_frozen(representation: str) -> None:
    """An optimizer decays whatever it is given: the pooler is not stage 1's, the mask vector is stage 1's alone."""
    config = tiny_config(representation=representation)
    pooler = {"mbsd.pooler.dense.weight", "mbsd.pooler.dense.bias"}
    frozen = {
        kind: {name for name, p in kind(config).named_parameters() if not p.requires_grad} for kind in MODELS[1:]
    }  # fmt: skip
    assert frozen[MbsdForMaskedModelling] == pooler
    later = {"mbsd.mask_D"} | (pooler if representation == "cls" else set())
    assert frozen[MbsdForMatching] == frozen[MbsdForClassification] == later


@pytest.mark.parametrize("kind", MODELS[1:])
@pytest.mark.parametrize("representation", ["pooled", "cls"])
def test_what_is_frozen_is_frozen_after_loading(
    kind: Callable[..., nn.Module], representation: str, tmp_path: Path
) -> None:
    """transformers makes every parameter it loads a moving one; the frozen ones must be frozen again."""
    model = kind(tiny_config(representation=representation))
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and {name for name, p in loaded.named_parameters() if not p.requires_grad} == frozen


def test_half_precision_weights_run() -> None:
    """In fp16 and bf16 the images are normalised in float32 and everything after is in the model's own type."""
    config = tiny_config()
    for dtype in (torch.float16, torch.bfloat16):
        model = random_model(config, seed=62).to(dtype)
        wide = random_model(config, seed=62)
        batch = hand_batch(random_samples(MIXED, seed=63), VIEWS, config)
        with torch.no_grad():
            low, full = model.encode(batch), wide.encode(batch)
        assert low.hidden_TD.dtype == low.h_VBD.dtype == low.pixels.dtype == dtype
        assert low.pixels.equal(full.pixels.to(dtype))
        assert deviation(low.h_VBD, full.h_VBD) < (0.01 if dtype == torch.float16 else 0.1)
