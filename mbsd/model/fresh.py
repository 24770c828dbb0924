"""The configuration of a model without weights, from a run's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.model.config import BackboneConfig
from mbsd.model.mbsd import MbsdConfig

# Settings of ModelConfig that shape the weights, by their name in MbsdConfig: a checkpoint brings its own.
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patchify_strides",
    "patchify_channels", "image_cls",
)  # fmt: skip


def fresh_config(
    model: ModelConfig, data: DataConfig, vocab_size: int, kind: type[BackboneConfig] = MbsdConfig, **more: Any
) -> BackboneConfig:
    """The sizes and behaviour that a run's settings give a model without weights.

    Args:
        model, data: of the run.
        vocab_size: words of the tokenizer.
        kind: the architecture's configuration; `more` are settings of its own, or of a head.
    """
    sizes = {name: getattr(model, name) for name in SIZES}
    if model.patchify == "linear":
        sizes |= {"patchify_strides": (math.prod(model.patchify_strides),), "patchify_channels": ()}
    if model.patchify == "overlap":
        sizes |= {"patchify_blocks": model.patchify_blocks}
    return kind(
        vocab_size=vocab_size,
        image_size=data.image_size,
        initializer_range=model.initializer_range,
        position_range=model.position_range,
        **sizes,
        **behaviour(model, more),
    )


def behaviour(model: ModelConfig, head: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of MbsdConfig that shape no backbone weight, so that a run may change them; `head` overrides them."""
    return {
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
        "representation": model.representation,
        "head_range": model.head_range,
        "match_head": model.match_head,
        "num_labels_out": 1,
        "pair_head": "compare",
        "mpm_target": "pixels",
        "cross_modal": False,
        "task": "",
        "id2label": {0: "0", 1: "1"},
        "projection_dim": 512,
        "projection": "per_view",
        "logit_scale_start": 1 / 0.07,
        "logit_bias": False,
        **head,
    }
