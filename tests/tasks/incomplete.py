"""A small catalogue in which titles and pictures are missing, and a contrastive model of it that nobody has trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.data.text import build_tokenizer
from mbsd.model.heads import MbsdForContrastive
from tests.model.reference import randomise, tiny_config

COUNT, DIM = 40, 6
NO_TITLE, NO_PICTURE = (3, 17), (4, 31)
SCRIPT = "<script>alert('dress & co')</script>"


def build_incomplete_catalog(folder: Path, seed: int = 5) -> Path:
    """Its raw pictures lie in folder/raw/images."""
    synthesise(folder / "raw", ShopOptions(num_items=COUNT, seed=seed, language="en", image_side=32), workers=1)
    records = [json.loads(line) for line in (folder / "raw" / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    items = []
    for number, record in enumerate(records):
        title = SCRIPT if number == 0 else record["title"]
        items.append(
            Item(
                record["item_id"],
                "" if number in NO_TITLE else title,
                "" if number in NO_PICTURE else record["image"],
                category=record["category"],
            )
        )
    build_catalog(items, folder / "raw" / "images", folder / "catalog", BuildOptions(workers=1, progress=False))
    return folder / "catalog"


def save_contrastive(folder: Path, titles: list[str], seed: int = 90) -> Path:
    """A model with projections as save_pretrained writes it, and its tokenizer beside it."""
    tokenizer = build_tokenizer(titles, 300, folder)
    config = tiny_config(
        vocab_size=len(tokenizer), max_position_embeddings=160, image_size=32, patchify_strides=(4, 2),
        patchify_channels=(8,), projection_dim=DIM,
    )  # fmt: skip
    model = MbsdForContrastive(config)
    randomise(model, seed)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
    model.save_pretrained(folder)
    return folder
