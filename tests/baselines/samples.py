"""Tiny baselines, and batches of their samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbsd.batch import Batch
from mbsd.data.views import TextTokens, pack
from mbsd.model.baselines.bert import BertBaselineConfig
from mbsd.model.baselines.fashionbert import FashionBertConfig
from mbsd.model.baselines.kaleido import KaleidoConfig
from mbsd.model.baselines.vilt import ViltBaselineConfig
from mbsd.model.baselines.vit import VitConfig
from mbsd.model.config import BaselineConfig
from mbsd.model.two_tower import TwoTowerConfig

CONFIGS: dict[str, type[BaselineConfig]] = {
    "bert": BertBaselineConfig,
    "vit": VitConfig,
    "vilt": ViltBaselineConfig,
    "fashionbert": FashionBertConfig,
    "kaleido": KaleidoConfig,
    "two_tower": TwoTowerConfig,
}
VOCABULARY, CLS, SEP = 40, 2, 3
Layout = Sequence[tuple[int, int, bool]]
"""Words of the query and of the title (0: missing), and whether there is a picture."""
MIXED: Layout = ((3, 5, True), (1, 0, True), (6, 9, False), (2, 1, True), (4, 0, False))


def tiny(name: str, **changes: Any) -> BaselineConfig:
    """Two layers over pictures of 32 pixels, without dropout."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 24, "image_size": 32, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if name in ("vit", "vilt", "two_tower"):
        sizes |= {"patchify_strides": (16,)}
    if name in ("fashionbert", "kaleido"):
        sizes |= {"crop_size": 8}
    return CONFIGS[name](**{**sizes, **changes})


def samples_of(layout: Layout, seed: int, side: int = 32) -> list[tuple[TextTokens, Tensor | None]]:
    """`[CLS] query [SEP] title [SEP]` and a picture each, or what there is of them."""
    rng = np.random.default_rng(seed)
    made = []
    for query, title, image in layout:
        first = [CLS, *rng.integers(5, VOCABULARY, query), SEP]
        second = [*rng.integers(5, VOCABULARY, title), SEP] if title else []
        types = np.repeat([0, 1], [len(first), len(second)])
        pixels = torch.from_numpy(rng.integers(0, 256, (3, side, side), dtype=np.uint8)) if image else None
        made.append((TextTokens(np.array(first + second), types, len(first)), pixels))
    return made


def batch_of(samples: list[tuple[TextTokens, Tensor | None]], views: tuple[str, ...], config: BaselineConfig) -> Batch:
    """As the loader lays it out."""
    texts, pixels = [text for text, _ in samples], [pixels for _, pixels in samples]
    ids_N, positions_N, types_N, plan = pack(texts, [p is not None for p in pixels], views, config.num_image_tokens)
    none = torch.zeros(0, 3, config.image_size, config.image_size, dtype=torch.uint8)
    images = torch.cat([none, *(p[None] for p in pixels if p is not None)])
    return Batch(ids_N, positions_N, types_N, images, plan, items_B=torch.arange(len(samples)))
