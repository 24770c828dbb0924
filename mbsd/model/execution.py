"""How a model is executed: activation checkpointing and torch.compile. Neither changes what it computes."""

from __future__ import annotations

from typing import Any

import torch

from mbsd.config.run import BaseConfig


def prepare_execution(model: Any, config: BaseConfig, backend: str = "inductor") -> None:
    """Do to `model` what model.activation_checkpointing and model.compile ask for.

    What is compiled are the parts of a layer around attention (GELU, dropout, LayerNorm and residuals become a kernel
    or two), one graph for all layers. Attention stays out: its sequences differ from batch to batch. Without
    data.token_bucket the number of tokens is a variable of the graph; with it, torch starts with the first size as it
    is.

    Args:
        model: a head of `mbsd.model.heads`, or the backbone.
        backend: of torch.compile.
    """
    if config.model.activation_checkpointing:
        checkpoint_layers(model)
    if config.model.compile:
        dynamic = True if config.data.token_bucket == 1 else None
        backbone: Any = getattr(model, "mbsd", model)
        for layer in backbone.encoder.layer:
            layer.feed_forward_chunk = torch.compile(layer.feed_forward_chunk, dynamic=dynamic, backend=backend)
            output = layer.attention.output
            output.forward = torch.compile(output.forward, dynamic=dynamic, backend=backend)


def checkpoint_layers(model: Any) -> None:
    """Let each encoder layer of `model` keep its input alone until the backward computes it again."""
    newer = getattr(model, "activation_checkpointing_enable", None)  # what newer versions call it
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
