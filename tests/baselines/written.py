"""M6 and OFA written down once more: plain padded torch, sample by sample masks, in the precision of their weights.

They read what a batch was made of, and take from a model its weights and its ResNet alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbsd.model.patchify import normalise_pixels

CLS, SEP = 2, 3


@dataclass(frozen=True)
class Read:
    """One sample: words with token types, a picture uint8 [3, h, w] or none, and the title to write."""

    ids: list[int]
    types: list[int]
    picture: Tensor | None
    title: list[int]

    @property
    def inputs(self) -> list[int]:
        """What is written and read again."""
        return [CLS, *self.title]

    @property
    def labels(self) -> list[int]:
        """What follows each of them."""
        return [*self.title, SEP] if self.title else []


def norm(module: Any, x: Tensor) -> Tensor:
    """LayerNorm from its definition."""
    centred = x - x.mean(-1, keepdim=True)
    scaled: Tensor = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
    return scaled * module.weight + module.bias


def linear(module: Any, x: Tensor) -> Tensor:
    """x W + b."""
    return x @ module.weight.T + module.bias


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor) -> Tensor:
    """[B, L, D] of queries, keys and values; bias [B, H, L, L'] is -inf where nothing is seen."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = ((q @ k.mT) * scale + bias).softmax(-1)
    return (weights @ v).transpose(1, 2)


def m6(model: Any, samples: list[Read]) -> tuple[Tensor, list[Tensor]]:
    """h of each sample [B, D], and the hidden states of what it writes."""
    config, dtype = model.config, model.dtype
    table, width = model.embeddings, config.hidden_size
    streams, prefixes = [], []
    for sample in samples:
        words = [(word, kind, at) for at, (word, kind) in enumerate(zip(sample.ids, sample.types, strict=True))]
        after = [(word, 1, at) for at, word in enumerate(sample.inputs)]
        rows = [
            norm(table.LayerNorm, table.word_embeddings.weight[word] + table.token_type_embeddings.weight[kind]
                 + table.position_embeddings.weight[at])
            for word, kind, at in (*words, *after)
        ]  # fmt: skip
        patches = torch.zeros(0, width, dtype=dtype)
        if sample.picture is not None:
            features = model.crops(normalise_pixels(sample.picture[None], dtype))[0]
            patches = norm(model.image_norm, linear(model.image_projection, features) + model.image_position_PD)
        texts = torch.stack(rows)
        streams.append(torch.cat([texts[: len(words)], patches, texts[len(words) :]]))
        prefixes.append(len(words) + len(patches))
    longest = max(map(len, streams))
    x = torch.stack([F.pad(stream, (0, 0, 0, longest - len(stream))) for stream in streams])
    bias = torch.full((len(samples), 1, longest, longest), -torch.inf, dtype=dtype)
    for b, (stream, prefix) in enumerate(zip(streams, prefixes, strict=True)):
        for row in range(longest):
            bias[b, 0, row, : max(prefix, row + 1) if row < len(stream) else 1] = 0
    for layer in model.encoder.layer:
        own = layer.attention.self
        heads, scale = own.num_attention_heads, (width / own.num_attention_heads) ** -0.5
        found = attend(*(linear(p, x) for p in (own.query, own.key, own.value)), heads, scale, bias).flatten(2)
        x = norm(layer.attention.output.LayerNorm, x + linear(layer.attention.output.dense, found))
        inner = F.gelu(linear(layer.intermediate.dense, x))
        x = norm(layer.output.LayerNorm, x + linear(layer.output.dense, inner))
    h = torch.tanh(linear(model.pooler.dense, x[:, 0]))
    return h, [x[b, prefix : len(stream)] for b, (stream, prefix) in enumerate(zip(streams, prefixes, strict=True))]


def bucket(apart: int) -> int:
    """OFA's number of a distance of words."""
    if abs(apart) <= 128:
        return apart + 255
    far = math.ceil(math.log(abs(apart) / 128) / math.log(1023 / 128) * 127) + 128
    return (far if apart > 0 else -far) + 255


def _block(block: Any, x: Tensor, found: Tensor) -> Tensor:
    after = found if isinstance(block.after, torch.nn.Identity) else norm(block.after, found)
    return x + after


def _attention(block: Any, x: Tensor, seen: Tensor | None, bias: Tensor) -> Tensor:
    part, own = block.part, norm(block.before, x)
    heads = len(part.head_scale)
    other = own if seen is None else seen
    scale = (2 * x.shape[-1] / heads) ** -0.5
    found = attend(linear(part.query, own), linear(part.key, other), linear(part.value, other), heads, scale, bias)
    return _block(block, x, linear(part.output, (found * part.head_scale[:, None]).flatten(2)))


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    part = block.part
    inner = norm(part.norm, F.gelu(linear(part.inner, norm(block.before, x))))
    return _block(block, x, linear(part.outer, inner))


def _products(query: Any, key: Any, of: Tensor, to: Tensor, heads: int) -> Tensor:
    q, k = (linear(module, x).unflatten(-1, (heads, -1)).transpose(0, 1) for module, x in ((query, of), (key, to)))
    products: Tensor = (q @ k.mT) * (2 * q.shape[-1]) ** -0.5
    return products


def ofa(model: Any, samples: list[Read]) -> tuple[Tensor, list[Tensor]]:
    """h of each sample [B, D], and the decoder's hidden states of what it writes."""
    dtype, heads, side = model.dtype, model.config.num_attention_heads, -(-model.config.image_size // 16)
    own, theirs = model.encoder_positions, model.decoder_positions
    streams, places = [], []  # a place is (row, column), a word its number
    for sample in samples:
        words = [norm(model.word_norm, model.words.weight[word] + model.type_2D[0]) for word in sample.ids]
        image: list[Tensor] = []
        if sample.picture is not None:
            features = model.stages(normalise_pixels(sample.picture[None], dtype))[0]
            image = list(norm(model.image_norm, linear(model.image_projection, features) + model.type_2D[1]))
        streams.append(torch.stack([*words, *image]))
        places.append([*range(len(words)), *[divmod(n, side) for n in range(len(image))]])
    longest, empty = max(map(len, streams)), torch.tensor(-torch.inf, dtype=dtype)
    x = torch.stack([F.pad(stream, (0, 0, 0, longest - len(stream))) for stream in streams])
    vectors = [
        torch.stack([
            norm(own.word_norm, own.words.weight[at]) if isinstance(at, int)
            else norm(own.place_norm, own.places.weight[at[0] * 42 + at[1] + 1])
            for at in of_sample
        ])
        for of_sample in places
    ]  # fmt: skip
    unseen = torch.stack([F.pad(torch.zeros(len(s), dtype=dtype), (0, longest - len(s)), value=-torch.inf)
                          for s in streams])[:, None, None]  # fmt: skip
    for n, layer in enumerate(model.encoder):
        biases = []
        for of_sample, vector in zip(places, vectors, strict=True):
            bias = _products(own.query, own.key, vector, vector, heads)
            near = torch.zeros(len(of_sample), len(of_sample), heads, dtype=dtype)
            for i, a in enumerate(of_sample):
                for j, b in enumerate(of_sample):
                    if isinstance(a, int) and isinstance(b, int):
                        near[i, j] = own.word_distances[n].weight[bucket(a - b)]
                    elif not isinstance(a, int) and not isinstance(b, int):
                        way = (a[0] - b[0] + 41) * 83 + a[1] - b[1] + 41
                        near[i, j] = own.place_distances[n].weight[way]
            biases.append(F.pad(bias + near.permute(2, 0, 1), (0, longest - len(of_sample)) * 2))
        x = _feed_forward(layer.feed_forward, _attention(layer.attention, x, None, torch.stack(biases) + unseen))
    encoded = norm(model.encoder_norm, x)

    def decode(b: int, ids: list[int]) -> Tensor:
        y = norm(model.written_norm, model.words.weight[ids])[None]
        at = norm(theirs.word_norm, theirs.words.weight[: len(ids)])
        shared = _products(theirs.query, theirs.key, at, at, heads)
        across = _products(model.cross_query, model.cross_key, at, vectors[b], heads)
        across = F.pad(across, (0, longest - len(vectors[b])))[None] + unseen[b]
        for n, layer in enumerate(model.decoder):
            near = [[theirs.word_distances[n].weight[bucket(i - j)] for j in range(len(ids))] for i in range(len(ids))]
            bias = shared + torch.stack([torch.stack(row) for row in near]).permute(2, 0, 1)
            later = torch.ones(len(ids), len(ids)).triu(1).bool()
            y = _attention(layer.attention, y, None, torch.where(later, empty, bias)[None])
            y = _feed_forward(layer.feed_forward, _attention(layer.cross_attention, y, encoded[b : b + 1], across))
        return norm(model.decoder_norm, y)[0]

    h = torch.cat([decode(b, [sample.ids[0]]) for b, sample in enumerate(samples)])
    return h, [decode(b, sample.inputs) for b, sample in enumerate(samples)]
