"""A backbone: what turns a batch into one representation of each sample in each view (dimension letters: batch.py).

`OneStream.encode` runs any number of views of a batch in ONE forward: text is embedded once, the image side runs once,
and the packed trunk gathers from both what each view shows. It is written here once, for MBSD and for all baselines; a
backbone gives the embeddings and the trunk (`mbsd.model.two_tower` has one such backbone for each view). Layers are
transformers' own, which work token by token but for the attention: they compute what they would on padded input.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertLayer, BertPooler

from mbsd.batch import Batch, Views
from mbsd.model.attention import PACKED, AttentionPlan, packed_attention
from mbsd.model.config import BackboneConfig
from mbsd.model.patchify import normalise_pixels
from mbsd.model.taken_over import Sources, TakenOver


@dataclass(frozen=True)
class Encoded:
    """What one packed forward gives.

    Attributes:
        hidden_TD: the last hidden state of every packed token.
        h_VBD: the representation of each sample in each view.
        pixels: the normalised input pixels [I, 3, h, w].
    """

    hidden_TD: Tensor
    h_VBD: Tensor
    pixels: Tensor

    def token_means(self, batch: Batch) -> Tensor:
        """[V, B, D] float: the mean over the tokens of each sample in each view of the batch that was encoded."""
        parts = torch.split(self.hidden_TD, list(batch.views.lengths))[: len(batch.views.real_lengths)]
        return torch.stack([part.float().mean(0) for part in parts]).view(self.h_VBD.shape)


class MbsdPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading, as transformers does them."""

    config_class = BackboneConfig
    base_model_prefix = "mbsd"
    supports_gradient_checkpointing = True
    taken_over: TakenOver | Sources | None = None  # of what it was loaded from (`mbsd.model.load`, `.foreign`)
    _supports_sdpa = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', which makes every parameter it loads a moving one: freeze again what no loss reaches."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_unread()
        return loaded

    def freeze_unread(self) -> None:
        """Freeze the parameters that no loss of this head reaches, so that no optimizer decays them."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BertEmbeddings):
            module.position_ids.copy_(torch.arange(module.position_ids.shape[-1])[None])
            module.token_type_ids.zero_()
            for table in (module.position_embeddings, module.token_type_embeddings):
                init.normal_(table.weight, 0.0, self.config.position_range)


class Backbone(MbsdPreTrainedModel, ABC):
    """What every head stands on."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        config._attn_implementation = PACKED

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """All views of all samples in one forward; nothing is computed on padding and no view is computed alone.

        Any sample may lack its picture or its title: its tokens are absent.
        """

    @abstractmethod
    def freeze_for_tasks(self) -> None:
        """Freeze what no head on h reads, so that no optimizer decays it."""

    def image_stem(self) -> list[nn.Parameter]:
        """Of what image tokens alone go through before the trunk, which may have a learning rate of its own
        (`optim.image`); default: none."""
        return []

    @abstractmethod
    def pooler_parameters(self) -> list[nn.Parameter]:
        """Of what stands between the trunk and heads on h: trained at the heads' learning rate."""

    def image_targets(self, images: Tensor, pixels: Tensor, rows_Q: Tensor) -> Tensor:
        """What stage 1 predicts of Q patches: [Q, config.image_target_size].

        Args:
            images: `batch.Batch.images`.
            pixels: the same, normalised, in the model's precision.
            rows_Q: int64; the patches, of I * patches.
        """
        raise TypeError(f"a {self.config.architecture} has no targets for masked patches")

    def represent(self, batch: Batch) -> Tensor:
        """`encode`'s h alone [V, B, D]; a backbone that can leaves out what it does not depend on."""
        return self.encode(batch).h_VBD

    def forward(self, batch: Batch) -> Encoded:
        """See `encode`."""
        return self.encode(batch)


class Writer(Backbone):
    """Backbones that write text: the generative stage trains them."""

    @abstractmethod
    def decode(self, batch: Batch) -> Tensor:
        """Of each of the W tokens of `batch.generation`, the last hidden state, from which the token after it is
        predicted: [W, D]. It depends on what its sample shows in the view full and on the tokens up to it."""

    @abstractmethod
    def freeze_for_writing(self) -> None:
        """Freeze what `decode` does not read, so that no optimizer decays it."""


class OneStream(Backbone):
    """Backbones whose words and patches are tokens of one stream, through one trunk."""

    pooler: BertPooler
    has_mask_vector = False  # of its own, for masked patches; else the head of stage 1 brings one

    @abstractmethod
    def embed_text(self, batch: Batch) -> Tensor:
        """The N text tokens of a batch: [N, D]."""

    @abstractmethod
    def embed_images(self, pixels: Tensor, patch_source: Tensor | None = None) -> Tensor:
        """Normalised pixels [I, 3, h, w] -> image tokens [I * P, D]: the image side, all of it.

        Args:
            patch_source: of stage 1 (`batch.Masks`), given to a backbone that `has_mask_vector` alone.
        """

    def embed_masked_images(self, pixels: Tensor, patch_source: Tensor, mask_D: Tensor | None) -> Tensor:
        """`embed_images` with masked patches, of a backbone whose configuration has an `image_target_size`.

        Args:
            mask_D: what stands for a masked patch; None: the backbone's own.
        """
        assert self.has_mask_vector and mask_D is None, f"no {self.config.architecture} hides patches in this way"
        return self.embed_images(pixels, patch_source)

    @abstractmethod
    def run_trunk(self, tokens_TD: Tensor, plan: AttentionPlan) -> Tensor:
        """Embedded tokens [T, D] -> the last hidden states [T, D]; each sequence attends to itself alone."""

    def run_trunk_to_first(self, tokens_TD: Tensor, views: Views) -> Tensor:
        """The last hidden states of each sequence's first token alone [S, D], those that only fill up included."""
        return self.run_trunk(tokens_TD, AttentionPlan.of(views))[views.cu_seqlens[:-1].long()]

    def pooler_parameters(self) -> list[nn.Parameter]:
        """Of the pooler."""
        return list(self.pooler.parameters())

    def freeze_for_tasks(self) -> None:
        """The pooler, where h is [CLS] itself."""
        if self.config.representation == "cls":
            self.pooler.requires_grad_(False)

    def encode(self, batch: Batch, mask_D: Tensor | None = None) -> Encoded:
        """Text is embedded once, the image side runs once, and the packed trunk reads what each view shows of both.

        Args:
            mask_D: of a head that brings the vector of a masked patch.
        """
        tokens_TD, pixels = self._tokens(batch, mask_D)
        return self._encoded(tokens_TD, batch, pixels)

    def represent(self, batch: Batch) -> Tensor:
        """As `encode`'s h; of the last layer, what no [CLS] depends on is not computed."""
        return self._pooled(self.run_trunk_to_first(self._tokens(batch)[0], batch.views), batch)

    def _tokens(self, batch: Batch, mask_D: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The packed tokens [T, D], embedded, and the normalised pixels."""
        text_ND = self.embed_text(batch)
        pixels = normalise_pixels(batch.images, text_ND.dtype)
        source = batch.masks.patch_source if batch.masks is not None else None
        patches = self.embed_images(pixels) if source is None else self.embed_masked_images(pixels, source, mask_D)
        return torch.cat([text_ND, patches])[batch.views.source_T], pixels

    def _encoded(self, tokens_TD: Tensor, batch: Batch, pixels: Tensor) -> Encoded:
        """Of the packed tokens [T, D], embedded."""
        hidden_TD = self.run_trunk(tokens_TD, AttentionPlan.of(batch.views))
        return Encoded(hidden_TD, self._pooled(hidden_TD[batch.views.cu_seqlens[:-1].long()], batch), pixels)

    def _pooled(self, first_SD: Tensor, batch: Batch) -> Tensor:
        """h [V, B, D] of the first token of every sequence."""
        cls_SD = first_SD[: len(batch.views.real_lengths)]
        if self.config.representation == "pooled":
            cls_SD = self.pooler(cls_SD[:, None])
        return cls_SD.view(len(batch.views.names), batch.num_samples, -1)


class BertTrunk(OneStream):
    """Backbones whose stream is a BERT's: its embedding of words, its encoder, its pooler."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)

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

    def run_trunk_to_first(self, tokens_TD: Tensor, views: Views) -> Tensor:
        """BERT's encoder, whose last layer makes of all tokens but the first ones keys and values alone."""
        layers: Any = self.encoder.layer
        *before, last = layers
        plan, hidden = AttentionPlan.of(views), tokens_TD[None]
        for layer in before:
            hidden = layer(hidden, plan=plan)
        plan, rows_S = dataclasses.replace(plan, first_alone=True), views.cu_seqlens[:-1].long()
        if last.gradient_checkpointing and self.training:
            first: Tensor = checkpoint(_first_of_layer, last, hidden, rows_S, plan, use_reentrant=False)
        else:
            first = _first_of_layer(last, hidden, rows_S, plan)
        return first[0]


def _first_of_layer(layer: BertLayer, hidden: Tensor, rows_S: Tensor, plan: AttentionPlan) -> Tensor:
    """BertLayer.forward [1, T, D] -> [1, S, D] for the rows `rows_S` alone, which attend to their whole sequences."""
    of, first = layer.attention.self, hidden[:, rows_S]
    query, key, value = (
        projection(x).unflatten(-1, (-1, of.attention_head_size)).transpose(1, 2)
        for projection, x in ((of.query, first), (of.key, hidden), (of.value, hidden))
    )
    dropout = of.dropout.p if of.training else 0.0
    attended, _ = packed_attention(of, query, key, value, None, plan=plan, scaling=of.scaling, dropout=dropout)
    rows: Tensor = layer.feed_forward_chunk(layer.attention.output(attended.flatten(2), first))
    return rows


def embed_words(embeddings: BertEmbeddings, batch: Batch) -> Tensor:
    """BERT's embedding of the N text tokens of a batch: [N, D]."""
    embedded: Tensor = embeddings(
        input_ids=batch.input_ids_N[None],
        token_type_ids=batch.token_type_ids_N[None],
        position_ids=batch.position_ids_N[None],
    )[0]
    return embedded
