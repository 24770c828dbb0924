"""MBSD: one BERT reads a product's text and image patches in one stream (SPEC 1 and 2; dimension letters: batch.py).

`encode` runs any number of views of a batch in ONE forward: text is embedded once, images are patchified once, and
the packed encoder gathers from both what each view shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertForPreTraining, PreTrainedModel
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.errors import UserError
from mbsd.model.attention import PACKED, AttentionPlan
from mbsd.model.patchify import Patchify, normalise_pixels


@strict
class MbsdConfig(BertConfig):
    """BERT's configuration and what the image side adds; the defaults are the paper's (bert-base-chinese)."""

    model_type = "mbsd"

    vocab_size: int = 21128
    image_size: int = 224
    patchify_strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    patchify_channels: list[int] | tuple[int, ...] = (64, 192, 384)
    image_cls: bool = False
    representation: str = "pooled"
    match_head: str = "shared"
    num_labels_out: int = 1
    pair_head: str = "compare"
    task: str = ""
    position_range: float = 0.02

    @property
    def patch_side(self) -> int:
        """Pixels of a patch's side."""
        side = 1
        for stride in self.patchify_strides:
            side *= stride
        return side

    @property
    def num_patches(self) -> int:
        """Patches of one image, without the image [CLS]."""
        return (self.image_size // self.patch_side) ** 2

    @property
    def architecture(self) -> str:
        """As `model.architecture` names it."""
        return self.model_type.removeprefix("mbsd_")

    @property
    def known_views(self) -> tuple[str, ...]:
        """What the model can be shown."""
        return VIEW_NAMES

    @property
    def image_multiplications(self) -> int:
        """Of the network that makes tokens of one image."""
        channels, side, total = (3, *self.patchify_channels, self.hidden_size), self.image_size, 0
        for index, stride in enumerate(self.patchify_strides):
            side //= stride
            total += channels[index] * channels[index + 1] * stride * stride * side * side
        return total

    def backbone(self) -> Any:
        """A new backbone of this configuration: `encode(batch)` gives `Encoded`."""
        return MbsdModel(self)

    def require_views(self, views: Iterable[str], setting: str) -> None:
        """Raise UserError where one of `views`, which `setting` asks for, is none that the model reads."""
        unknown = [view for view in views if view not in self.known_views]
        if unknown:
            raise UserError(
                f"{setting}: the view {unknown[0]} is none of a {self.architecture}, which reads "
                f"{', '.join(self.known_views)} alone; ask for {list(self.known_views)}".replace("'", "")
            )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of a fine-tuned model: what its labels 0, 1, … mean (transformers' `id2label`)."""
        names: dict[Any, str] = self.id2label or {}
        return tuple(name for _, name in sorted((int(label), name) for label, name in names.items()))


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


class MbsdPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading, as transformers does them."""

    config_class = MbsdConfig
    base_model_prefix = "mbsd"
    supports_gradient_checkpointing = True
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
        elif isinstance(module, MbsdModel):
            for parameter in (module.image_position_PD, module.modality_2D):
                init.normal_(parameter, 0.0, self.config.position_range)
            init.normal_(module.mask_D, 0.0, self.config.initializer_range)
            if module.image_cls_D is not None:
                init.normal_(module.image_cls_D, 0.0, self.config.initializer_range)


class MbsdModel(MbsdPreTrainedModel):
    """The backbone.

    Parameters beside BERT's: the patchify network; `image_position_PD`, learned positions of the patches;
    `modality_2D`, added to text (0) and image (1) tokens; `mask_D`, which stands for a masked patch in stage 1; and,
    with `image_cls`, `image_cls_D` before the patches.
    """

    def __init__(self, config: MbsdConfig) -> None:
        super().__init__(config)
        config._attn_implementation = PACKED
        if config.image_size % config.patch_side:
            raise UserError(
                f"data.image_size={config.image_size} is not a multiple of the patch side {config.patch_side}, the "
                f"product of model.patchify_strides={list(config.patchify_strides)}; choose a multiple"
            )
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)
        self.patchify = Patchify(config.patchify_strides, config.patchify_channels, config.hidden_size)
        self.image_dropout = nn.Dropout(config.hidden_dropout_prob)
        patch_tokens = config.num_patches + int(config.image_cls)
        self.image_position_PD = nn.Parameter(torch.zeros(patch_tokens, config.hidden_size))
        self.modality_2D = nn.Parameter(torch.zeros(2, config.hidden_size))
        self.mask_D = nn.Parameter(torch.zeros(config.hidden_size))
        self.image_cls_D = nn.Parameter(torch.zeros(config.hidden_size)) if config.image_cls else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.embeddings.word_embeddings

    def embed_text(self, batch: Batch) -> Tensor:
        """BERT's embedding of the N text tokens, plus modality vector 0: [N, D]."""
        return embed_words(self.embeddings, batch) + self.modality_2D[0]

    def embed_images(self, pixels: Tensor, patch_source: Tensor | None) -> Tensor:
        """Patchified, masked (stage 1), placed and marked with modality vector 1: [I * P, D]."""
        features = self.patchify(pixels)
        images, patches, width = features.shape
        if patch_source is not None:
            features = torch.cat([features.reshape(-1, width), self.mask_D[None]])[patch_source]
            features = features.view(images, patches, width)
        if self.image_cls_D is not None:
            features = torch.cat([self.image_cls_D.expand(images, 1, width), features], dim=1)
        placed: Tensor = self.image_dropout(features + self.image_position_PD)
        return (placed + self.modality_2D[1]).reshape(-1, width)

    def freeze_for_tasks(self) -> None:
        """Freeze what no head on h reads: the mask vector (stage 1's) and, with `representation: cls`, the pooler."""
        self.mask_D.requires_grad_(False)
        if self.config.representation == "cls":
            self.pooler.requires_grad_(False)

    def encode(self, batch: Batch) -> Encoded:
        """All views of all samples in one forward; nothing is computed on padding and no view is computed alone."""
        pixels = normalise_pixels(batch.images, self.modality_2D.dtype)
        text_ND = self.embed_text(batch)
        patches = self.embed_images(pixels, batch.masks.patch_source if batch.masks is not None else None)
        tokens_TD = torch.cat([text_ND, patches])[batch.views.source_T]
        hidden_TD = self.encoder(tokens_TD[None], plan=AttentionPlan.of(batch.views)).last_hidden_state[0]
        cls_SD = hidden_TD[batch.views.cu_seqlens[: len(batch.views.real_lengths)].long()]
        if self.config.representation == "pooled":
            cls_SD = self.pooler(cls_SD[:, None])
        views = len(batch.views.names)
        return Encoded(hidden_TD, cls_SD.view(views, batch.num_samples, -1), pixels)

    def forward(self, batch: Batch) -> Encoded:
        """See `encode`."""
        return self.encode(batch)


def embed_words(embeddings: BertEmbeddings, batch: Batch) -> Tensor:
    """BERT's embedding of the N text tokens of a batch: [N, D]."""
    embedded: Tensor = embeddings(
        input_ids=batch.input_ids_N[None],
        token_type_ids=batch.token_type_ids_N[None],
        position_ids=batch.position_ids_N[None],
    )[0]
    return embedded


def load_backbone(config: MbsdConfig, backbone: str | Path) -> tuple[MbsdConfig, BertForPreTraining]:
    """A BERT checkpoint and `config` with that BERT's sizes.

    Raises:
        UserError: nothing of the kind at `backbone`, or a model of another kind.
    """
    advice = "give a folder with config.json and model.safetensors, or a hub name that this machine can reach"
    try:
        loaded: Any = BertForPreTraining.from_pretrained(backbone, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"model.backbone={backbone}: no BERT checkpoint could be loaded ({str(error).splitlines()[0]}); {advice}"
        ) from error
    bert: BertForPreTraining
    bert, info = loaded
    # What a checkpoint lacks transformers fills with random numbers and a warning. Only the heads may be lacking.
    missing = sorted(name for name in info["missing_keys"] if name.startswith(("bert.embeddings.", "bert.encoder.")))
    if missing:
        raise UserError(
            f"model.backbone={backbone}: not a BERT checkpoint, {len(missing)} of its weights are missing "
            f"({missing[0]}, ...); {advice}"
        )
    sizes: dict[str, Any] = {
        name: getattr(bert.config, name)
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "initializer_range",
        )
    }  # fmt: skip
    return type(config).from_dict({**config.to_dict(), **sizes}), bert


def copy_backbone(model: Any, bert: BertForPreTraining) -> None:
    """Give `model`, whose stream is a BERT's, the weights of a BERT; its image side keeps its initialisation."""
    model.embeddings.load_state_dict(bert.bert.embeddings.state_dict())
    model.encoder.load_state_dict(bert.bert.encoder.state_dict())
    assert bert.bert.pooler is not None, "BertForPreTraining always has one"
    model.pooler.load_state_dict(bert.bert.pooler.state_dict())


AutoConfig.register("mbsd", MbsdConfig)
AutoModel.register(MbsdConfig, MbsdModel)
