"""A synthetic shop for a study or the demo: catalogue, pairs mined from its log, attribute table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mbsd.tools.studies.commands import Commands


@dataclass(frozen=True)
class ShopConfig:
    """`mbsd catalog synth`, in English with pictures of 64 pixels as the small configs have them."""

    items: int = 4800
    seed: int = 0
    """Another seed draws another shop."""


@dataclass(frozen=True)
class Shop:
    """Where it lies."""

    catalog: Path
    pairs: Path
    attributes: Path


def shop_below(out: Path) -> Shop:
    """The places of a shop below `out`."""
    return Shop(out / "catalog", out / "pairs.parquet", out / "attributes.parquet")


def draw_shop(commands: Commands, out: Path, config: ShopConfig) -> Shop:
    """Draw a shop below `out`, build its catalogue, mine and derive its tables; what is there already stays."""
    raw, shop, seed = out / "shop", shop_below(out), config.seed
    if not raw.exists():
        commands.mbsd("synth", "catalog", "synth", raw, "--items", config.items, "--seed", seed, "--language", "en",
                      "--image-side", 64)  # fmt: skip
    if not shop.catalog.exists():
        commands.mbsd("build", "catalog", "build", raw / "items.jsonl", "--images", raw / "images", "--out",
                      shop.catalog, "--attribute-where", raw / "attribute_where.json")  # fmt: skip
    if not shop.pairs.exists():
        commands.mbsd("mine", "pairs", "mine", "--log", raw / "log.parquet", "--catalog", shop.catalog, "--out",
                      shop.pairs, "--seed", seed)  # fmt: skip
    if not shop.attributes.exists():
        commands.mbsd("tags", "tables", "derive", "attributes", "--catalog", shop.catalog, "--out", shop.attributes,
                      "--seed", seed)  # fmt: skip
    return shop
