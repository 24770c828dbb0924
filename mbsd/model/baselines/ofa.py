"""OFA (Wang et al. 2022): three stages of a ResNet make a picture's tokens, an encoder reads them and the words, a
decoder writes; OFA-base has 6 + 6 layers of 768 and ResNet-101.

As in OFA, positions do not go into the tokens: their products (projected once, for all layers) and a learned bias for
each distance, of words and of places in the picture, layer by layer, are added to the attention scores. So the score
cells of attention are padded to the longest sequence of a batch; everything else works on packed tokens, and no
sample's result depends on its neighbours. h is the decoder's last hidden state at its first token, [CLS]: what it would
answer with.

With the published vocabulary of 59,457 words, codes of pictures and places it has 180.4 of the published 182 million
parameters: it lacks the decoder's places, with which OFA writes codes of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from mbsd.batch import Batch
from mbsd.errors import UserError
from mbsd.model.backbone import Encoded, Writer
from mbsd.model.baselines.ofa_layers import (
    PLACES,
    Attention,
    DecoderLayer,
    EncoderLayer,
    Positions,
    Slots,
    position_scores,
)
from mbsd.model.baselines.resnet import (
    RESNET_101,
    FirstStages,
    features_of,
    init_resnet,
    multiplications,
)
from mbsd.model.config import BaselineConfig
from mbsd.model.patchify import normalise_pixels

CELL = 16  # pixels of a place's side
CAPTION_PROMPT, DENOISING_PROMPT = "what does the image describe?", "what is the complete text of"


@strict
class OfaConfig(BaselineConfig):
    """OFA-base.

    Attributes:
        num_hidden_layers: of the encoder, and as many of the decoder.
        resnet_blocks: of the three stages of the ResNet.
    """

    model_type = "mbsd_ofa"

    vocab_size: int = 59_457
    num_hidden_layers: int = 6
    max_position_embeddings: int = 1024
    layer_norm_eps: float = 1e-5
    resnet_blocks: list[int] | tuple[int, ...] = RESNET_101[:3]

    @property
    def side(self) -> int:
        """Places in a row of the picture, and rows."""
        return -(-self.image_size // CELL)

    @property
    def num_patches(self) -> int:
        """Places of one image."""
        return self.side**2

    @property
    def image_multiplications(self) -> int:
        """Of the ResNet and the projection behind it."""
        projection = self.num_patches * features_of(self.resnet_blocks) * self.hidden_size
        return multiplications(self.image_size, tuple(self.resnet_blocks)) + projection

    def decoder_multiplications(self, lengths: Sequence[int], written: Sequence[int] | None) -> int:
        """Of the decoder: one token for each sequence where none are written."""
        written = (1,) * len(lengths) if written is None else written
        width, inner = self.hidden_size, self.intermediate_size
        own = sum(written) * (6 * width * width + 2 * width * inner)
        keys = sum(lengths) * 2 * width * width
        scores = 2 * width * sum(new * (old + new) for old, new in zip(lengths, written, strict=True))
        return int(self.num_hidden_layers * (own + keys + scores))

    def backbone(self) -> Ofa:
        """A new one."""
        return Ofa(self)


@dataclass(frozen=True)
class Source:
    """What the decoder looks at.

    Attributes:
        hidden_TD: the encoder's last hidden states of the packed tokens.
        slots: of these.
        vectors_LD: of their slots' positions.
        unseen: [S, 1, 1, L]; 0, and -inf in empty slots.
    """

    hidden_TD: Tensor
    slots: Slots
    vectors_LD: Tensor
    unseen: Tensor


class Ofa(Writer):
    """OFA."""

    config_class = OfaConfig

    def __init__(self, config: OfaConfig) -> None:
        super().__init__(config)
        if config.side > PLACES:
            raise UserError(
                f"data.image_size={config.image_size}: an ofa reads pictures of up to {PLACES * CELL} pixels; lower it"
            )
        width, layers, eps = config.hidden_size, config.num_hidden_layers, config.layer_norm_eps
        self.words = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.type_2D = nn.Parameter(torch.zeros(2, width))
        self.stages = FirstStages(config.resnet_blocks)
        self.image_projection = nn.Linear(features_of(config.resnet_blocks), width)
        self.word_norm, self.image_norm, self.encoder_norm = (nn.LayerNorm(width, eps=eps) for _ in range(3))
        self.written_norm, self.decoder_norm = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = nn.ModuleList([EncoderLayer(config) for _ in range(layers)])
        self.decoder = nn.ModuleList([DecoderLayer(config) for _ in range(layers)])
        self.encoder_positions = Positions(config, with_places=True)
        self.decoder_positions = Positions(config, with_places=False)
        self.cross_query, self.cross_key = nn.Linear(width, width), nn.Linear(width, width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_resnet(module)
        if isinstance(module, Attention):
            init.ones_(module.head_scale)
        elif isinstance(module, Positions):
            for table in (module.words, module.places):
                if table is not None:
                    init.normal_(table.weight, 0.0, self.config.position_range)
        elif module is self:
            init.normal_(module.type_2D, 0.0, self.config.position_range)

    def get_input_embeddings(self) -> nn.Module:
        """The word table, of the encoder and of the decoder."""
        return self.words

    def image_stem(self) -> list[nn.Parameter]:
        """Of the ResNet and what maps its features to tokens; positions of places."""
        positions: Any = self.encoder_positions
        layers = (
            self.stages, self.image_projection, self.image_norm, positions.places, positions.place_norm,
            positions.place_distances,
        )  # fmt: skip
        return [p for layer in layers for p in layer.parameters()]

    def pooler_parameters(self) -> list[nn.Parameter]:
        """None: the decoder is what pools."""
        return []

    def freeze_for_tasks(self) -> None:
        """The decoder's attention to itself, but for values: its one token has nothing else to look at."""
        positions = self.decoder_positions
        frozen: list[nn.Module] = [positions.query, positions.key, positions.word_distances]
        for layer in self.decoder:
            attention: Any = layer.attention
            frozen += [attention.part.query, attention.part.key]
        for module in frozen:
            module.requires_grad_(False)

    def freeze_for_writing(self) -> None:
        """Nothing: all of it writes."""

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels -> [I * places, D]: the image side, all of it."""
        projected: Tensor = self.image_projection(self.stages(pixels)) + self.type_2D[1]
        tokens: Tensor = self.dropout(self.image_norm(projected))
        return tokens.flatten(0, 1)

    def encode(self, batch: Batch) -> Encoded:
        """The encoder's hidden states, and h: the decoder's at the [CLS] of each sample in each view."""
        source, pixels = self._read(batch)
        first_S = batch.views.source_T[batch.views.cu_seqlens[:-1].long()]
        slots = Slots.of_single(len(batch.views.lengths), first_S.device)
        h_SD = self._write(batch.input_ids_N[first_S], slots, source)[: len(batch.views.real_lengths)]
        return Encoded(source.hidden_TD, h_SD.view(len(batch.views.names), batch.num_samples, -1), pixels)

    def decode(self, batch: Batch) -> Tensor:
        """Of the written tokens [W, D]."""
        written = batch.generation
        assert written is not None, "what is to be written?"
        source, _ = self._read(batch)
        return self._write(written.input_ids_W, Slots.of_written(written), source)

    def _read(self, batch: Batch) -> tuple[Source, Tensor]:
        """The encoder, and the normalised pixels."""
        positions, views = self.encoder_positions, batch.views
        text_ND = self.dropout(self.word_norm(self.words(batch.input_ids_N) + self.type_2D[0]))
        pixels = normalise_pixels(batch.images, text_ND.dtype)
        x_TD = torch.cat([text_ND, self.embed_images(pixels)])[views.source_T]
        slots = Slots.of_views(views, len(text_ND), self.config.num_patches)
        side = self.config.side if any(views.image_lengths) else 0
        num_words = slots.rows_SL.shape[1] - side**2
        vectors_LD = positions.vectors(num_words, side)
        unseen = torch.zeros_like(slots.is_real_SL, dtype=x_TD.dtype).masked_fill(~slots.is_real_SL, -torch.inf)
        unseen = unseen[:, None, None]
        shared = positions.scores(vectors_LD)
        for n, layer in enumerate(self.encoder):
            x_TD = layer(x_TD, slots, shared + positions.distances(n, num_words, side) + unseen)
        return Source(self.encoder_norm(x_TD), slots, vectors_LD, unseen), pixels

    def _write(self, input_ids_M: Tensor, slots: Slots, source: Source) -> Tensor:
        """The decoder's last hidden states [M, D] of tokens in slots, each of which sees those up to it."""
        positions, heads = self.decoder_positions, self.config.num_attention_heads
        x_MD = self.dropout(self.written_norm(self.words(input_ids_M)))
        longest = slots.rows_SL.shape[1]
        vectors_LD = positions.vectors(longest)
        later = torch.full((longest, longest), -torch.inf, dtype=x_MD.dtype, device=x_MD.device).triu(1)
        shared = positions.scores(vectors_LD) + later
        across = position_scores(self.cross_query(vectors_LD), self.cross_key(source.vectors_LD), heads)
        cross_bias, encoded = across + source.unseen, (source.hidden_TD, source.slots)
        for n, layer in enumerate(self.decoder):
            x_MD = layer(x_MD, slots, (shared + positions.distances(n, longest))[None], encoded, cross_bias)
        written: Tensor = self.decoder_norm(x_MD)
        return written
