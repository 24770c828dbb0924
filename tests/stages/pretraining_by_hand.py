"""Pre-training of MBSD, BERT, ViT and ViLT a second time: one sequence after the other, in the weights' own precision.

Layers of a BERT are those of tests/model/reference.py; a ViT's are written out here. Batches are packed as the loader
packs them (tests/data holds these against the pictures and texts they are made of).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbsd.batch import Batch
from mbsd.data.masks import MaskedSample, masks_of
from mbsd.data.views import TextTokens, pack
from mbsd.model.config import BackboneConfig
from tests.baselines.samples import tiny
from tests.model.gradients_by_hand import targets_by_hand
from tests.model.reference import (
    CLS,
    SEP,
    Sample,
    Weights,
    affine,
    below,
    cut,
    embed_image,
    embed_text,
    encoder,
    gelu,
    layer_norm,
    normalised,
    patchify,
    tiny_config,
)

PATCHES = 4
VIEW_OF = {"bert": "text", "vit": "image"}  # that stage 1 shows; else full


def config_of(kind: str, **changes: Any) -> BackboneConfig:
    """Of four patches a picture, without dropout."""
    return tiny_config(**changes) if kind == "mbsd" else tiny(kind, **changes)


@dataclass(frozen=True)
class Masked:
    """What is hidden of one sample: position -> word shown there; patch -> patch shown there, None: the mask vector."""

    words: dict[int, int] = field(default_factory=dict)
    patches: dict[int, int | None] = field(default_factory=dict)
    asked: bool = True


def text_of(sample: Sample, masked: Masked | None = None) -> list[int]:
    """`[CLS] title [SEP]`, corrupted."""
    ids = [CLS, *(sample.title or []), SEP]
    return [(masked.words if masked else {}).get(place, word) for place, word in enumerate(ids)]


def batch_of(
    samples: Sequence[Sample], masks: Sequence[Masked], config: BackboneConfig, views: tuple[str, ...], patches: bool
) -> Batch:
    """The samples in these views, packed."""
    drawn = []
    for sample, masked in zip(samples, masks, strict=True):
        ids, words = np.array(text_of(sample, masked)), np.array(sorted(masked.words), dtype=np.int64)
        hidden = sorted(masked.patches) if sample.image is not None else []
        sources = [PATCHES if masked.patches[patch] is None else masked.patches[patch] for patch in hidden]
        drawn.append(
            MaskedSample(
                TextTokens(ids, np.zeros(len(ids), dtype=np.int64), 0), words, np.array(text_of(sample))[words],
                sample.image is not None, np.array(hidden, dtype=np.int64), np.array(sources, dtype=np.int64),
                masked.asked,
            )
        )  # fmt: skip
    has_image = [sample.image is not None and views != ("text",) for sample in samples]
    streams = pack([one.text for one in drawn], has_image, views, config.num_image_tokens)
    pictures = [sample.image for sample, has in zip(samples, has_image, strict=True) if has]
    side = config.image_size
    images = torch.stack(pictures) if pictures else torch.zeros(0, 3, side, side, dtype=torch.uint8)
    return Batch(
        *streams[:3], images, streams[3], items_B=torch.arange(len(samples)),
        masks=masks_of(drawn, streams[3], PATCHES if patches else None),
    )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A model's backbone and heads by the names of its weights."""

    weights: Weights
    config: Any

    @property
    def kind(self) -> str:
        return self.config.architecture

    def hidden(self, ids: list[int], image: Tensor | None, masked: Masked | None = None) -> Tensor:
        """[L, D], of one sequence: words, and a picture if it shows one."""
        body, config = below(self.weights, "mbsd."), self.config
        features = None if image is None else self.features(image, masked)
        if self.kind == "mbsd":
            rows = embed_text(body, config, ids, [0] * len(ids))
            return encoder(body, config, rows if features is None else torch.cat([rows, embed_image(body, features)]))
        if self.kind == "bert":
            assert features is None
            return encoder(body, config, self._words(body, ids))
        positions = body["image_position_PD"]
        if self.kind == "vilt":
            rows = self._words(body, ids) + body["modality_2D"][0]
            if features is not None:
                placed = torch.cat([body["cls_D"][None], features]) + positions
                rows = torch.cat([rows, placed + body["modality_2D"][1]])
        else:
            looked_up = body["words.weight"][ids[1:]] + body["word_positions.weight"][1 : len(ids)]
            rows = torch.cat([(body["cls_D"] + positions[0])[None], looked_up])
            if features is not None:
                rows = torch.cat([rows, features + positions[1:]])
        return self._vit(body, rows)

    def features(self, image: Tensor, masked: Masked | None) -> Tensor:
        """[patches, D] before positions, hidden ones replaced."""
        body, pixels = below(self.weights, "mbsd."), normalised(image, self.weights["mbsd.pooler.dense.bias"].dtype)
        if self.kind == "mbsd":
            clean, vector = patchify(body, self.config.patchify_strides, pixels), body["mask_D"]
        else:
            kernel = body["projection.weight"]
            clean = cut(pixels, self.config.patch_side).flatten(0, 1) @ kernel.reshape(len(kernel), -1).T
            clean, vector = clean + body["projection.bias"], self.weights.get("mask_D")
        instead = masked.patches if masked is not None else {}
        rows = []
        for patch in range(len(clean)):
            source = instead.get(patch, patch)
            rows.append(vector if source is None else clean[source])
        return torch.stack(rows)

    def pooled(self, hidden_LD: Tensor) -> Tensor:
        """h of a sequence."""
        return affine(hidden_LD[0], below(self.weights, "mbsd."), "pooler.dense").tanh()

    def word_loss(self, row: Tensor, word: int) -> Tensor:
        """Of one masked word, from the hidden state in its place."""
        table = "mbsd.embeddings.word_embeddings.weight"
        x = layer_norm(gelu(affine(row, self.weights, "word_transform.dense")), self.weights,
                       "word_transform.LayerNorm", self.config.layer_norm_eps)  # fmt: skip
        logits = self.weights[table] @ x + self.weights["word_bias"]
        return logits.exp().sum().log() - logits[word]

    def patch_loss(self, row: Tensor, image: Tensor, patch: int) -> Tensor:
        """Of one masked patch: mean error of its values."""
        predicted = affine(row, self.weights, "patch_decoder")
        if self.config.mpm_target == "hog":
            true = torch.from_numpy(targets_by_hand(image.numpy(), self.config.patch_side))[patch]
            return (predicted - true).square().mean()
        return (predicted - cut(normalised(image, row.dtype), self.config.patch_side).flatten(0, 1)[patch]).abs().mean()

    def _words(self, body: Weights, ids: list[int]) -> Tensor:
        word, position, kind = (body[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type"))
        summed = word[ids] + position[: len(ids)] + kind[0]
        return layer_norm(summed, body, "embeddings.LayerNorm", self.config.layer_norm_eps)

    def _vit(self, body: Weights, x: Tensor) -> Tensor:
        """Layers that normalise first, and the last LayerNorm."""
        size, eps = self.config.hidden_size // self.config.num_attention_heads, self.config.layer_norm_eps
        for number in range(self.config.num_hidden_layers):
            layer = below(body, f"layers.{number}.")
            normed = layer_norm(x, layer, "layernorm_before", eps)
            q, k, v = (affine(normed, layer, f"attention.{name}_proj") for name in "qkv")
            heads = []
            for start in range(0, self.config.hidden_size, size):
                columns = slice(start, start + size)
                weights = (q[:, columns] @ k[:, columns].T / math.sqrt(size)).exp()
                heads.append(weights / weights.sum(-1, keepdim=True) @ v[:, columns])
            x = x + affine(torch.cat(heads, -1), layer, "attention.o_proj")
            inner = gelu(affine(layer_norm(x, layer, "layernorm_after", eps), layer, "mlp.fc1"))
            x = x + affine(inner, layer, "mlp.fc2")
        return layer_norm(x, body, "layernorm", eps)


def masked_losses(network: Network, samples: Sequence[Sample], masks: Sequence[Masked]) -> tuple[list[Any], list[Any]]:
    """The losses of masked words and of masked patches, one each, in the view that the architecture reads."""
    view = VIEW_OF.get(network.kind, "full")
    words, patches = [], []
    for sample, masked in zip(samples, masks, strict=True):
        ids = [CLS, SEP] if view == "image" else text_of(sample, masked)
        image = None if view == "text" else sample.image
        hidden = network.hidden(ids, image, masked)
        if view != "image":
            words += [network.word_loss(hidden[place], text_of(sample)[place]) for place in sorted(masked.words)]
        if image is not None:
            patches += [network.patch_loss(hidden[len(hidden) - PATCHES + patch], image, patch)
                        for patch in sorted(masked.patches)]  # fmt: skip
    return words, patches
