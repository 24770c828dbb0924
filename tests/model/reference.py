"""The network of SPEC 1 and 2 a second time, and batches laid out by hand.

Nothing here is packed: every view of every sample is a sequence of its own, and a layer is written out in products,
sums and means. It runs in whatever dtype the weights have; float64 is the truth the float32 model is held against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mbsd.batch import Batch, Masks, Views
from mbsd.model.mbsd import MbsdConfig, MbsdModel

CLS, SEP, MASK = 2, 3, 4
FIRST_WORD, VOCABULARY = 5, 40
COMBINATIONS = (
    ("full",), ("text",), ("image",), ("full", "text"), ("image", "full"), ("text", "image"),
    ("full", "text", "image"),
)  # fmt: skip

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """A query (None in stage 1), a title and an image; what is None is missing."""

    query: list[int] | None
    title: list[int] | None
    image: Tensor | None


@dataclass(frozen=True)
class Corruption:
    """What stage 1 does to a batch.

    Attributes:
        words: (sample, position in its text) -> the id shown instead; the id that was there is asked for.
        patches: (image, patch) -> what is shown instead: "mask", "keep", or another (image, patch); all are asked for.
    """

    words: dict[tuple[int, int], int] = field(default_factory=dict)
    patches: dict[tuple[int, int], str | tuple[int, int]] = field(default_factory=dict)


def tiny_config(**changes: object) -> MbsdConfig:
    """A BERT of two layers over images of 64 pixels in four patches, without dropout."""
    sizes: dict[str, object] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 24, "image_size": 64, "patchify_strides": (4, 2, 2, 2),
        "patchify_channels": (6, 8, 12), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return MbsdConfig(**{**sizes, **changes})


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> None:
    """Give every parameter, also norms and biases, values with which it matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        spread = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.2
        parameter.copy_(1 + 0.2 * noise if is_norm else spread * noise)


def random_samples(layout: Sequence[tuple[int | None, int | None, bool]], seed: int, side: int = 64) -> list[Sample]:
    """Samples of (query length, title length, has an image) with random contents."""
    generator = torch.Generator().manual_seed(seed)

    def words(length: int | None) -> list[int] | None:
        if length is None:
            return None
        return torch.randint(FIRST_WORD, VOCABULARY, (length,), generator=generator).tolist()

    return [
        Sample(
            words(query),
            words(title),
            torch.randint(0, 256, (3, side, side), generator=generator).to(torch.uint8) if image else None,
        )
        for query, title, image in layout
    ]


# Text lengths that differ, a missing title, a missing image, neither: all legal in every view.
MIXED = ((3, 5, True), (1, None, True), (6, 9, False), (2, 1, True), (4, None, False))


def text_of(sample: Sample) -> tuple[list[int], list[int]]:
    """Ids and token types of the whole text of a sample."""
    if sample.query is None:
        ids = [CLS, *(sample.title or []), SEP]
        return ids, [0] * len(ids)
    ids, types = [CLS, *sample.query, SEP], [0] * (len(sample.query) + 2)
    if sample.title is not None:
        ids, types = ids + [*sample.title, SEP], types + [1] * (len(sample.title) + 1)
    return ids, types


def shown(sample: Sample, view: str) -> tuple[int, bool]:
    """How many of its text tokens a view shows, and whether it shows the image."""
    text = len(text_of(sample)[0])
    if view == "image":
        text = 1 if sample.query is None else len(sample.query) + 2
    return text, view != "text" and sample.image is not None


def hand_batch(
    samples: Sequence[Sample],
    names: tuple[str, ...],
    config: MbsdConfig,
    corruption: Corruption | None = None,
    labels: Tensor | None = None,
) -> Batch:
    """The packed batch of these samples in these views, index by index from the legend in batch.py."""
    patches = (config.image_size // config.patch_side) ** 2
    own_patches = patches + int(config.image_cls)
    ids: list[int] = []
    positions: list[int] = []
    types: list[int] = []
    first_text: list[int] = []
    for sample in samples:
        first_text.append(len(ids))
        sample_ids, sample_types = text_of(sample)
        ids += sample_ids
        types += sample_types
        positions += range(len(sample_ids))
    images = [sample.image for sample in samples if sample.image is not None]
    image_of = [sum(s.image is not None for s in samples[:b]) for b in range(len(samples))]

    source: list[int] = []
    starts, lengths = [0], []
    for name in names:
        for b, sample in enumerate(samples):
            text, has_image = shown(sample, name)
            rows = [first_text[b] + k for k in range(text)]
            if has_image:
                rows += [len(ids) + image_of[b] * own_patches + k for k in range(own_patches)]
            source += rows
            lengths.append(len(rows))
            starts.append(len(source))

    masks = None
    if corruption is not None:
        assert names == ("full",)
        mlm_index, mlm_labels, mpm_index, mpm_patch = [], [], [], []
        patch_source = list(range(len(images) * patches))
        for (b, position), new in sorted(corruption.words.items()):
            mlm_index.append(starts[b] + position)
            mlm_labels.append(ids[first_text[b] + position])
            ids[first_text[b] + position] = new
        owner = [b for b, sample in enumerate(samples) if sample.image is not None]
        for (image, patch), instead in sorted(corruption.patches.items()):
            b = owner[image]
            mpm_index.append(starts[b] + len(text_of(samples[b])[0]) + int(config.image_cls) + patch)
            mpm_patch.append(image * patches + patch)
            if instead == "mask":
                patch_source[image * patches + patch] = len(images) * patches
            elif instead != "keep":
                patch_source[image * patches + patch] = instead[0] * patches + instead[1]
        masks = Masks(*(torch.tensor(r, dtype=torch.int64) for r in
                        (mlm_index, mlm_labels, patch_source, mpm_index, mpm_patch)))  # fmt: skip
    side = config.image_size
    return Batch(
        input_ids_N=torch.tensor(ids),
        position_ids_N=torch.tensor(positions),
        token_type_ids_N=torch.tensor(types),
        images=torch.stack(images) if images else torch.zeros(0, 3, side, side, dtype=torch.uint8),
        views=Views(names, torch.tensor(source), torch.tensor(starts, dtype=torch.int32), tuple(lengths)),
        items_B=torch.arange(len(samples)),
        labels_B=labels,
        masks=masks,
    )


def leaves(module: nn.Module, dtype: torch.dtype) -> Weights:
    """Its parameters by name, as fresh leaves of `dtype`."""
    return {name: p.detach().clone().to(dtype).requires_grad_() for name, p in module.named_parameters()}


def below(weights: Weights, prefix: str) -> Weights:
    return {name[len(prefix) :]: weight for name, weight in weights.items() if name.startswith(prefix)}


def affine(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def normalised(image: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 RGB -> (value / 255 - mean) / deviation of ImageNet, channel by channel."""
    rgb = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
    return torch.stack([(image[c].to(dtype) / 255 - mean) / std for c, (mean, std) in enumerate(rgb)])


def cut(x: Tensor, side: int) -> Tensor:
    """[channels, h, w] -> [h / side, w / side, channels * side * side], square by square."""
    channels, height, width = x.shape
    squares = [
        [x[:, r : r + side, c : c + side].reshape(-1) for c in range(0, width, side)] for r in range(0, height, side)
    ]
    assert len(squares) == height // side and len(squares[0]) == width // side and channels == x.shape[0]
    return torch.stack([torch.stack(row) for row in squares])


def patchify(weights: Weights, strides: Sequence[int], pixels: Tensor) -> Tensor:
    """[3, h, w] -> [patches, D]: each convolution is one product per square of its input."""
    x = pixels
    for k, stride in enumerate(strides):
        kernel, bias = weights[f"patchify.layers.{3 * k}.weight"], weights[f"patchify.layers.{3 * k}.bias"]
        y = cut(x, stride) @ kernel.reshape(len(kernel), -1).T + bias
        if k + 1 < len(strides):
            y = layer_norm(y, weights, f"patchify.layers.{3 * k + 1}", 1e-6).clamp(min=0)
        x = y.permute(2, 0, 1)
    return x.flatten(1).T


def embed_text(weights: Weights, config: MbsdConfig, ids: list[int], types: list[int]) -> Tensor:
    word, position, kind = (weights[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type"))
    summed = word[ids] + position[: len(ids)] + kind[types]
    return layer_norm(summed, weights, "embeddings.LayerNorm", config.layer_norm_eps) + weights["modality_2D"][0]


def embed_image(weights: Weights, features_PD: Tensor) -> Tensor:
    if "image_cls_D" in weights:
        features_PD = torch.cat([weights["image_cls_D"][None], features_PD])
    return features_PD + weights["image_position_PD"] + weights["modality_2D"][1]


def encoder(weights: Weights, config: MbsdConfig, x: Tensor) -> Tensor:
    """One sequence [L, D] through every layer, head by head."""
    size = config.hidden_size // config.num_attention_heads
    for k in range(config.num_hidden_layers):
        layer = below(weights, f"encoder.layer.{k}.")
        q, key, v = (affine(x, layer, f"attention.self.{name}") for name in ("query", "key", "value"))
        heads = []
        for head in range(config.num_attention_heads):
            columns = slice(head * size, (head + 1) * size)
            scores = q[:, columns] @ key[:, columns].T / math.sqrt(size)
            exponentials = (scores - scores.detach().amax(-1, keepdim=True)).exp()
            heads.append(exponentials / exponentials.sum(-1, keepdim=True) @ v[:, columns])
        attended = affine(torch.cat(heads, -1), layer, "attention.output.dense")
        x = layer_norm(x + attended, layer, "attention.output.LayerNorm", config.layer_norm_eps)
        inner = affine(gelu(affine(x, layer, "intermediate.dense")), layer, "output.dense")
        x = layer_norm(x + inner, layer, "output.LayerNorm", config.layer_norm_eps)
    return x


def represent(weights: Weights, config: MbsdConfig, hidden_LD: Tensor) -> Tensor:
    return affine(hidden_LD[0], weights, "pooler.dense").tanh() if config.representation == "pooled" else hidden_LD[0]


def features_of(weights: Weights, config: MbsdConfig, samples: Sequence[Sample]) -> list[Tensor]:
    """The patch features [patches, D] of each image there is."""
    dtype = weights["modality_2D"].dtype
    present = [normalised(sample.image, dtype) for sample in samples if sample.image is not None]
    return [patchify(weights, config.patchify_strides, pixels) for pixels in present]


def inputs_of(weights: Weights, config: MbsdConfig, samples: Sequence[Sample], names: tuple[str, ...]) -> list[Tensor]:
    """The encoder's input [L, D] of each sequence, view after view."""
    features = iter(features_of(weights, config, samples))
    placed = [embed_image(weights, next(features)) if sample.image is not None else None for sample in samples]
    sequences = []
    for name in names:
        for sample, image_PD in zip(samples, placed, strict=True):
            text, has_image = shown(sample, name)
            ids, types = text_of(sample)
            rows = embed_text(weights, config, ids[:text], types[:text])
            sequences.append(torch.cat([rows, image_PD]) if has_image else rows)
    return sequences


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative where the expected value is over 1, absolute below."""
    return ((found.double() - expected.double()).abs() / expected.double().abs().clamp(min=1)).max().item()


def gradient_deviations(found: Weights, expected: Weights) -> dict[str, float]:
    """Of each parameter, |difference| over |expected| in norm, or over 1/1000 of the largest norm if that is more.

    Adding one number to all the scores of a softmax changes nothing, so the gradient of a key's bias is 0: all that
    is found there counts, against the largest norm.
    """
    assert found.keys() == expected.keys()
    norms = {name: weight.double().norm().item() for name, weight in expected.items()}
    largest = max(norms.values())
    assert largest > 0
    result = {}
    for name in found:
        difference = (found[name].double() - expected[name].double()).norm().item()
        key_bias = name.endswith(("attention.self.key.bias", "attention.k_proj.bias"))  # a BERT's, a ViT's
        assert not key_bias or norms[name] < 1e-6 * largest
        result[name] = difference / (largest if key_bias else max(norms[name], 1e-3 * largest))
    return result


def gradients_of(loss: Tensor, weights: Weights) -> Weights:
    """d loss / d weight by name; zeros where the loss does not reach."""
    grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, grads, strict=True))


def trainable(module: nn.Module) -> Weights:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def random_model(config: MbsdConfig, seed: int) -> MbsdModel:
    model = MbsdModel(config).eval()
    randomise(model, seed)
    return model
