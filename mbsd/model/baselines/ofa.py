"""OFA-base as far as its latency goes: ResNet-101's first three stages -> 196 tokens, six encoder layers, six decoder
layers that answer with one token (Wang et al. 2022).

As in OFA, positions do not go into the tokens: their products (projected once, for all layers) and a learned bias for
each distance, of words and of places in the picture, layer by layer, are added to the attention scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BartConfig
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer

from mbsd.batch import Batch
from mbsd.model.backbone import Encoded
from mbsd.model.baselines.resnet import FirstStages
from mbsd.model.patchify import normalise_pixels

VOCABULARY = 59_457  # words, codes of pictures and places
BUCKETS = 256  # distances of words
PLACES = 42  # OFA's pictures have up to 42 x 42 places


class Positions(nn.Module):
    """What positions add to the scores of one stack's attention."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(1026, width)
        self.places = nn.Embedding(PLACES**2 + 1, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.word_distances = nn.ModuleList([nn.Embedding(2 * BUCKETS - 1, heads) for _ in range(layers)])
        self.place_distances = nn.ModuleList([nn.Embedding((2 * PLACES - 1) ** 2 + 3, heads) for _ in range(layers)])

    def vectors(self, num_words: int, side: int) -> Tensor:
        """[side² + words, D]: the picture's places, then the words'."""
        device = self.words.weight.device
        word_vectors: Tensor = self.norms[0](self.words.weight[:num_words])
        at = torch.arange(side, device=device)
        places = self.norms[1](self.places((at[:, None] * PLACES + at + 1).flatten()))
        return torch.cat([places, word_vectors])

    def scores(self, query: nn.Linear, key: nn.Linear, of_LD: Tensor, to_LD: Tensor) -> Tensor:
        """[H, L, L']: products of projected positions."""
        q, k = (layer(x).unflatten(-1, (self.heads, -1)).transpose(0, 1) for layer, x in ((query, of_LD), (key, to_LD)))
        scaled: Tensor = q @ k.transpose(1, 2) * (2 * q.shape[-1]) ** -0.5
        return scaled

    def distances(self, layer: int, num_words: int, side: int) -> Tensor:
        """[H, L, L]: the biases of one layer; none between a word and a place."""
        device = self.words.weight.device
        word = torch.arange(num_words, device=device)
        words = self.word_distances[layer]((word[None] - word[:, None]).clamp(1 - BUCKETS, BUCKETS - 1) + BUCKETS - 1)
        at = torch.arange(side, device=device)
        row, column = at.repeat_interleave(side), at.repeat(side)
        down, right = row[None] - row[:, None] + PLACES - 1, column[None] - column[:, None] + PLACES - 1
        places = self.place_distances[layer](down * (2 * PLACES - 1) + right)
        both: Tensor = words.new_zeros(self.heads, side**2 + num_words, side**2 + num_words)
        both[:, : side**2, : side**2] = places.permute(2, 0, 1)
        both[:, side**2 :, side**2 :] = words.permute(2, 0, 1)
        return both


class Ofa(nn.Module):
    """OFA-base, on samples of equal length that have a picture and are shown in one view."""

    def __init__(self) -> None:
        super().__init__()
        config = BartConfig(d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12,
                            decoder_attention_heads=12, encoder_ffn_dim=3072, decoder_ffn_dim=3072)  # fmt: skip
        config._attn_implementation = "sdpa"
        width, heads, layers = 768, 12, 6
        self.words = nn.Embedding(VOCABULARY, width)
        self.types = nn.Embedding(2, width)
        self.stages = FirstStages()
        self.image_projection = nn.Linear(1024, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.encoder = nn.ModuleList([BartEncoderLayer(config) for _ in range(layers)])
        self.decoder = nn.ModuleList([BartDecoderLayer(config, layer_idx=n) for n in range(layers)])
        self.encoder_positions = Positions(width, heads, layers)
        self.decoder_positions = Positions(width, heads, layers)
        self.cross_query, self.cross_key = nn.Linear(width, width), nn.Linear(width, width)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels -> [I * places, D]: the image side, all of it."""
        projected: Tensor = self.image_projection(self.stages(pixels)) + self.types.weight[1]
        return projected.flatten(0, 1)

    def encode(self, batch: Batch) -> Encoded:
        """The hidden states [B * L, D] of the encoder and h [1, B, D], the decoder's at its one token.

        Raises:
            ValueError: samples of several lengths, without pictures or in several views.
        """
        samples, num_words = batch.num_samples, batch.input_ids_N.shape[0] // batch.num_samples
        if len(set(batch.views.lengths)) > 1 or batch.views.names != ("full",) or len(batch.images) != samples:
            raise ValueError("OFA is here for its latency: give samples of one length with pictures, in the view full")
        pixels = normalise_pixels(batch.images, self.words.weight.dtype)
        image_BPD = self.norms[0](self.embed_images(pixels).unflatten(0, (samples, -1)))
        side = round(image_BPD.shape[1] ** 0.5)
        text_BLD = self.norms[1](self.words(batch.input_ids_N.view(samples, num_words)) + self.types.weight[0])
        hidden = torch.cat([image_BPD, text_BLD], dim=1)
        positions = self.encoder_positions
        vectors_LD = positions.vectors(num_words, side)
        shared = positions.scores(positions.query, positions.key, vectors_LD, vectors_LD)
        for n, layer in enumerate(self.encoder):
            hidden = layer(hidden, _mask(shared + positions.distances(n, num_words, side), samples))
        hidden = self.norms[2](hidden)
        answer = self.norms[3](self.words(batch.input_ids_N.view(samples, num_words)[:, :1]))
        own = self.decoder_positions
        first_1D = own.vectors(1, 0)
        itself = own.scores(own.query, own.key, first_1D, first_1D)
        cross = _mask(own.scores(self.cross_query, self.cross_key, first_1D, vectors_LD), samples)
        for n, layer in enumerate(self.decoder):
            answer = layer(answer, _mask(itself + own.distances(n, 1, 0), samples), hidden, cross, use_cache=False)
        return Encoded(hidden.flatten(0, 1), answer.transpose(0, 1), pixels)

    def forward(self, batch: Batch) -> Encoded:
        """See `encode`."""
        return self.encode(batch)


def _mask(scores_HLL: Tensor, samples: int) -> Any:
    """What is added to the scores of every sample: [B, H, L, L']."""
    return scores_HLL.expand(samples, *scores_HLL.shape)
