"""M6: FashionBERT's image input before a prefix language model (Lin et al. 2021); M6-base has 24 x 1024 layers.

What it understands is its prefix, in which every token attends to every other; h is the prefix's first token, [CLS],
pooled. What it writes follows the prefix in the same stream: `[CLS] title`, of token type 1, with positions of its own.
A written token attends to the prefix and to the tokens before it, and the prefix attends to itself alone, so that one
forward computes both (`mbsd.model.attention`). The published 327 M parameters are the transformer's with its pooler;
ResNet-50 comes on top of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from mbsd.batch import Batch
from mbsd.model.attention import AttentionPlan
from mbsd.model.backbone import Writer
from mbsd.model.baselines.fashionbert import FashionBert, FashionBertConfig


@strict
class M6Config(FashionBertConfig):
    """M6-base."""

    model_type = "mbsd_m6"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096

    def decoder_multiplications(self, lengths: Sequence[int], written: Sequence[int] | None) -> int:
        """Of the written tokens, which go through the same layers."""
        if written is None:
            return 0
        width = self.hidden_size
        weights = 4 * width * width + 2 * width * self.intermediate_size
        scores = sum(new * (old + new) for old, new in zip(lengths, written, strict=True))
        return int(self.num_hidden_layers * (weights * sum(written) + 2 * width * scores))

    def backbone(self) -> M6:
        """A new one."""
        return M6(self)


class M6(FashionBert, Writer):
    """M6; h is the pooled [CLS] of the prefix."""

    config_class = M6Config

    def decode(self, batch: Batch) -> Tensor:
        """Prefix and written tokens in one forward; the rows of the latter."""
        written = batch.generation
        assert written is not None, "what is to be written?"
        prefix_TD, _ = self._tokens(batch)
        written_WD = self.embeddings(
            input_ids=written.input_ids_W[None],
            token_type_ids=torch.ones_like(written.input_ids_W)[None],
            position_ids=written.position_ids_W[None],
        )[0]
        plan = AttentionPlan.of_prefix(batch.views, written)
        return self.run_trunk(torch.cat([prefix_TD, written_WD]), plan)[len(prefix_TD) :]

    def freeze_for_writing(self) -> None:
        """The pooler."""
        self.pooler.requires_grad_(False)
