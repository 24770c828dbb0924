"""A synthetic catalogue whose titles say no colour, tables for every task over it, and the small runs of these tests.

What an item's tone is (warm or not) can then only be seen, what its fabric is (natural or fine) is only said; every
table asks for both, so that no model of one modality can answer all of it.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.catalog.synthetic.words import COLOUR, VOCABULARY
from mbsd.catalog.tables import build_table
from tests.settings import ADAM, run_words, scoring_words

NUM_ITEMS = 799  # 199 of them in test: no multiple of 2 or 3
WARM = {"red", "orange", "yellow"}
NATURAL = {"cotton", "linen"}
POSITIVE = "warm natural"
SIZES = [
    "--data.image_size=32", "--data.num_workers=0", "--model.dropout=0.0", "--data.crop_scale=[1.0,1.0]",
]  # fmt: skip
DRAWN = [
    "--model.hidden_size=32", "--model.num_hidden_layers=2", "--model.num_attention_heads=2",
    "--model.intermediate_size=64", "--model.patchify_strides=[4,2]", "--model.patchify_channels=[16]",
    "--model.vocab_size=600", "--model.initializer_range=0.15",
]  # fmt: skip


@dataclass(frozen=True)
class Market:
    """The catalogue and its tables by kind."""

    folder: Path
    catalog: Path

    def table(self, kind: str) -> Path:
        return self.folder / f"{kind}.parquet"


def build_market(folder: Path) -> Market:
    words = VOCABULARY["en"]
    colours = {word for k, value in enumerate(words.values[COLOUR]) for word in (value, *words.colour_synonyms[k])}
    synthesise(folder / "raw", ShopOptions(num_items=NUM_ITEMS, seed=5, language="en", image_side=32), workers=1)
    items = []
    for line in (folder / "raw" / "items.jsonl").read_text().splitlines():
        record = json.loads(line)
        tone = "warm" if record["attributes"]["colour"] in WARM else "cold"
        fabric = "natural" if record["attributes"]["material"] in NATURAL else "fine"
        title = " ".join(word for word in record["title"].split() if word not in colours)
        items.append(Item(record["item_id"], title, record["image"], category=f"{tone} {fabric}"))
    market = Market(folder, folder / "catalog")
    build_catalog(items, folder / "raw" / "images", market.catalog, BuildOptions(workers=1, progress=False))
    catalog = Catalog(market.catalog)
    _build("categories", _category_rows(catalog), catalog, market)
    _build("attributes", _tag_rows(catalog), catalog, market)
    _build("alignment", _pair_rows(catalog), catalog, market)
    return market


def _build(kind: Any, rows: list[dict[str, Any]], catalog: Catalog, market: Market) -> None:
    source = market.folder / f"{kind}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_table(kind, source, catalog, market.table(kind))


def split_of(item: int) -> str:
    """A quarter of the items is for the test."""
    return ("train", "train", "train", "train", "train", "validation", "test", "test")[item % 8]


def _category_rows(catalog: Catalog) -> list[dict[str, Any]]:
    records = [catalog.record(item) for item in range(len(catalog))]
    return [{"item_id": r.item_id, "category": r.category, "split": split_of(k)} for k, r in enumerate(records)]


def _tag_rows(catalog: Catalog) -> list[dict[str, Any]]:
    rows = []
    for item in range(len(catalog)):
        record = catalog.record(item)
        tone, fabric = record.category.split()
        tags = (("tone:warm", tone == "warm", "image"), ("fabric:natural", fabric == "natural", "title"))
        for tag, holds, where in tags:
            row = {"item_id": record.item_id, "text": tag, "label": int(holds), "where": where, "split": split_of(item)}
            rows.append(row)
    return rows[:-1]  # the last one is of the test split: an odd number of rows


def _pair_rows(catalog: Catalog) -> list[dict[str, Any]]:
    """Each item beside one of its own category and one of another, both of its split."""
    rng = random.Random(0)
    records = [catalog.record(item) for item in range(len(catalog))]
    ids = defaultdict(list)
    for item, record in enumerate(records):
        ids[split_of(item), record.category].append(record.item_id)
    rows = []
    for item, record in enumerate(records):
        split = split_of(item)
        others = [i for (of, category), found in ids.items() for i in found
                  if of == split and category != record.category]  # fmt: skip
        for label, partners in ((1, ids[split, record.category]), (0, others)):
            rows.append(
                {"item_id_a": record.item_id, "item_id_b": rng.choice(partners), "label": label, "split": split}
            )
    return rows[:-2]  # both of the test split: with one pair that is drawn twice, an odd number of rows is left


def finetune_arguments(market: Market, kind: str, run: Path, steps: int, *more: object, **ds: Any) -> list[object]:
    """Of `launchers/finetune.py`, two ranks of 32."""
    words = ["--data.table", market.table(kind), *SIZES, *more]
    return run_words(run, market.catalog, steps, *words, **{"train_batch_size": 64, "optimizer": ADAM, **ds})


def evaluate_arguments(market: Market, kind: str, model: Path, out: Path, *more: object) -> list[object]:
    """Of `launchers/evaluate.py`."""
    return scoring_words(model, out, market.catalog, market.table(kind), "--bootstrap=100", *more)
