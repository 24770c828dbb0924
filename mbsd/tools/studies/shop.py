"""A synthetic shop for a study or the demo: catalogue, pairs mined from its log, attribute table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mbsd.tools.studies.commands import Command


@dataclass(frozen=True)
class ShopConfig:
    """`mbsd catalog synth`, in English with pictures of 64 pixels as the small configs have them."""

    items: int = 4800
    """Products of the shop."""
    seed: int = 0
    """Another seed draws another shop."""


@dataclass(frozen=True)
class Shop:
    """Paths of a shop's catalogue and tables."""

    catalog: Path
    pairs: Path
    attributes: Path


def shop_below(out: Path) -> Shop:
    """The paths of a shop below `out`."""
    return Shop(out / "catalog", out / "pairs.parquet", out / "attributes.parquet")


def shop_commands(out: Path, config: ShopConfig) -> list[Command]:
    """Draw a shop below `out`, build its catalogue, mine and derive its tables (`shop_below`)."""
    raw, shop, seed = out / "shop", shop_below(out), config.seed
    # In the few hundred steps of a demo or a study, negatives of another length than the purchases teach more.
    mined = ("--match", "none", "--seed", seed)
    return [
        Command("synth", raw, ("catalog", "synth", raw, "--items", config.items, "--seed", seed, "--language", "en",
                               "--image-side", 64)),
        Command("build", shop.catalog, ("catalog", "build", raw / "items.jsonl", "--images", raw / "images", "--out",
                                        shop.catalog, "--attribute-where", raw / "attribute_where.json")),
        Command("mine", shop.pairs, ("pairs", "mine", "--log", raw / "log.parquet", "--catalog", shop.catalog, "--out",
                                     shop.pairs, *mined)),
        Command("tags", shop.attributes, ("tables", "derive", "attributes", "--catalog", shop.catalog, "--out",
                                          shop.attributes, "--seed", seed)),
    ]  # fmt: skip
