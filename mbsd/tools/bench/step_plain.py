"""The training step that one writes by hand with transformers' `BertModel`: rows padded to one length, and a mask.

It shares the weights of the packed model, so that both compute the same loss from the same numbers. Patchify, heads and
losses are written in the ordinary way; words and patches are predicted at masked positions alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from mbsd.batch import NO_WORD
from mbsd.model.heads import MbsdForMaskedModelling, MbsdForMatching
from mbsd.model.patchify import IMAGE_MEAN, IMAGE_STD, ResidualBlock
from mbsd.objectives.sdmi import sdmi_loss
from mbsd.tools.bench.step_batches import Padded


class Permute(nn.Module):
    """Channels from the second place to the last and back, for a LayerNorm over them."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """The same values with their dimensions in another order."""
        return x.permute(*self.order)


class PlainModel(nn.Module):
    """Backbone, image side and heads of `model` in padded form; its parameters are those of `model` themselves."""

    def __init__(self, model: MbsdForMaskedModelling | MbsdForMatching) -> None:
        super().__init__()
        backbone = model.mbsd
        names = BertConfig().to_dict().keys() & backbone.config.to_dict().keys() - {"model_type", "architectures"}
        config = BertConfig(**{name: getattr(backbone.config, name) for name in names})
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.bert: Any = BertModel(config)
        for part in ("embeddings", "encoder", "pooler"):
            theirs: Any = getattr(backbone, part)
            getattr(self.bert, part).load_state_dict(theirs.state_dict(keep_vars=True), assign=True)
        # The buffers that a state dict leaves out: positions and token types of BERT's embeddings.
        for name, buffer in backbone.embeddings.named_buffers():
            setattr(self.bert.embeddings, name, buffer)
        self.backbone: Any = backbone
        self.model = model
        layers: list[nn.Module] = []
        for layer in backbone.patchify.layers:
            is_norm = isinstance(layer, nn.LayerNorm)
            layers += [Permute(0, 2, 3, 1), _plain_norm(layer), Permute(0, 3, 1, 2)] if is_norm else [_plain(layer)]
        self.patchify = nn.Sequential(*layers)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised, in the weights' precision."""
        dtype = self.backbone.modality_2D.dtype
        mean, std = (images.new_tensor(x, dtype=torch.float32).view(1, 3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
        return ((images.float() / 255 - mean) / std).to(dtype)

    def text(self, view: Padded) -> Tensor:
        """[B, L, D]."""
        embedded: Tensor = self.bert.embeddings(input_ids=view.input_ids, token_type_ids=view.token_type_ids)
        placed: Tensor = embedded + self.backbone.modality_2D[0]
        return placed

    def image(self, images: Tensor, masked_BP: Tensor | None = None) -> Tensor:
        """[B, P, D]."""
        backbone = self.backbone
        patches = self.patchify(self.pixels(images)).flatten(2).transpose(1, 2)
        if masked_BP is not None:
            patches = torch.where(masked_BP[..., None], backbone.mask_D, patches)
        placed: Tensor = backbone.image_dropout(patches + backbone.image_position_PD)
        marked: Tensor = placed + backbone.modality_2D[1]
        return marked

    def encode(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states [B, T, D] of padded rows, attention_mask [B, T]."""
        hidden: Tensor = self.bert.encoder(
            tokens, attention_mask=attention_mask.bool()[:, None, None]
        ).last_hidden_state
        return hidden

    def view(self, view: Padded, masked_BP: Tensor | None = None) -> Tensor:
        """Last hidden states of a forward of its own."""
        tokens, mask = self.text(view), view.attention_mask
        if view.images is not None:
            patches = self.image(view.images, masked_BP)
            tokens = torch.cat([tokens, patches], dim=1)
            mask = torch.cat([mask, mask.new_ones(patches.shape[:2])], dim=1)
        return self.encode(tokens, mask)

    def concatenated(self, full: Padded, query: Padded) -> Tensor:
        """The three views as 3 B rows of one forward, all padded to the longest full view."""
        text, patches = self.text(full), self.image(_images(full))
        tokens = torch.cat([text, patches], dim=1).repeat(3, 1, 1)
        words, shown = full.attention_mask, full.attention_mask.new_ones(patches.shape[:2])
        of_query = F.pad(query.attention_mask, (0, words.shape[1] - query.attention_mask.shape[1]))
        rows = [(words, shown), (words, torch.zeros_like(shown)), (of_query, shown)]
        return self.encode(tokens, torch.cat([torch.cat(row, dim=1) for row in rows]))

    def matching_loss(self, hidden: list[Tensor], labels_B: Tensor) -> Tensor:
        """Stage 2, from the hidden states of the three views."""
        h_VBD = torch.stack([self.bert.pooler(states) for states in hidden])
        head: Any = self.model.match
        return sdmi_loss(head(h_VBD)[..., 0], h_VBD, labels_B).loss

    def masked_loss(self, view: Padded, labels_BL: Tensor, masked_BP: Tensor) -> Tensor:
        """Stage 1: the mean cross-entropy of masked words and the mean absolute error of masked patches' pixels."""
        model: Any = self.model
        hidden, images = self.view(view, masked_BP), _images(view)
        length, side = labels_BL.shape[1], model.config.patch_side
        chosen = labels_BL != NO_WORD
        words = model.word_transform(hidden[:, :length][chosen])
        logits = F.linear(words, self.bert.embeddings.word_embeddings.weight, model.word_bias)
        found = model.patch_decoder(hidden[:, length:][masked_BP])
        cut = F.unfold(self.pixels(images), side, stride=side).transpose(1, 2)[masked_BP]
        return F.cross_entropy(logits.float(), labels_BL[chosen]) + F.l1_loss(found.float(), cut.float())


def _images(view: Padded) -> Tensor:
    assert view.images is not None
    return view.images


def _plain(layer: nn.Module) -> nn.Module:
    if isinstance(layer, ResidualBlock):
        return layer  # written in the ordinary way as it is
    if not isinstance(layer, nn.Conv2d):
        return nn.ReLU()
    sizes: Any = (layer.kernel_size, layer.stride, layer.padding)
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, *sizes)
    conv.weight, conv.bias = layer.weight, layer.bias
    return conv


def _plain_norm(layer: Any) -> nn.Module:
    norm = nn.LayerNorm(layer.normalized_shape, eps=layer.eps)
    norm.weight, norm.bias = layer.weight, layer.bias
    return norm
