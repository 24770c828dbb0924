"""Small models that nobody has trained, in folders as runs write them."""

from __future__ import annotations

from pathlib import Path

import torch

from mbsd.catalog.reader import Catalog
from mbsd.data.text import build_tokenizer
from mbsd.model.heads import MbsdForContrastive, MbsdForMatching
from mbsd.model.mbsd import MbsdConfig


def save_untrained(catalog: Catalog, folder: Path) -> dict[str, Path]:
    """A model of the contrastive stage and one of stage 2, with a vocabulary of the catalogue's titles."""
    tokenizer = build_tokenizer((catalog.title(item) for item in range(len(catalog))), 600, folder / "tokenizer")
    config = MbsdConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, image_size=32, patchify_strides=(4, 2), patchify_channels=(16,), projection_dim=16,
        initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(0)
    kinds = {"contrastive": MbsdForContrastive, "matching": MbsdForMatching}
    for name, kind in kinds.items():
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in kinds}
