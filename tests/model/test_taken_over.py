"""run.init_from carries what fits from one stage to the next, and says what it did not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mbsd.config.data import DataConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.model.heads import (
    MbsdForAlignment,
    MbsdForClassification,
    MbsdForContrastive,
    MbsdForMaskedModelling,
    MbsdForMatching,
)
from mbsd.model.load import start_model
from tests.model.reference import VOCABULARY, randomise, tiny_config

PROJECTIONS = ("image_projection", "text_projection")
CONTRASTIVE = ("image_projection", "logit_scale", "text_projection")
MASKED = ("patch_decoder", "word_bias", "word_transform")
TASK = {"task": "attributes", "num_labels_out": 1}
# From, to, settings of the new head, and what is taken, dropped and new of the head.
Way = tuple[Any, Any, dict[str, Any], tuple[str, ...], tuple[str, ...], tuple[str, ...]]
WAYS: list[Way] = [
    (MbsdForMaskedModelling, MbsdForContrastive, {}, (), MASKED, CONTRASTIVE),
    (MbsdForMaskedModelling, MbsdForMatching, {}, (), MASKED, ("match",)),
    (MbsdForContrastive, MbsdForMatching, {}, (), CONTRASTIVE, ("match",)),
    (MbsdForContrastive, MbsdForMaskedModelling, {}, (), CONTRASTIVE, MASKED),
    (MbsdForMatching, MbsdForContrastive, {}, (), ("match",), CONTRASTIVE),
    # Another target of masked patches: the words' head goes on.
    (MbsdForMaskedModelling, MbsdForMaskedModelling, {"mpm_target": "hog"}, ("word_bias", "word_transform"),
     ("patch_decoder",), ("patch_decoder",)),
    (MbsdForMaskedModelling, MbsdForMaskedModelling, {"cross_modal": True}, MASKED, (), ("cross_modal",)),
    (MbsdForContrastive, MbsdForContrastive, {}, CONTRASTIVE, (), ()),
    # Another dim; one projection for both; and the sigmoid loss, whose scale is another one and has a bias.
    (MbsdForContrastive, MbsdForContrastive, {"projection_dim": 5}, ("logit_scale",), PROJECTIONS, PROJECTIONS),
    (MbsdForContrastive, MbsdForContrastive, {"projection": "shared"}, ("logit_scale", "text_projection"),
     ("image_projection",), ()),
    (MbsdForContrastive, MbsdForContrastive, {"logit_bias": True}, (), CONTRASTIVE,
     ("image_projection", "logit_bias", "logit_scale", "text_projection")),
    (MbsdForContrastive, MbsdForClassification, TASK, (), CONTRASTIVE, ("classifier",)),
    (MbsdForContrastive, MbsdForAlignment, {"task": "alignment"}, (), CONTRASTIVE, ("pair",)),
    (MbsdForMatching, MbsdForMatching, {}, ("match",), (), ()),
]  # fmt: skip


@pytest.fixture
def memory_of_no_numbers() -> Iterator[None]:
    """torch fills memory that nobody has written with NaN, instead of leaving what happens to be there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("memory_of_no_numbers")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0].__name__}-{way[1].__name__}-{'-'.join(way[2])}")
def test_what_is_taken_from_one_stage_to_the_next(way: Way, tmp_path: Path) -> None:
    source, target, head, taken, dropped, new = way
    first = source(tiny_config(projection_dim=7, id2label={0: "0", 1: "1"}))
    randomise(first, seed=95)
    first.save_pretrained(tmp_path)
    run = RunConfig("run", max_steps=1, init_from="runs/before")
    config = PretrainConfig(run, DataConfig("catalog", image_size=64, max_text_tokens=24))
    model = start_model(target, config, VOCABULARY, tmp_path, {"projection_dim": 7, **head})
    found = model.taken_over
    assert found is not None and (found.head, found.dropped, found.new) == (taken, dropped, new)
    before, after = first.state_dict(), model.state_dict()
    assert all(weight.equal(after[name]) for name, weight in before.items() if name.startswith(("mbsd.", *taken)))
    assert found.backbone == sum(p.numel() for p in first.mbsd.parameters())
    assert all(
        weight.isfinite().all() and not (name in before and weight.equal(before[name]))
        for name, weight in after.items()
        if name.startswith(new)
    )
    if "word_bias" in new:
        assert not model.word_bias.any()


def test_it_is_said_in_one_line(tmp_path: Path) -> None:
    first = MbsdForMaskedModelling(tiny_config())
    first.save_pretrained(tmp_path)
    config = PretrainConfig(
        RunConfig("run", max_steps=1, init_from="x"), DataConfig("c", image_size=64, max_text_tokens=24)
    )
    model = start_model(MbsdForContrastive, config, VOCABULARY, tmp_path)
    count = sum(p.numel() for p in first.mbsd.parameters())
    assert str(model.taken_over) == (
        f"took the backbone ({count:,} weights); dropped patch_decoder, word_bias, word_transform; new: "
        "image_projection, logit_scale, text_projection"
    )
    assert start_model(MbsdForContrastive, config, VOCABULARY).taken_over is None
