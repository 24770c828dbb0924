"""A small shop and a contrastive model that nobody has trained, for all tests of vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.keys import write_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from tests.untrained import save_untrained

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
    models = save_untrained(catalog, folder)
    return Shop(folder / "catalog", models["contrastive"], models["matching"])
