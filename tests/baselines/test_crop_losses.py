"""FashionBERT's and Kaleido-BERT's pre-training: losses and gradients against an evaluation of its own in float64."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from mbsd.batch import NO_CLASS, NO_MATCH, Batch, Masks, Puzzles
from mbsd.config.stages import FashionBertTasks
from mbsd.data.puzzles import ORDERS
from mbsd.data.views import TextTokens
from mbsd.model.attention import meta_device_as
from mbsd.model.baselines.fashionbert import FashionBertConfig
from mbsd.model.crop_heads import MbsdForMaskedCrops, MbsdForPuzzles
from mbsd.stages.fashionbert import FashionBertObjective
from mbsd.stages.kaleido import KaleidoObjective
from tests.baselines.samples import batch_of, samples_of, tiny
from tests.model.reference import (
    MASK,
    Weights,
    affine,
    below,
    embed_text,
    encoder,
    gelu,
    gradient_deviations,
    gradients_of,
    layer_norm,
    leaves,
    normalised,
    randomise,
    represent,
    trainable,
)

LAYOUT = ((3, 5, True), (6, 9, False), (2, 4, True), (4, 3, True))
LABELS = (1.0, NO_MATCH, 0.0, 1.0)
WORDS = ((0, 2), (0, 6), (1, 3), (3, 1), (3, 5))  # sample and place
CROPS = ((0, 3), (0, 15), (2, 0), (2, 7))  # picture and place
SIDE = 8  # of a crop as the ResNet sees it
Given = list[tuple[TextTokens, Tensor | None]]


def set_up(kind: type[Any], config: Any) -> tuple[Any, Given, Batch]:
    """A model of random weights, whose ResNet keeps what it began with: with others features grow beyond a softmax."""
    torch.manual_seed(0)
    model = kind(config)
    resnet = {name: value.clone() for name, value in model.mbsd.crops.state_dict().items()}
    randomise(model, 1)
    model.mbsd.crops.load_state_dict(resnet)
    samples = samples_of(LAYOUT, 2)
    batch = batch_of(samples, ("full",), config)
    starts = [sum(len(text.input_ids) for text, _ in samples[:b]) for b in range(len(samples))]
    ids_N = batch.input_ids_N.clone()
    ids_N[[starts[b] + place for b, place in WORDS]] = MASK
    source, per = torch.arange(3 * config.num_patches), config.num_patches
    source[[image * per + place for image, place in CROPS]] = 3 * per
    owners, cu = [b for b, (_, image) in enumerate(samples) if image is not None], batch.views.cu_seqlens.tolist()
    masks = Masks(
        torch.tensor([cu[b] + place for b, place in WORDS]),
        torch.tensor([samples[b][0].input_ids[place] for b, place in WORDS]),
        source,
        torch.tensor([cu[owners[image] + 1] - per + place for image, place in CROPS]),
        torch.tensor([image * per + place for image, place in CROPS]),
    )
    return model, samples, dataclasses.replace(batch, input_ids_N=ids_N, masks=masks, labels_B=torch.tensor(LABELS))


def resnet_of(model: Any) -> nn.Module:
    """Torchvision's own, in float64, with the statistics that ours holds."""
    resnet = torchvision.models.resnet50()
    resnet.fc = nn.Identity()
    resnet.load_state_dict(model.mbsd.crops.resnet.state_dict())
    return resnet.double().eval()


def crops_of(pixels: Tensor, grid: int) -> Tensor:
    """[grid * grid, 3, SIDE, SIDE], cut one after the other."""
    whole = F.interpolate(pixels[None], (grid * SIDE, grid * SIDE), mode="bilinear")[0]
    places = [(SIDE * row, SIDE * column) for row in range(grid) for column in range(grid)]
    return torch.stack([whole[:, y : y + SIDE, x : x + SIDE] for y, x in places])


def streams(weights: Weights, config: FashionBertConfig, samples: Given, features: list[Tensor]) -> list[Tensor]:
    """The last hidden states [L, D] of each sample."""
    body, hidden, of_images = below(weights, "mbsd."), [], iter(features)
    body["modality_2D"] = torch.zeros(2, config.hidden_size, dtype=torch.float64)  # MBSD's alone
    for b, (text, image) in enumerate(samples):
        ids = [MASK if (b, place) in WORDS else int(word) for place, word in enumerate(text.input_ids)]
        x = embed_text(body, config, ids, text.token_type_ids.tolist())
        if image is not None:
            seen = affine(next(of_images), body, "image_projection") + body["image_position_PD"]
            x = torch.cat([x, layer_norm(seen, body, "image_norm", config.layer_norm_eps)])
        hidden.append(encoder(body, config, x))
    return hidden


def words_and_match(weights: Weights, config: FashionBertConfig, samples: Given, hidden: list[Tensor]) -> list[Tensor]:
    """The means over masked words and over the samples that are asked for a match."""
    words = []
    for b, place in WORDS:
        x = gelu(affine(hidden[b][place], weights, "word_transform.dense"))
        x = layer_norm(x, weights, "word_transform.LayerNorm", config.layer_norm_eps)
        logits = weights["mbsd.embeddings.word_embeddings.weight"] @ x + weights["word_bias"]
        words.append(logits.exp().sum().log() - logits[int(samples[b][0].input_ids[place])])
    matches = []
    for b, label in enumerate(LABELS):
        if label != NO_MATCH:
            h_D = represent(below(weights, "mbsd."), config, hidden[b])
            says = 1 / (1 + (-affine(h_D, weights, "match")[0]).exp())
            matches.append(-(says if label else 1 - says).log())
    return [torch.stack(words).mean(), torch.stack(matches).mean()]


def divergence(true_F: Tensor, predicted_F: Tensor) -> Tensor:
    p, q = true_F.exp() / true_F.exp().sum(), predicted_F.exp() / predicted_F.exp().sum()
    return (p * (p / q).log()).sum()


def asks_nothing(objective: Any, batch: Batch) -> None:
    """A forward never waits for the device: it runs on one that holds no numbers, where none can be asked for."""
    with meta_device_as((9, 0)):
        losses = copy.deepcopy(objective).to("meta")(batch.to("meta"))
    assert all(loss.is_meta and loss.shape == () for loss in losses.values())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], model: Any, weights: Weights) -> None:
    """Losses and gradients to 1e-5; what is given no gradient is the ResNet, and nothing else that is read."""
    for name, value in expected.items():
        assert abs(found[name].item() - value.item()) <= 1e-5 * abs(value.item()), name
    moved = trainable(model)
    assert {name for name in weights if name not in moved} == {n for n in weights if n.startswith("mbsd.crops.")}
    reached = gradients_of(expected["loss"], {name: weights[name] for name in moved})
    assert all(gradient.any() for gradient in reached.values())
    deviations = gradient_deviations(gradients_of(found["loss"], moved), reached)
    assert {name: d for name, d in deviations.items() if not d < 1e-5} == {}


@pytest.mark.parametrize(
    "tasks",
    [FashionBertTasks(), FashionBertTasks(weight_gradient=False), FashionBertTasks(weights="equal")],
    ids=["released", "constant", "equal"],
)
def test_fashionbert(tasks: FashionBertTasks) -> None:
    """Masked words, hidden crops, a missing picture, mismatched pairs, and the three weights."""
    config: Any = tiny("fashionbert")
    model, samples, batch = set_up(MbsdForMaskedCrops, config)
    asks_nothing(FashionBertObjective(model, tasks), batch)
    found = FashionBertObjective(model, tasks)(batch)

    resnet, weights = resnet_of(model), leaves(model, torch.float64)
    with torch.no_grad():
        pixels = [normalised(image, torch.float64) for _, image in samples if image is not None]
        true = [resnet(crops_of(of, 4)) for of in pixels]
    seen = [features.clone() for features in true]
    for image, place in CROPS:
        seen[image][place] = 0
    hidden = streams(weights, config, samples, seen)
    owners = [b for b, (_, image) in enumerate(samples) if image is not None]
    hidden_of = {image: hidden[b][-16:] for image, b in enumerate(owners)}
    mpm = torch.stack([
        divergence(true[image][place], hidden_of[image][place] @ weights["crop_decoder.weight"].T)
        for image, place in CROPS
    ]).mean()  # fmt: skip
    mlm, tia = words_and_match(weights, config, samples, hidden)
    losses = torch.stack([mlm, tia, mpm])
    a, b, c = 3 - ((losses if tasks.weight_gradient else losses.detach()).exp() / losses.exp().sum()).square()
    if not tasks.weight_gradient:
        a, b, c = (x.detach() for x in (a, b, c))
    weighed = (b * c * mlm + a * c * tia + a * b * mpm) / (a * b + b * c + c * a)
    loss = weighed if tasks.weights == "adaptive" else (mlm + tia + mpm) / 3
    assert abs(weighed - (mlm + tia + mpm) / 3) > 1e-3, "the weights must matter"
    expected = {"loss": loss, "loss_mlm": mlm, "loss_tia": tia, "loss_mpm": mpm}
    assert_same(found, expected, model, weights)


def test_kaleido() -> None:
    """Five puzzles of three pictures, one of which no other product's crop is put into."""
    config: Any = tiny("kaleido")
    model, samples, batch = set_up(MbsdForPuzzles, config)
    cu = batch.views.cu_seqlens.tolist()
    owners = [b for b, (_, image) in enumerate(samples) if image is not None]
    others = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    turns, jigsaw, camouflage = (0, 1, 3), (0, 17, 23), (4, NO_CLASS, 8)
    grey, blank = ((0, 5), (3, 15), (7, 8)), ((0, 1, 24), (2, 3, 4), (11, 12, 13))
    puzzles = Puzzles(
        torch.tensor([cu[b + 1] - 55 for b in owners]), torch.tensor(turns),
        torch.tensor([ORDERS[n] for n in jigsaw]), torch.tensor(jigsaw), torch.tensor(camouflage), others,
        torch.tensor(grey), torch.tensor(blank), num_camouflaged=2,
    )  # fmt: skip
    batch = dataclasses.replace(batch, puzzles=puzzles)
    asks_nothing(KaleidoObjective(model), batch)
    found = KaleidoObjective(model)(batch)

    resnet, weights = resnet_of(model), leaves(model, torch.float64)
    seen, true_grey, true_blank = [], [], []
    mean, deviation = (torch.tensor(x).double()[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        for n, image in enumerate(image for _, image in samples if image is not None):
            pixels, other = (normalised(of, torch.float64) for of in (image, others[n]))
            one, four, nine, sixteen, many = (list(crops_of(pixels, grid)) for grid in (1, 2, 3, 4, 5))
            for _ in range(turns[n]):
                one[0] = one[0].transpose(1, 2).flip(1)
            four = [four[place] for place in ORDERS[jigsaw[n]]]
            if camouflage[n] != NO_CLASS:
                nine[camouflage[n]] = crops_of(other, 3)[camouflage[n]]
            true_grey += [resnet(sixteen[place][None])[0] for place in grey[n]]
            for place in grey[n]:
                red, green, blue = sixteen[place] * deviation + mean
                luminance = 0.299 * red + 0.587 * green + 0.114 * blue
                sixteen[place] = (luminance.expand(3, SIDE, SIDE) - mean) / deviation
            features = resnet(torch.stack([*one, *four, *nine, *sixteen, *many]))
            true_blank += [features[30 + place].clone() for place in blank[n]]
            features[[30 + place for place in blank[n]]] = 0
            seen.append(features)
    hidden = streams(weights, config, samples, seen)
    crops = [hidden[b][-55:] for b in owners]

    def told(name: str, first: int, places: tuple[tuple[int, ...], ...], true: list[Tensor]) -> Tensor:
        rows = [crops[n][first + place] for n, of in enumerate(places) for place in of]
        return torch.stack([divergence(t, row @ weights[name].T) for row, t in zip(rows, true, strict=True)]).mean()

    def answered(name: str, first: int, count: int, classes: tuple[int, ...]) -> Tensor:
        losses = []
        for n, label in enumerate(classes):
            if label != NO_CLASS:
                logits = affine(crops[n][first : first + count].reshape(-1), weights, name)
                losses.append(logits.exp().sum().log() - logits[label])
        return torch.stack(losses).mean()

    mlm, itm = words_and_match(weights, config, samples, hidden)
    expected = {
        "loss_mlm": mlm,
        "loss_itm": itm,
        "loss_rotation": answered("rotation", 0, 1, turns),
        "loss_jigsaw": answered("jigsaw", 1, 4, jigsaw),
        "loss_camouflage": answered("camouflage", 5, 9, camouflage),
        "loss_grey": told("grey_decoder.weight", 14, grey, true_grey),
        "loss_blank": told("blank_decoder.weight", 30, blank, true_blank),
    }
    assert_same(found, {**expected, "loss": torch.stack(list(expected.values())).sum()}, model, weights)
