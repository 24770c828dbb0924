"""Samples of drawn lengths for `mbsd bench step`: packed for this project's model, and padded as others take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbsd.batch import NO_WORD, VIEW_NAMES, Batch, Masks
from mbsd.config.data import DataConfig
from mbsd.config.stages import MaskingConfig
from mbsd.data.masking import Vocabulary, mask_patches, mask_text
from mbsd.data.views import Int64, TextTokens, pack
from mbsd.model.mbsd import MbsdConfig

CLS, SEP, MASK, FIRST_WORD = 101, 102, 103, 104  # as in bert-base-chinese
QUERY_MEAN, TITLE_MEAN, TITLE_SPREAD = 8, 32, 0.4
LIMITS = DataConfig("")


@dataclass(frozen=True)
class Drawn:
    """B samples of one stage, every one with an image.

    Attributes:
        texts: as they are shown (stage 1: corrupted).
        words, labels: stage 1's chosen positions in each text, and what stood there.
        patches: stage 1's masked patches of each image.
        images: uint8 [B, 3, h, w].
        labels_B: float32, stage 2's matches.
    """

    texts: list[TextTokens]
    words: list[Int64]
    labels: list[Int64]
    patches: list[Int64]
    images: Tensor
    labels_B: Tensor


@dataclass(frozen=True)
class Padded:
    """One view as rows of [B, L] text tokens, padded at the end, and the images behind them where it shows them."""

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor
    images: Tensor | None


def draw(config: MbsdConfig, batch: int, *, masked: bool, longest: bool, seed: int) -> Drawn:
    """Draw `batch` samples.

    Queries have 1 + Poisson words (mean 8), titles log-normal ones (mean 32), and every text is cut at its limit (144
    tokens with specials, 64 of them query). `longest`: every query and every text is at its limit.
    """
    rng = np.random.default_rng(seed)
    titles = rng.lognormal(np.log(TITLE_MEAN) - TITLE_SPREAD**2 / 2, TITLE_SPREAD, batch).round().astype(int)
    queries = 1 + rng.poisson(QUERY_MEAN - 1, batch)
    drawn = Drawn(
        [], [], [], [],
        torch.from_numpy(rng.integers(0, 256, (batch, 3, config.image_size, config.image_size), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, 2, batch).astype(np.float32)),
    )  # fmt: skip
    for title, words in zip(titles.tolist(), queries.tolist(), strict=True):
        query = 0 if masked else min(words + 2, LIMITS.max_query_tokens)
        if longest:
            title, query = LIMITS.max_text_tokens, 0 if masked else LIMITS.max_query_tokens
        length = min((query or 1) + max(title, 1) + 1, LIMITS.max_text_tokens)
        ids = rng.integers(FIRST_WORD, config.vocab_size, length)
        ids[[0, -1]] = CLS, SEP
        if query:
            ids[query - 1] = SEP
        types = np.zeros(length, dtype=np.int64)
        types[query or length :] = 1
        if masked:
            settings = MaskingConfig()
            special = np.isin(ids, (CLS, SEP))
            vocabulary = Vocabulary(config.vocab_size, MASK, (CLS, SEP, MASK))
            ids, chosen, labels = mask_text(rng, ids, special, vocabulary, settings.mlm_probability)
            drawn.words.append(chosen)
            drawn.labels.append(labels)
            drawn.patches.append(mask_patches(rng, config.num_patches, settings.mpm_probability, "replace")[0])
        drawn.texts.append(TextTokens(ids, types, query))
    return drawn


def packed(drawn: Drawn, config: MbsdConfig) -> Batch:
    """The samples as the loader delivers them: stage 1's one view, or stage 2's three."""
    count, patches = len(drawn.texts), config.num_patches
    views = ("full",) if drawn.words else VIEW_NAMES
    ids_N, positions_N, types_N, plan = pack(drawn.texts, [True] * count, views, patches)
    masks = None
    if drawn.words:
        starts = plan.cu_seqlens.tolist()
        lengths = [len(text.input_ids) for text in drawn.texts]
        hidden = np.concatenate([b * patches + rows for b, rows in enumerate(drawn.patches)])
        source = np.arange(count * patches)
        source[hidden] = count * patches
        rows = [starts[b] + lengths[b] + rows for b, rows in enumerate(drawn.patches)]
        masks = Masks(
            torch.from_numpy(np.concatenate([starts[b] + words for b, words in enumerate(drawn.words)])),
            torch.from_numpy(np.concatenate(drawn.labels)),
            torch.from_numpy(source),
            torch.from_numpy(np.concatenate(rows)),
            torch.from_numpy(hidden),
        )
    labels = None if drawn.words else drawn.labels_B
    return Batch(ids_N, positions_N, types_N, drawn.images, plan, torch.arange(count), labels, masks)


def padded(drawn: Drawn, view: str, length: int | None) -> Padded:
    """One view with its texts padded to `length` tokens; None: to the longest of them."""
    shown = [
        (text.input_ids[: text.num_query], text.token_type_ids[: text.num_query])
        if view == "image"
        else (text.input_ids, text.token_type_ids)
        for text in drawn.texts
    ]
    length = length or max(len(ids) for ids, _ in shown)
    rows = np.zeros((3, len(shown), length), dtype=np.int64)
    for b, (ids, types) in enumerate(shown):
        rows[0, b, : len(ids)], rows[1, b, : len(ids)], rows[2, b, : len(ids)] = ids, types, 1
    input_ids, token_type_ids, attention_mask = torch.from_numpy(rows).unbind()
    return Padded(input_ids, token_type_ids, attention_mask, None if view == "text" else drawn.images)


def padded_labels(drawn: Drawn, length: int) -> Tensor:
    """Stage 1's words to predict, int64 [B, length]; `NO_WORD` elsewhere."""
    labels = torch.full((len(drawn.texts), length), NO_WORD)
    for b, (words, ids) in enumerate(zip(drawn.words, drawn.labels, strict=True)):
        labels[b, torch.from_numpy(words)] = torch.from_numpy(ids)
    return labels
