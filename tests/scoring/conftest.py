"""A small shop and a contrastive model that nobody has trained, for all tests of vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.keys import write_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.data.text import build_tokenizer
from mbsd.model.heads import MbsdForContrastive, MbsdForMatching
from mbsd.model.mbsd import MbsdConfig

NUM_ITEMS = 90


@dataclass(frozen=True)
class Shop:
    """A catalogue with keys, a model of the contrastive stage, and one of stage 2."""

    catalog: Path
    model: Path
    matching: Path

    def words(self, out: Path, *more: object) -> list[object]:
        """Of evaluate.py: retrieval."""
        return [
            "--model", self.model, "--out", out, "--data.catalog", self.catalog, "--data.image_size=32",
            "--data.num_workers=0", "--task=retrieval", "--bootstrap=100", "--micro_batch=16", *more,
        ]  # fmt: skip


@pytest.fixture(scope="package")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Of 90 items every fifth has the next one's title, some lack a title, some a picture."""
    folder = tmp_path_factory.mktemp("shop")
    synthesise(folder / "raw", ShopOptions(NUM_ITEMS, 3, "en", image_side=32), workers=1)
    records = [json.loads(line) for line in (folder / "raw" / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    items = []
    for number, record in enumerate(records):
        title = records[number - 1]["title"] if number % 5 == 4 else record["title"]
        title, image = "" if number % 11 == 3 else title, None if number % 7 == 2 else record["image"]
        items.append(Item(record["item_id"], title, image, category=f"Goods > {record['attributes']['material']}"))
    build_catalog(items, folder / "raw" / "images", folder / "catalog", BuildOptions(workers=1, progress=False))
    catalog = Catalog(folder / "catalog")
    write_keys(catalog)
    tokenizer = build_tokenizer((catalog.title(item) for item in range(len(catalog))), 600, folder / "tokenizer")
    config = MbsdConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, image_size=32, patchify_strides=(4, 2), patchify_channels=(16,), projection_dim=16,
        initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, kind in (("model", MbsdForContrastive), ("matching", MbsdForMatching)):
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return Shop(folder / "catalog", folder / "model", folder / "matching")
