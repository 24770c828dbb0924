"""The heads over the backbone: masked modelling (stage 1), query-item matching (stage 2), classes and pairs (tasks)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from mbsd.batch import NO_PATCH, VIEW_NAMES, Batch, Masks
from mbsd.model.backbone import Encoded, MbsdPreTrainedModel
from mbsd.model.config import BackboneConfig
from mbsd.model.gradients import gradient_target_size, gradient_targets
from mbsd.model.mbsd import MbsdConfig

Words = tuple[Tensor, Tensor, Tensor]
"""What makes the logits of masked words: rows [K, D], word table [vocabulary, D] and bias [vocabulary]."""


@dataclass(frozen=True)
class CrossModalOutput:
    """What the vectors of single views predict of title and picture as a whole (`masking.cross_modal`).

    Attributes:
        title_logits: [B, vocabulary], of the view image.
        picture_values: view (full, text) -> [B, X], the gradients and colours of all patches of a picture.
        picture_targets: [I, X].
    """

    title_logits: Tensor
    picture_values: dict[str, Tensor]
    picture_targets: Tensor


@dataclass(frozen=True)
class MaskedOutput:
    """What stage 1 predicts, at masked positions only.

    Attributes:
        word_rows: [K, D]; with word_table [vocabulary, D] and word_bias they make the logits of the K words, which are
            left to the loss: all of them at once may be gigabytes. None, all three, where no words are asked for.
        patch_values, patch_target: [Q, config.image_target_size], predicted and true, of masked patches; None where
            none are asked for.
    """

    word_rows: Tensor | None
    word_table: Tensor | None
    word_bias: Tensor | None
    patch_values: Tensor | None
    patch_target: Tensor | None

    @property
    def word_logits(self) -> Tensor:
        """[K, vocabulary], all at once: to look at a few."""
        assert self.words is not None, "a model of patches alone predicts no words"
        return F.linear(*self.words)

    @property
    def words(self) -> Words | None:
        """What a loss over words takes: rows, table and bias."""
        if self.word_rows is None or self.word_table is None or self.word_bias is None:
            return None
        return self.word_rows, self.word_table, self.word_bias


@dataclass(frozen=True)
class MaskedAndWholeOutput(MaskedOutput):
    """And what it predicts of whole titles and pictures (`masking.cross_modal`)."""

    cross_modal: CrossModalOutput


@dataclass(frozen=True)
class ViewsOutput:
    """Logits and representations of each view: [V, B] (or [V, B, C]; of pairs [V, B/2]) and [V, B, D]."""

    logits: Tensor
    h_VBD: Tensor


class Head(MbsdPreTrainedModel):
    """A head on the backbone that its configuration names: any of `mbsd.model.families`."""

    config_class = MbsdConfig  # where a folder is loaded without a configuration
    answer_layer = ""  # name of the linear layer that gives the logits of a yes/no or class answer

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.mbsd: Any = config.backbone()

    def freeze_unread(self) -> None:
        """Freeze what no head on h reads."""
        self.mbsd.freeze_for_tasks()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module is getattr(self, self.answer_layer, None):
            init.normal_(module.weight, 0.0, self.config.head_range)


class WordHead(Head):
    """Predicts masked words, by a head as BERT's, whose projection onto the vocabulary is the word table."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.word_transform = BertPredictionHeadTransform(config)
        self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:  # where weights of another stage are loaded, its memory has not been written
            init.zeros_(self.word_bias)

    def words_of(self, encoded: Encoded, masks: Masks) -> Words:
        """What a loss over words takes: the vocabulary projection (tied to the word table) is of masked words alone."""
        word_table: Tensor = self.mbsd.get_input_embeddings().weight
        return self.word_transform(encoded.hidden_TD[masks.mlm_index_K]), word_table, self.word_bias


class PatchHead(Head):
    """Predicts the pixels (or gradients) of masked patches, where the backbone's image tokens are such patches.

    `mask_D` stands for a masked patch where the backbone has no such vector of its own, as MBSD has.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        size = config.image_target_size
        self.patch_decoder = None if size is None else nn.Linear(config.hidden_size, size)
        self.mask_D: nn.Parameter | None = None
        if size is not None and not self.mbsd.has_mask_vector:
            self.mask_D = nn.Parameter(torch.zeros(config.hidden_size))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.mask_D is not None:
            init.normal_(self.mask_D, 0.0, self.config.initializer_range)

    def freeze_unread(self) -> None:
        """Stage 1 asks for single tokens, and for the pooled [CLS] with `cross_modal` alone."""
        if not self.config.cross_modal or self.config.representation == "cls":
            self.mbsd.pooler.requires_grad_(False)

    def patches_of(self, encoded: Encoded, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """`MaskedOutput.patch_values` and `patch_target`."""
        if self.patch_decoder is None:
            return None, None
        assert batch.masks is not None
        values: Tensor = self.patch_decoder(encoded.hidden_TD[batch.masks.mpm_index_Q])
        patch_Q = batch.masks.mpm_patch_Q
        target: Tensor = self.mbsd.image_targets(batch.images, encoded.pixels, patch_Q.clamp_min(0))
        if batch.masks.num_fill_patches:  # equal to the prediction: no loss, no gradient
            target = torch.where((patch_Q == NO_PATCH)[:, None], values.detach(), target)
        return values, target


class CrossModalHead(nn.Module):
    """On h: of the view image the words of the title, by a head as that of masked words; of the views full and text the
    gradients and colours of the picture.

    The view full is not asked for the title: it would copy the words that it shows, and be of little use for pictures.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.side, self.num_patches = config.patch_side, config.num_patches
        self.title_transform = BertPredictionHeadTransform(config)
        self.title_bias = nn.Parameter(torch.zeros(config.vocab_size))
        patch_size = gradient_target_size(config.patch_side, "masking.cross_modal=true")
        self.picture = nn.Linear(config.hidden_size, config.num_patches * patch_size)

    def forward(self, h_of: dict[str, Tensor], word_table: Tensor, images: Tensor) -> CrossModalOutput:
        """Of the vectors h [B, D] by their views, and the pictures as the model is given them."""
        patches = torch.arange(images.shape[0] * self.num_patches, device=images.device)
        return CrossModalOutput(
            F.linear(self.title_transform(h_of["image"]), word_table, self.title_bias),
            {v: self.picture(h_of[v]) for v in ("full", "text")},
            gradient_targets(images, self.side, patches).view(images.shape[0], self.picture.out_features),
        )


class MbsdForMaskedModelling(PatchHead, WordHead):
    """Stage 1: the word at each masked token, the pixels (or gradients) of each masked patch (Eq. 1, 2).

    Of a backbone whose image tokens are no patches, or that has none, words alone. With `cross_modal`, whole titles and
    pictures besides.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.cross_modal = CrossModalHead(config) if config.cross_modal else None
        self.freeze_unread()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CrossModalHead):
            init.zeros_(module.title_bias)

    def forward(self, batch: Batch) -> MaskedOutput:
        """Predictions are made at the masked positions alone; with `cross_modal`, of each view's vector too."""
        assert batch.masks is not None, "stage 1 needs masks"
        encoded = self.mbsd.encode(batch, self.mask_D)
        words, patches = self.words_of(encoded, batch.masks), self.patches_of(encoded, batch)
        if self.cross_modal is None:
            return MaskedOutput(*words, *patches)
        h_of = dict(zip(batch.views.names, encoded.h_VBD, strict=True))
        return MaskedAndWholeOutput(*words, *patches, self.cross_modal(h_of, words[1], batch.images))


class MbsdForMaskedPatches(PatchHead):
    """Stage 1 of a backbone that reads pictures alone: masked patches."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.freeze_unread()
        self.post_init()

    def forward(self, batch: Batch) -> MaskedOutput:
        """Predictions are made at the masked positions alone."""
        assert batch.masks is not None, "stage 1 needs masks"
        encoded = self.mbsd.encode(batch, self.mask_D)
        return MaskedOutput(None, None, None, *self.patches_of(encoded, batch))


@dataclass(frozen=True)
class PairedOutput:
    """`words` as of `MaskedOutput`, and logits [V, B] of whether a picture belongs to a title."""

    words: Words
    logits: Tensor


class MbsdForPairedPictures(WordHead):
    """Masked words, and on h whether the picture is the title's own (ViLT's pre-training)."""

    answer_layer = "match"

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.match = nn.Linear(config.hidden_size, 1)
        self.freeze_unread()
        self.post_init()

    def forward(self, batch: Batch) -> PairedOutput:
        """Both from one forward of the batch's views."""
        assert batch.masks is not None, "words are masked"
        encoded = self.mbsd.encode(batch)
        return PairedOutput(self.words_of(encoded, batch.masks), self.match(encoded.h_VBD)[..., 0])


class MbsdForMatching(Head):
    """Stage 2: does the query hold for the item, as each view sees it (Fig. 4)."""

    answer_layer = "match"

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.match = nn.Linear(config.hidden_size, 1 if config.match_head == "shared" else len(VIEW_NAMES))
        self.freeze_unread()
        self.post_init()

    def forward(self, batch: Batch) -> ViewsOutput:
        """Logits [V, B] and representations [V, B, D] of the batch's views."""
        h_VBD = self.mbsd.represent(batch)
        logits = self.match(h_VBD)
        if self.config.match_head == "shared":
            return ViewsOutput(logits[..., 0], h_VBD)
        own = [logits[v, :, VIEW_NAMES.index(name)] for v, name in enumerate(batch.views.names)]
        return ViewsOutput(torch.stack(own), h_VBD)


@dataclass(frozen=True)
class EmbedsOutput:
    """Unit vectors [B, E], float32, of the views text and image, comparable with each other.

    A sample without a title or a picture has a vector of what its view shows then, which says nothing of it.
    """

    text_embeds: Tensor
    image_embeds: Tensor


class MbsdForContrastive(Head):
    """The contrastive stage: title and picture in one space (CLIP's names).

    `logit_scale` is the logarithm of what similarities are multiplied by, `logit_bias` is added to them (sigmoid loss
    only). Both have shape [1]: some sharded savers break on scalars.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        own = config.projection == "per_view"
        self.image_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False) if own else None
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1)) if config.logit_bias else None
        self.freeze_unread()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module in (self.text_projection, self.image_projection):
            init.normal_(module.weight, 0.0, self.config.hidden_size**-0.5)
        elif module is self:
            init.constant_(self.logit_scale, math.log(self.config.logit_scale_start))
            if self.logit_bias is not None:
                init.constant_(self.logit_bias, -10.0)  # SigLIP's: almost every pair is a negative

    def forward(self, batch: Batch) -> EmbedsOutput:
        """The batch's views text and image, in one packed forward."""
        h_VBD = self.mbsd.represent(batch)
        text, image = (batch.views.names.index(name) for name in ("text", "image"))
        return EmbedsOutput(self.project(h_VBD[text], "text"), self.project(h_VBD[image], "image"))

    def project(self, h_BD: Tensor, view: str) -> Tensor:
        """h of the view text or image -> unit vectors [B, E], in float32 at least whatever the weights are."""
        layer = self.text_projection
        if view == "image" and self.image_projection is not None:
            layer = self.image_projection
        precise = torch.promote_types(h_BD.dtype, torch.float32)
        return F.normalize(F.linear(h_BD.to(precise), layer.weight.to(precise)), dim=-1, eps=1e-6)


class MbsdForClassification(Head):
    """A linear layer on h: C classes, or one logit for a yes/no question (C = 1)."""

    answer_layer = "classifier"

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels_out)
        self.freeze_unread()
        self.post_init()

    def forward(self, batch: Batch) -> ViewsOutput:
        """Logits [V, B, C] ([V, B] where C is 1) and representations [V, B, D]."""
        h_VBD = self.mbsd.represent(batch)
        logits = self.classifier(self.dropout(h_VBD))
        return ViewsOutput(logits[..., 0] if self.config.num_labels_out == 1 else logits, h_VBD)


class MbsdForAlignment(Head):
    """Are two items one product: one encoder for both, a linear layer on both vectors (SPEC 7).

    `pair_head` concat: on [h_s; h_t], as the paper has it: f(s) + g(t), whose sum over (a, a), (b, b) is that over
    (a, b), (b, a), so that not all same pairs can rank above all others. compare: on
    [h_s; h_t; |h_s - h_t|; h_s * h_t], the features of Conneau et al. (2017).
    """

    answer_layer = "pair"

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.pair = nn.Linear(config.hidden_size * (4 if config.pair_head == "compare" else 2), 1)
        self.freeze_unread()
        self.post_init()

    def forward(self, batch: Batch) -> ViewsOutput:
        """Logits [V, B/2] of the pairs (sample b, sample B/2 + b) and representations [V, B, D] of the items."""
        h_VBD = self.mbsd.represent(batch)
        first, second = self.dropout(h_VBD).chunk(2, dim=1)
        features = [first, second]
        if self.config.pair_head == "compare":
            features += [(first - second).abs(), first * second]
        return ViewsOutput(self.pair(torch.cat(features, dim=-1))[..., 0], h_VBD)
