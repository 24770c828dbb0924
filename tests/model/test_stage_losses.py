"""Both stages end to end, loss and every gradient, against the network of reference.py in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mbsd.model.heads import MbsdForMaskedModelling, MbsdForMatching
from mbsd.model.mbsd import MbsdConfig
from mbsd.objectives.sdmi import SdmiLoss, sdmi_loss
from mbsd.stages.masked import MaskedObjective
from tests.model.gradients_by_hand import targets_by_hand
from tests.model.reference import (
    COMBINATIONS,
    FIRST_WORD,
    MASK,
    MIXED,
    Corruption,
    Sample,
    Weights,
    affine,
    below,
    cut,
    embed_image,
    embed_text,
    encoder,
    features_of,
    gelu,
    gradient_deviations,
    gradients_of,
    hand_batch,
    inputs_of,
    layer_norm,
    leaves,
    normalised,
    random_samples,
    randomise,
    represent,
    text_of,
    tiny_config,
    trainable,
)

TOLERANCE = 1e-5
TITLES = ((None, 8, True), (None, 3, True), (None, None, True), (None, 6, False))
CORRUPTION = Corruption(
    words={(0, 2): MASK, (0, 5): MASK, (1, 1): FIRST_WORD, (3, 4): MASK, (3, 6): MASK},
    patches={(0, 0): "mask", (0, 3): (1, 2), (1, 1): "keep", (1, 3): "mask", (2, 0): (0, 0), (2, 2): "mask"},
)
LAYOUTS = {
    "four convolutions": {},
    "image [CLS]": {"image_cls": True},
    "linear": {"patchify_strides": (32,), "patchify_channels": ()},
    "cls": {"representation": "cls", "image_cls": True},
    "per view": {"match_head": "per_view"},
    "gradients": {"mpm_target": "hog", "patchify_strides": (4, 2, 2), "patchify_channels": (6, 8)},
}


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert abs(found.item() - expected.item()) <= TOLERANCE * abs(expected.item())


def assert_gradients_near(found: Weights, expected: Weights) -> None:
    deviations = gradient_deviations(found, expected)
    assert {name: d for name, d in deviations.items() if not d < TOLERANCE} == {}


def stage_1_by_hand(
    weights: Weights, config: MbsdConfig, samples: Sequence[Sample], corruption: Corruption
) -> tuple[Tensor, Tensor]:
    """(MLM, MPM): each the mean over what is masked."""
    body = below(weights, "mbsd.")
    clean = features_of(body, config, samples)
    seen = [list(features) for features in clean]
    for (image, patch), instead in corruption.patches.items():
        if instead == "mask":
            seen[image][patch] = body["mask_D"]
        elif instead != "keep":
            seen[image][patch] = clean[instead[0]][instead[1]]
    owner = [b for b, sample in enumerate(samples) if sample.image is not None]
    hidden = []
    for b, sample in enumerate(samples):
        ids, types = text_of(sample)
        x = embed_text(body, config, [corruption.words.get((b, k), word) for k, word in enumerate(ids)], types)
        if sample.image is not None:
            x = torch.cat([x, embed_image(body, torch.stack(seen[owner.index(b)]))])
        hidden.append(encoder(body, config, x))

    words = []
    for b, position in corruption.words:
        x = gelu(affine(hidden[b][position], weights, "word_transform.dense"))
        x = layer_norm(x, weights, "word_transform.LayerNorm", config.layer_norm_eps)
        logits = body["embeddings.word_embeddings.weight"] @ x + weights["word_bias"]
        words.append(logits.exp().sum().log() - logits[text_of(samples[b])[0][position]])
    patches = []
    for image, patch in corruption.patches:
        b = owner[image]
        row = len(text_of(samples[b])[0]) + int(config.image_cls) + patch
        predicted = affine(hidden[b][row], weights, "patch_decoder")
        if config.mpm_target == "hog":
            true = torch.from_numpy(targets_by_hand(samples[b].image.numpy(), config.patch_side))[patch]
            patches.append((predicted - true).square().mean())
            continue
        pixels = normalised(samples[b].image, predicted.dtype)
        true = cut(pixels, config.patch_side).flatten(0, 1)[patch]
        patches.append((predicted - true).abs().mean())
    return torch.stack(words).mean(), torch.stack(patches).mean()


@pytest.mark.parametrize("layout", ["four convolutions", "image [CLS]", "linear", "cls", "gradients"])
def test_stage_1(layout: str) -> None:
    """Masked, swapped and kept patches; masked and replaced words; a missing title, a missing image."""
    config = tiny_config(**LAYOUTS[layout])
    model = MbsdForMaskedModelling(config).eval()
    randomise(model, seed=21)
    samples = random_samples(TITLES, seed=22)
    batch = hand_batch(samples, ("full",), config, CORRUPTION)
    losses = MaskedObjective(model)(batch, torch.tensor([len(CORRUPTION.words), len(CORRUPTION.patches)]).float())
    mlm, mpm = losses["loss_mlm"], losses["loss_mpm"]

    weights = leaves(model, torch.float64)
    expected_mlm, expected_mpm = stage_1_by_hand(weights, config, samples, CORRUPTION)
    assert_near(mlm, expected_mlm)
    assert_near(mpm, expected_mpm)
    moved = trainable(model)
    assert set(weights) - set(moved) == {"mbsd.pooler.dense.weight", "mbsd.pooler.dense.bias"}
    expected = gradients_of(expected_mlm + expected_mpm, {name: weights[name] for name in moved})
    assert expected["mbsd.mask_D"].norm() > 1e-3
    assert_gradients_near(gradients_of(mlm + mpm, moved), expected)


def matching_by_hand(
    weights: Weights, config: MbsdConfig, samples: Sequence[Sample], names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """z [V, B] and h [V, B, D]."""
    body = below(weights, "mbsd.")
    h = [represent(body, config, encoder(body, config, x)) for x in inputs_of(body, config, samples, names)]
    h_VBD = torch.stack(h).view(len(names), len(samples), -1)
    rows = {"shared": [0] * len(names), "per_view": [("full", "text", "image").index(name) for name in names]}
    row = rows[config.match_head]
    z = [h_VBD[v] @ weights["match.weight"][row[v]] + weights["match.bias"][row[v]] for v in range(len(names))]
    return torch.stack(z), h_VBD


def sdmi_by_hand(z_VB: Tensor, h_VBD: Tensor, y: list[int], variant: str) -> dict[str, Tensor]:
    """Eq. 3-11 in probabilities, sample by sample; what the teacher says is detached."""
    p = 1 / (1 + (-z_VB).exp())
    bce = [-sum(p[v, i].log() if y[i] else (1 - p[v, i]).log() for i in range(len(y))) / len(y) for v in range(3)]
    parts: dict[str, dict[int, list[Tensor]]] = {"kl": {1: [], 2: []}, "rs": {1: [], 2: []}}
    for i, label in enumerate(y):
        strong = 1 if (p[1, i] > p[2, i]) == bool(label) else 2
        student, teacher = p[3 - strong, i], p[strong, i].detach()
        if (teacher > 0.5) != bool(label):
            continue
        w = (teacher - student.detach()).abs()
        a, b = (student, teacher) if variant == "paper" else (teacher, student)
        h_s = h_VBD[strong, i].detach() if variant == "paper" else h_VBD[strong, i]
        parts["kl"][strong].append(w * (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()))
        parts["rs"][strong].append(w * (h_s - h_VBD[3 - strong, i]).square().mean())
    assert all(parts["kl"].values()), "the batch must show both directions"
    terms = dict(zip(("qi", "qt", "qv"), bce, strict=True))
    for name, by_direction in parts.items():
        if variant == "paper":
            terms[name] = sum(map(sum, by_direction.values())) / len(y)
        else:
            terms[name] = sum(sum(values) / (len(values) + 1e-6) for values in by_direction.values())
    return terms | {"loss": sum(terms.values())}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_stage_2(layout: str, variant: str) -> None:
    config = tiny_config(**LAYOUTS[layout])
    model = MbsdForMatching(config).eval()
    randomise(model, seed=33)
    # Not the one without title and image: its views are one sequence, a tie that rounding decides.
    samples = random_samples([*MIXED[:-1], (2, 6, True), (5, 4, True), (1, 3, True)], seed=32)
    names = ("full", "text", "image")
    with torch.no_grad():  # logits of some size on both sides of 0, so that the views disagree
        model.match.weight.mul_(4)
        z_VB, _ = matching_by_hand(leaves(model, torch.float64), config, samples, names)
        model.match.bias.sub_(z_VB[1:].mean())
    weights = leaves(model, torch.float64)
    z_VB, h_VBD = matching_by_hand(weights, config, samples, names)
    # Labels that make either view the teacher in turn: it is right, and the other view is less sure.
    y = [int(z_VB[1 + i % 2, i] > 0) for i in range(len(samples))]
    y[0] = int(not y[0])
    expected = sdmi_by_hand(z_VB, h_VBD, y, variant)
    assert expected["kl"] > 1e-3 and expected["rs"] > 1e-3

    labels_B = torch.tensor(y, dtype=torch.float32)
    output = model(hand_batch(samples, names, config, labels=labels_B))
    found: SdmiLoss = sdmi_loss(output.logits, output.h_VBD, labels_B, variant=variant)
    for name, value in expected.items():
        assert_near(getattr(found, name), value)
    moved = trainable(model)
    assert_gradients_near(
        gradients_of(found.loss, moved), gradients_of(expected["loss"], {name: weights[name] for name in moved})
    )  # fmt: skip


@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("match_head", ["shared", "per_view"])
def test_logits_of_any_views(names: tuple[str, ...], match_head: str) -> None:
    """Each view's own row of the head answers for it, whichever views the batch has and in which order."""
    config = tiny_config(match_head=match_head)
    model = MbsdForMatching(config).eval()
    randomise(model, seed=41)
    samples = random_samples(MIXED, seed=42)
    z_VB, h_VBD = matching_by_hand(leaves(model, torch.float64), config, samples, names)
    output = model(hand_batch(samples, names, config))
    assert output.logits.shape == z_VB.shape and output.h_VBD.shape == h_VBD.shape
    assert (output.logits - z_VB).abs().max() < TOLERANCE
    assert (output.h_VBD - h_VBD).abs().max() < TOLERANCE
