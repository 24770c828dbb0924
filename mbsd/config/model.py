"""Settings: the network, and which of its settings each architecture reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mbsd.config.paths import PathText
from mbsd.config.ranges import at_least
from mbsd.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults are the paper's; a backbone or init_from brings its own sizes."""

    architecture: Literal["mbsd", "bert", "vit", "vilt", "fashionbert", "kaleido", "m6", "ofa", "two_tower"] = "mbsd"
    """mbsd, or a baseline to compare it with, which is trained and scored by the same commands (`mbsd.model.families`).
    bert reads the view text alone, vit the view image; two_tower has one of each, as CLIP, for the contrastive stage.
    """
    backbone: PathText | None = None
    """A BERT or RoBERTa checkpoint (local folder or hub name, such as bert-base-chinese) to start from; of vit and vilt
    a ViT or CLIP, of vilt also a ViLT. Of two_tower: the text tower's."""
    image_weights: PathText | None = None
    """Of fashionbert, kaleido and m6: a local file with torchvision's ResNet-50 weights (.pth or .safetensors); of ofa:
    ResNet-101's. Of two_tower: a ViT or CLIP checkpoint (local folder or hub name), as large as the text tower."""
    crop_size: int = at_least(1, default=224)
    """Of fashionbert, kaleido and m6: pixels of a crop's side as ResNet-50 sees it."""
    resnet_blocks: tuple[int, ...] | None = None
    """Blocks of the ResNet's stages: of fashionbert, kaleido and m6 four, or three where the last is left out; of ofa
    three. Default: ResNet-50's [3, 4, 6, 3]; ofa: ResNet-101's [3, 4, 23]. Fewer for small models."""
    vocab_size: int = 21128
    """The largest vocabulary built from a catalogue; the model takes the tokenizer's real size."""
    hidden_size: int = 768
    """Width of a token's vector."""
    num_hidden_layers: int = 12
    """Encoder layers; ofa has as many decoder layers."""
    num_attention_heads: int = 12
    """Attention heads of a layer; divides hidden_size."""
    intermediate_size: int = 3072
    """Width of a layer's feed-forward part."""
    dropout: float = 0.1
    """Of hidden states and of attention weights."""
    patchify: Literal["conv", "linear", "overlap"] = "conv"
    """conv: four non-overlapping convolutions (Fig. 3); linear: one (Table 6, row 5); overlap: convolutions that see
    beyond their stride's square, with residual blocks between them (after Xiao et al. 2021, "Early convolutions help
    transformers see better"): several times the compute, for small models and few pictures."""
    patchify_blocks: int = at_least(1, default=1)
    """Of overlap: residual blocks of two 3 x 3 convolutions after each convolution between the first and the last, so
    that patchify_strides needs three or more."""
    patchify_strides: tuple[int, ...] = (4, 2, 2, 2)
    """Of the convolutions; their product is a patch's side in pixels and divides data.image_size."""
    patchify_channels: tuple[int, ...] = (64, 192, 384)
    """Channels between the convolutions; the last gives hidden_size."""
    image_cls: bool = False
    """A learned image-[CLS] before the patches, as the released code has."""
    representation: Literal["pooled", "cls"] = "pooled"
    """h: dense + tanh of [CLS], or [CLS] itself."""
    initializer_range: float = 0.02
    """Deviation of weights and word vectors at the start; about sqrt(2 / (num_hidden_layers * hidden_size)) suits a
    narrow model. With twice as much all tokens of a sequence are nearly alike after its last layer, and little is
    learned."""
    position_range: float = 0.02
    """The same of positions, token types and modality vectors. BERT draws them as wide as words, and a small model then
    takes thousands of steps to separate a word's position from the word."""
    head_range: float = 0.02
    """Deviation of the weights of a new answer layer (stage 2, tasks). A small value starts every answer near one half,
    or all classes near each other; a narrow model learns many classes sooner from about 1 / sqrt(hidden_size)."""
    match_head: Literal["shared", "per_view"] = "shared"
    """One linear layer for the three views' logits (the paper's words in 3.6), or one each."""
    activation_checkpointing: bool = False
    """Keep each encoder layer's input alone and compute the layer again in the backward: less memory, about a third
    more compute, the same numbers."""
    compile: bool = False
    """torch.compile of the encoder layers' parts around attention; meant for GPUs, with data.token_bucket, so that it
    sees few sizes."""

    def check(self) -> None:
        """Raise UserError where a setting is set that this architecture, or this stem, does not read."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        if self.patchify != "overlap" and self.patchify_blocks != defaults["patchify_blocks"]:
            raise UserError(
                f"model.patchify_blocks={self.patchify_blocks}: model.patchify={self.patchify} has no residual blocks; "
                "remove it, or set model.patchify=overlap"
            )
        for name in _unread(self.architecture):
            value = getattr(self, name)
            if value != defaults[name]:
                shown = list(value) if isinstance(value, tuple) else value
                raise UserError(
                    f"model.{name}={shown}: model.architecture={self.architecture} does not read it; remove it"
                )
        stages = (3,) if self.architecture == "ofa" else (3, 4)
        if self.resnet_blocks is not None and (len(self.resnet_blocks) not in stages or min(self.resnet_blocks) < 1):
            counts = " or ".join(map(str, stages))
            raise UserError(
                f"model.resnet_blocks={list(self.resnet_blocks)}: expected {counts} numbers of 1 or more, one for each "
                f"stage of the ResNet of model.architecture={self.architecture}"
            )
        if self.patchify == "overlap" and len(self.patchify_strides) < 3:
            raise UserError(
                f"model.patchify=overlap: model.patchify_strides={list(self.patchify_strides)} has no convolution "
                "between the first and the last; give three strides or more"
            )


def _unread(architecture: str) -> tuple[str, ...]:
    """Settings of ModelConfig that mean nothing to an architecture."""
    of_crops = ("image_weights", "crop_size", "resnet_blocks")
    if architecture == "mbsd":
        return of_crops
    of_mbsd = (
        "patchify", "patchify_blocks", "patchify_channels", "image_cls", "match_head", "compile",
        "activation_checkpointing",
    )  # fmt: skip
    if architecture == "two_tower":
        of_bert = (name for name in of_mbsd if name != "activation_checkpointing")
        return (*of_bert, "crop_size", "resnet_blocks")
    if architecture in ("vit", "vilt"):  # their patches are as large as MBSD's
        return (*of_mbsd, *of_crops)
    if architecture == "ofa":
        return (*of_mbsd, "patchify_strides", "representation", "crop_size")
    crops = architecture in ("fashionbert", "kaleido", "m6")
    return (*of_mbsd, "patchify_strides", *(() if crops else of_crops))
