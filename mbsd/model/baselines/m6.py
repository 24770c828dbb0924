"""M6-base as far as its latency goes: FashionBERT's image input before a prefix language model of 24 x 1024 layers.

What it understands is its prefix, in which every token attends to every other, so one forward of the prefix is what it
costs. The published 327 M parameters are the transformer's; ResNet-50 comes on top of them.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from mbsd.model.baselines.fashionbert import FashionBert, FashionBertConfig


@strict
class M6Config(FashionBertConfig):
    """M6-base."""

    model_type = "mbsd_m6"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096

    def backbone(self) -> M6:
        """A new one."""
        return M6(self)


class M6(FashionBert):
    """The prefix of M6."""

    config_class = M6Config
