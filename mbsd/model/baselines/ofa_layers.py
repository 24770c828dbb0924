"""OFA's layers: what positions add to attention scores, and transformer layers with NormFormer's extra norms.

Words and places of a picture have positions of different kinds, so attention works on rows of slots: first the P places
of the picture, then the words. A sample that lacks some leaves their slots empty. Everything else works token by token
on packed rows.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mbsd.batch import Generation, Views
from mbsd.model.config import BackboneConfig

BUCKETS = 256  # distances of words: as they are up to half of them, then by their logarithm
FARTHEST = 1023  # the distance of the last bucket
PLACES = 42  # a picture has up to 42 x 42 places


@dataclass(frozen=True)
class Slots:
    """Where packed rows (M of them) stand in S sequences of L slots.

    Attributes:
        rows_SL: int64; the packed row in each slot, any row of the sequence in an empty one.
        is_real_SL: bool; False in empty slots.
        slot_M: int64; the slot (of S * L) of each packed row.
    """

    rows_SL: Tensor
    is_real_SL: Tensor
    slot_M: Tensor

    @classmethod
    def of_views(cls, views: Views, num_text_rows: int, num_places: int) -> Slots:
        """Of packed tokens, of which each sequence has its words first: the picture's `num_places` slots, or none where
        no sequence shows one, then the words'. The device is asked for nothing.

        Raises:
            ValueError: a plan that does not tell words from patches.
        """
        if len(views.image_lengths) != len(views.real_lengths):
            raise ValueError(f"{len(views.image_lengths)} image lengths of {len(views.real_lengths)} sequences")
        shown = (*views.image_lengths, *(0,) * views.num_fill)
        num_places = num_places if any(shown) else 0
        longest = max(all_ - image for all_, image in zip(views.lengths, shown, strict=True))
        starts = views.cu_seqlens.long()
        is_image_T = views.source_T >= num_text_rows
        images_before = F.pad(is_image_T.long().cumsum(0), (1, 0))[starts]
        images_S1 = images_before.diff()[:, None]
        words_S1, first_S1 = starts.diff()[:, None] - images_S1, starts[:-1, None]
        slot = torch.arange(num_places + longest, device=starts.device)[None]
        word = slot - num_places
        is_real = torch.where(word < 0, slot < images_S1, word < words_S1)
        rows = first_S1 + torch.where(word < 0, words_S1 + slot, word)
        return cls._of(torch.where(is_real, rows, first_S1), is_real, views.source_T.shape[0])

    @classmethod
    def of_written(cls, written: Generation) -> Slots:
        """Of the tokens to write."""
        starts = written.cu_seqlens.long()
        slot = torch.arange(max(written.lengths), device=starts.device)[None]
        is_real = slot < starts.diff()[:, None]
        rows = torch.where(is_real, starts[:-1, None] + slot, 0)
        return cls._of(rows, is_real, written.input_ids_W.shape[0])

    @classmethod
    def of_single(cls, num_sequences: int, device: torch.device) -> Slots:
        """One row for each sequence."""
        at = torch.arange(num_sequences, device=device)
        return cls(at[:, None], torch.ones_like(at, dtype=torch.bool)[:, None], at)

    @classmethod
    def _of(cls, rows_SL: Tensor, is_real_SL: Tensor, num_rows: int) -> Slots:
        """With each row's slot; empty ones write to a row behind the last."""
        slots = torch.arange(rows_SL.numel(), device=rows_SL.device)
        rows = torch.where(is_real_SL, rows_SL, num_rows).flatten()
        slot_M = torch.zeros(num_rows + 1, dtype=torch.int64, device=rows_SL.device).scatter(0, rows, slots)
        return cls(rows_SL, is_real_SL, slot_M[:-1])


def word_distances(length: int, device: torch.device) -> Tensor:
    """int64 [L, L]: the bucket of the distance of each word to each, 0 to 2 * BUCKETS - 2."""
    middle, at = BUCKETS // 2, torch.arange(length, device=device)
    apart = at[:, None] - at[None]
    far = (apart.abs().clamp_min(middle).double() / middle).log() / math.log(FARTHEST / middle)
    bucket = ((far * (middle - 1)).ceil().long() + middle).clamp_max(BUCKETS - 1)
    return torch.where(apart.abs() <= middle, apart, bucket * apart.sign()) + BUCKETS - 1


def place_distances(side: int, device: torch.device) -> Tensor:
    """int64 [P, P]: the number of the way from each of side * side places to each, row by row."""
    at = torch.arange(side, device=device)
    row, column = at.repeat_interleave(side), at.repeat(side)
    down, right = row[:, None] - row[None] + PLACES - 1, column[:, None] - column[None] + PLACES - 1
    return down * (2 * PLACES - 1) + right


class Positions(nn.Module):
    """What positions of words, and of places where there are pictures, add to the attention scores of a stack.

    Attributes:
        words, word_norm, places, place_norm: vectors of positions.
        query, key: their projections, once for all layers.
        word_distances, place_distances: a table of biases for each layer.
    """

    def __init__(self, config: BackboneConfig, with_places: bool) -> None:
        super().__init__()
        width, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
        self.heads = heads
        self.words = nn.Embedding(config.max_position_embeddings + 2, width)
        self.word_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.word_distances = nn.ModuleList([nn.Embedding(2 * BUCKETS - 1, heads) for _ in range(layers)])
        self.places: nn.Embedding | None = None
        if with_places:
            self.places = nn.Embedding(PLACES**2 + 1, width)
            self.place_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
            ways = (2 * PLACES - 1) ** 2 + 3
            self.place_distances = nn.ModuleList([nn.Embedding(ways, heads) for _ in range(layers)])

    def vectors(self, num_words: int, side: int = 0) -> Tensor:
        """[side² + words, D]: the picture's places, then the words'."""
        at = torch.arange(num_words, device=self.words.weight.device).clamp_max(len(self.words.weight) - 1)
        word_vectors: Tensor = self.word_norm(self.words(at))
        if not side or self.places is None:
            return word_vectors
        at = torch.arange(side, device=at.device)
        places = self.place_norm(self.places((at[:, None] * PLACES + at + 1).flatten()))
        return torch.cat([places, word_vectors])

    def scores(self, vectors_LD: Tensor) -> Tensor:
        """[H, L, L]: products of the projected positions, for all layers."""
        return position_scores(self.query(vectors_LD), self.key(vectors_LD), self.heads)

    def distances(self, layer: int, num_words: int, side: int = 0) -> Tensor:
        """[H, L, L]: the biases of one layer; none between a word and a place."""
        device = self.words.weight.device
        words: Tensor = self.word_distances[layer](word_distances(num_words, device)).permute(2, 0, 1)
        if not side:
            return words
        places = self.place_distances[layer](place_distances(side, device)).permute(2, 0, 1)
        return F.pad(places, (0, num_words, 0, num_words)) + F.pad(words, (side**2, 0, side**2, 0))


def position_scores(query_LD: Tensor, key_LD: Tensor, heads: int) -> Tensor:
    """[H, L, L']: products of projected positions, scaled as those of tokens."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (query_LD, key_LD))
    scaled: Tensor = q @ k.transpose(1, 2) * (2 * q.shape[-1]) ** -0.5
    return scaled


class Attention(nn.Module):
    """Attention with biases and a learned scale for each head; scores are scaled by 1 / sqrt(2 * head size), as those
    of positions are, of which they are the sum.

    Its score cells are padded to the longest sequence; projections are of packed rows.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.head_scale = nn.Parameter(torch.ones(self.heads))

    def forward(
        self, rows_MD: Tensor, slots: Slots, bias: Tensor, encoded: tuple[Tensor, Slots] | None = None
    ) -> Tensor:
        """[M, D].

        Args:
            rows_MD: packed rows that ask; `slots` of S x L.
            bias: [S, H, L, L'] or what expands to it, added to the scores; -inf where a slot is not seen.
            encoded: packed rows that are seen and their slots, S x L'; None: the rows themselves.
        """
        seen_MD, there = encoded or (rows_MD, slots)
        q = self.query(rows_MD)[slots.rows_SL].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            projection(seen_MD)[there.rows_SL].unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.key, self.value)
        )
        dropout, scale = self.dropout if self.training else 0.0, (2 * q.shape[-1]) ** -0.5
        # Torch's kernel for CPUs gives other bits without a gradient than with one.
        with sdpa_kernel(SDPBackend.MATH) if q.device.type == "cpu" else nullcontext():
            found = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), dropout_p=dropout, scale=scale)
        found = (found * self.head_scale[:, None, None]).transpose(1, 2).flatten(2)
        out: Tensor = self.output(found.flatten(0, 1)[slots.slot_M])
        return out


class FeedForward(nn.Module):
    """The two linear layers, with a norm between them."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size)
        self.norm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)
        self.outer = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        out: Tensor = self.outer(self.norm(F.gelu(self.inner(x))))
        return out


class Residual(nn.Module):
    """A part of a layer and what stands around it: a norm before it, one behind it (NormFormer), dropout, the sum."""

    def __init__(self, config: BackboneConfig, part: nn.Module, norm_after: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.before = nn.LayerNorm(width, eps=eps)
        self.part = part
        self.after = nn.LayerNorm(width, eps=eps) if norm_after else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_MD: Tensor, *more: Any) -> Tensor:
        """[M, D]; `more` are further arguments of the part."""
        summed: Tensor = x_MD + self.dropout(self.after(self.part(self.before(x_MD), *more)))
        return summed


class EncoderLayer(nn.Module):
    """Every token attends to all of its sequence."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention = Residual(config, Attention(config), norm_after=True)
        self.feed_forward = Residual(config, FeedForward(config), norm_after=False)

    def forward(self, x_MD: Tensor, slots: Slots, bias: Tensor) -> Tensor:
        """[M, D]; see `Attention`."""
        out: Tensor = self.feed_forward(self.attention(x_MD, slots, bias))
        return out


class DecoderLayer(nn.Module):
    """Every token attends to those up to it, then to the encoder's."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention = Residual(config, Attention(config), norm_after=True)
        self.cross_attention = Residual(config, Attention(config), norm_after=True)
        self.feed_forward = Residual(config, FeedForward(config), norm_after=False)

    def forward(
        self, x_MD: Tensor, slots: Slots, bias: Tensor, encoded: tuple[Tensor, Slots], cross_bias: Tensor
    ) -> Tensor:
        """[M, D]; see `Attention`. `encoded` are the encoder's last hidden states."""
        x_MD = self.attention(x_MD, slots, bias)
        out: Tensor = self.feed_forward(self.cross_attention(x_MD, slots, cross_bias, encoded))
        return out
