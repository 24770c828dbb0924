"""What the baselines share: a config that says what they can read, and one packed forward over all views of a batch.

A baseline is a backbone as `mbsd.model.mbsd.MbsdModel` is one: `encode(batch)` gives h of every view, so that heads,
tasks and recipes take it as they take MBSD. Its tokens are packed as MBSD's are, and transformers' own layers, which
work token by token but for the attention, are run over them: what they compute is what they would on padded input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler

from mbsd.batch import Batch
from mbsd.model.attention import PACKED, AttentionPlan
from mbsd.model.mbsd import Encoded, MbsdConfig, MbsdPreTrainedModel, embed_words
from mbsd.model.patchify import normalise_pixels


@strict
class BaselineConfig(MbsdConfig):
    """MBSD's configuration without its image side; each baseline says how many image tokens it has."""

    model_type = "mbsd_baseline"


class Baseline(MbsdPreTrainedModel, ABC):
    """A backbone; subclasses give the embeddings and, unless it is BERT's, the trunk."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        config._attn_implementation = PACKED
        self.pooler = BertPooler(config)

    def freeze_for_tasks(self) -> None:
        """Freeze what no head on h reads."""
        if self.config.representation == "cls":
            self.pooler.requires_grad_(False)

    @abstractmethod
    def embed_text(self, batch: Batch) -> Tensor:
        """The N text tokens of a batch: [N, D]."""

    @abstractmethod
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, h, w] -> image tokens [I * P, D]: the image side, all of it."""

    @abstractmethod
    def run_trunk(self, tokens_TD: Tensor, plan: AttentionPlan) -> Tensor:
        """Embedded tokens [T, D] -> the last hidden states [T, D]; each sequence of the plan sees itself alone."""

    def encode(self, batch: Batch) -> Encoded:
        """See `MbsdModel.encode`; no sample has to have a picture or a title."""
        text_ND = self.embed_text(batch)
        pixels = normalise_pixels(batch.images, text_ND.dtype)
        tokens_TD = torch.cat([text_ND, self.embed_images(pixels)])[batch.views.source_T]
        hidden_TD = self.run_trunk(tokens_TD, AttentionPlan.of(batch.views))
        cls_SD = hidden_TD[batch.views.cu_seqlens[: len(batch.views.real_lengths)].long()]
        if self.config.representation == "pooled":
            cls_SD = self.pooler(cls_SD[:, None])
        return Encoded(hidden_TD, cls_SD.view(len(batch.views.names), batch.num_samples, -1), pixels)

    def forward(self, batch: Batch) -> Encoded:
        """See `encode`."""
        return self.encode(batch)


class BertTrunk(Baseline):
    """Baselines whose stream is a BERT's: its embedding of words, its encoder, its pooler."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.embeddings.word_embeddings

    def embed_text(self, batch: Batch) -> Tensor:
        """BERT's embedding of the N text tokens: [N, D]."""
        return embed_words(self.embeddings, batch)

    def run_trunk(self, tokens_TD: Tensor, plan: AttentionPlan) -> Tensor:
        """BERT's encoder."""
        hidden_TD: Tensor = self.encoder(tokens_TD[None], plan=plan).last_hidden_state[0]
        return hidden_TD
