"""M6 and OFA against `tests.baselines.written`: forwards, the generative stage's losses and gradients in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import Batch
from mbsd.config.stages import GenerativeConfig
from mbsd.data.generation import Asked, TitleAsker
from mbsd.data.spec import Generated
from mbsd.data.views import TextTokens, pack
from mbsd.model.baselines.ofa_layers import word_distances
from mbsd.model.generation import MbsdForGeneration
from mbsd.stages.generative import GenerativeObjective
from tests.baselines import written
from tests.baselines.samples import MIXED, batch_of, samples_of, tiny
from tests.baselines.written import Read
from tests.model.reference import randomise
from tests.model.varlen_on_cpu import Draws, varlen_on_cpu

REFERENCES: dict[str, Callable[[Any, list[Read]], tuple[Tensor, list[Tensor]]]] = {"m6": written.m6, "ofa": written.ofa}
both = pytest.mark.parametrize("name", REFERENCES)


# Words that are shown, words of the title, whether it is captioned and has a picture.
SHOWN = ((1, 5, True, True), (3, 4, False, True), (7, 6, False, False), (2, 0, True, True))


class OfTestWords:
    """What `TitleAsker` reads of a tokenizer."""

    cls_token_id, sep_token_id, mask_token_id = written.CLS, written.SEP, 4


def to_write(name: str, seed: int) -> tuple[Batch, list[Read]]:
    """Samples with a title and a picture (captioned, denoised), without a picture, without a title."""
    rng, config = np.random.default_rng(seed), tiny(name)
    asker = TitleAsker(Generated(GenerativeConfig(), "", ""), OfTestWords(), 24, 12)  # type: ignore[arg-type]
    asked, pictures = [], []
    for words, title, captioned, image in SHOWN:
        ids = np.array([written.CLS, *rng.integers(5, 40, words), written.SEP])
        asked.append(
            Asked(TextTokens(ids, np.zeros(len(ids), dtype=np.int64), 0), rng.integers(5, 40, title), captioned)
        )
        pictures.append(torch.from_numpy(rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)) if image else None)
    texts, has_image = [sample.shown for sample in asked], [picture is not None for picture in pictures]
    ids_N, positions_N, types_N, views = pack(texts, has_image, ("full",), config.num_patches)
    images = torch.stack([picture for picture in pictures if picture is not None])
    batch = Batch(ids_N, positions_N, types_N, images, views, torch.arange(4), generation=asker.lay_out(asked, views))
    read = [
        Read(sample.shown.input_ids.tolist(), [0] * len(sample.shown.input_ids), picture, sample.words.tolist())
        for sample, picture in zip(asked, pictures, strict=True)
    ]
    return batch, read


@both
@torch.no_grad()
def test_h_in_every_view(name: str) -> None:
    """Samples of different lengths in one batch, with and without titles and pictures."""
    config = tiny(name)
    model: Any = config.backbone().eval()
    randomise(model, 0)
    samples = samples_of(MIXED, 1)
    found = model.encode(batch_of(samples, config.known_views, config)).h_VBD
    precise = copy.deepcopy(model).double()
    for view, h_BD in zip(config.known_views, found, strict=True):
        read = []
        for text, picture in samples:
            count = text.num_query if view == "image" else len(text.input_ids)
            ids, types = text.input_ids[:count].tolist(), text.token_type_ids[:count].tolist()
            read.append(Read(ids, types, None if view == "text" else picture, []))
        expected, _ = REFERENCES[name](precise, read)
        torch.testing.assert_close(h_BD.double(), expected, rtol=1e-5, atol=1e-5)


@both
def test_losses_and_gradients_of_the_generative_stage(name: str) -> None:
    """Of each task and of both, over tokens; those of a sample without a title are none."""
    torch.manual_seed(0)
    model: Any = MbsdForGeneration(tiny(name)).train()
    with torch.no_grad():
        randomise(model.mbsd, 3)
    batch, read = to_write(name, 4)
    losses = GenerativeObjective(model)(batch)
    precise = copy.deepcopy(model.double())
    GenerativeObjective(model)(batch)["loss"].backward()
    _, rows = REFERENCES[name](precise.mbsd, read)
    assert rows[3].shape == (1, 32) and not read[3].labels
    table = precise.mbsd.get_input_embeddings().weight
    of_sample = [
        F.cross_entropy(hidden @ table.T, torch.tensor(sample.labels), reduction="sum")
        for hidden, sample in zip(rows, read, strict=True)
        if sample.labels
    ]
    expected = torch.stack(of_sample).sum() / (6 + 5 + 7)
    expected.backward()
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["loss_captioning"].item() == pytest.approx(of_sample[0].item() / 6, rel=1e-5)
    assert losses["loss_denoising"].item() == pytest.approx((of_sample[1] + of_sample[2]).item() / 12, rel=1e-5)
    assert batch.generation is not None and (batch.generation.num_captioned, batch.generation.num_denoised) == (6, 12)
    trained = 0
    for (key, ours), theirs in zip(model.named_parameters(), precise.parameters(), strict=True):
        if ours.requires_grad:
            trained += 1
            assert theirs.grad is not None, key
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")
    assert trained > 40


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_the_kernels_of_a_gpu_train_m6_as_one_sequence_after_the_other(kernel: str, dropout: float) -> None:
    """Two calls a layer: of the prefixes, and of what is written, whose last token sees all."""
    torch.manual_seed(0)
    sizes = {"attention_probs_dropout_prob": dropout}
    objective = GenerativeObjective(MbsdForGeneration(tiny("m6", **sizes)).train())
    with torch.no_grad():
        randomise(objective.model.mbsd, 3)
    batch, _ = to_write("m6", 4)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    with Draws():
        expected = objective(batch)["loss"]
        expected_gradients = torch.autograd.grad(expected, parameters, materialize_grads=True, allow_unused=True)
    with varlen_on_cpu(kernel) as kernels:
        found = objective(batch)["loss"]
        gradients = torch.autograd.grad(found, parameters, materialize_grads=True, allow_unused=True)
    assert kernels.calls == ["forward"] * 4 + [f"{kernel} backward"] * 4 and kernels.causal == 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@both
@torch.no_grad()
def test_what_is_written_depends_on_nothing_that_follows(name: str) -> None:
    """Another last word changes no earlier row; another picture changes all rows of its sample and of no other."""
    model: Any = MbsdForGeneration(tiny(name)).eval()
    randomise(model.mbsd, 0)
    batch, _ = to_write(name, 5)
    generation = batch.generation
    assert generation is not None
    before = model(batch).rows_WD
    ids_W = generation.input_ids_W.clone()
    ids_W[5] = (ids_W[5] - 4) % 35 + 5
    later = model(
        Batch(**{**vars(batch), "generation": type(generation)(**{**vars(generation), "input_ids_W": ids_W})})
    )
    changed = (later.rows_WD - before).abs().amax(1) > 1e-5
    assert changed.nonzero().flatten().tolist() == [5]
    images = batch.images.clone()
    images[0] = 255 - images[0]
    changed = (model(Batch(**{**vars(batch), "images": images})).rows_WD - before).abs().amax(1) > 1e-5
    assert changed.nonzero().flatten().tolist() == list(range(6))


def test_distances_of_words_fall_into_ofas_buckets() -> None:
    found = word_distances(1024, torch.device("cpu"))
    for a, b in ((0, 0), (3, 9), (128, 0), (0, 129), (500, 20), (1023, 0), (0, 1023)):
        assert found[a, b] == written.bucket(a - b)
    assert found.min() == 0 and found.max() == 510
