"""Identity keys: which items of a catalogue are the same product, as numbers that a batch can hold.

An item has a key of each kind, an int64 of 0 or more, or NO_KEY (-1). Two items are the same product where a key of any
kind is equal; that relation is not closed transitively, or one placeholder would chain thousands of products into one.

product       a column that the shop names: a catalogue, group or GTIN id
title         the title after NFKC, case and space folding: a text tower cannot tell such items apart
picture       the stored JPEG's bytes: an image tower cannot tell such items apart
near_picture  a perceptual hash of the picture; only where it is asked for

A title or picture that more than `max_same` items have is a placeholder ("no image", "T-shirt"): those items get no key
of that kind, and the report names it. Products have no limit: of a best-seller there are many.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from mbsd.catalog.identity.files import (
    KEYS_DIR,
    KINDS,
    NO_KEY,
    Int64,
    ItemKeys,
    JointKeys,
    open_keys,
    publish_keys,
)
from mbsd.catalog.identity.find import ProductColumn, picture_keys, product_keys, title_keys
from mbsd.catalog.identity.near import MAX_DISTANCE, near_picture_keys
from mbsd.catalog.identity.near_page import write_near_page
from mbsd.catalog.identity.report import KeysReport, as_json, kind_report, with_another, without_placeholders
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError
from mbsd.io.console import say
from mbsd.io.files import replace_text

__all__ = [
    "KINDS",
    "NEAR_FILE",
    "NO_KEY",
    "ItemKeys",
    "JointKeys",
    "KeyOptions",
    "KeysReport",
    "ProductColumn",
    "open_keys",
    "write_keys",
]

REPORT_FILE, NEAR_FILE = "report.json", "near_pictures.html"


@dataclass(frozen=True)
class KeyOptions:
    """How keys are found.

    Attributes:
        product: where an item's product is named; None: there are no keys of that kind.
        near_picture: whether pictures that look the same share a key too.
        near_distance: of the 64 bits of a perceptual hash, how many may differ between two that are linked.
        max_same: items that a title, picture or near_picture may have before it is a placeholder.
        workers: processes that hash pictures; 0 = one per core. They are started afresh, so a script that finds near
            pictures needs the usual `if __name__ == "__main__":`.

    Raises:
        UserError: a number is out of range.
    """

    product: ProductColumn | None = None
    near_picture: bool = False
    near_distance: int = 0
    max_same: int = 100
    workers: int = 0

    def __post_init__(self) -> None:
        if self.max_same < 2:
            raise UserError(f"max_same is {self.max_same}; expected 2 or more, for one item alone shares nothing")
        if not 0 <= self.near_distance <= MAX_DISTANCE:
            raise UserError(f"near_distance is {self.near_distance}; expected 0 to {MAX_DISTANCE} of 64 bits")
        if self.near_distance and not self.near_picture:
            raise UserError(f"near_distance is {self.near_distance}, but no near pictures are asked for; add them")


def write_keys(catalog: Catalog, options: KeyOptions | None = None) -> KeysReport:
    """Find the keys of a catalogue's items and write them to its folder `keys/`.

    Beside them lie `report.json` and, with near pictures, `near_pictures.html`, which shows what these join. Written
    again, they replace the old ones, which are valid until then.

    Raises:
        UserError: a product column that is not there, or a source that is not the catalogue's.
    """
    options = options or KeyOptions()
    damaged: dict[str, None] = {}  # a picture that two kinds read is named once

    def note(line: str) -> None:
        damaged[line] = None
        say(line)

    found: dict[str, Int64] = {}
    if options.product is not None:
        found["product"] = product_keys(catalog, options.product)
    found["title"], found["picture"] = title_keys(catalog), picture_keys(catalog, note)
    if options.near_picture:
        found["near_picture"] = near_picture_keys(catalog, options.near_distance, options.workers, note)
    keys: dict[str, Int64] = {}
    kinds = {}
    for kind, array in found.items():
        keys[kind], dropped = (array, []) if kind == "product" else without_placeholders(array, options.max_same)
        kinds[kind] = kind_report(catalog, keys[kind], dropped)
    report = KeysReport(len(catalog), with_another(keys), kinds, tuple(damaged))
    counts = {kind: {"items": it.items, "groups": it.groups} for kind, it in kinds.items()}
    publish_keys(catalog, keys, {"options": _described(options), "counts": counts})
    text = json.dumps(as_json(report), ensure_ascii=False, indent=2)
    replace_text(catalog.path / KEYS_DIR / REPORT_FILE, text + "\n")
    page = catalog.path / KEYS_DIR / NEAR_FILE
    if options.near_picture:
        write_near_page(page, catalog, keys, options.near_distance)
    else:
        page.unlink(missing_ok=True)  # one of older keys
    return report


def _described(options: KeyOptions) -> dict[str, object]:
    """What `keys.json` says of the options: all that the keys depend on."""
    described = asdict(options)
    described.pop("workers")
    if options.product is not None:
        source = options.product.items
        described["product"] |= {
            "items": None if source is None else source.name,
            "columns": dict(options.product.columns),
        }
    return described
