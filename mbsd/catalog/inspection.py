"""What is in a built catalogue, in numbers: the content of `mbsd catalog inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from mbsd.catalog.layout import QUARANTINE_FILE, SPLITS, reason_of
from mbsd.catalog.reader import Catalog


def inspect_catalog(path: Path | str) -> dict[str, Any]:
    """Return counts, what was left out, splits, quantiles of lengths and sizes, attributes and ten titles; JSON."""
    catalog = Catalog(path)
    table = catalog.table()
    has_image = pc.greater_equal(table["offset"], 0)
    with_image = table.filter(has_image)
    attributes = catalog.attribute_values()
    samples = [catalog.title(int(i)) for i in np.linspace(0, len(catalog) - 1, min(10, len(catalog))).astype(int)]
    return {
        "path": str(catalog.path),
        "fingerprint": catalog.fingerprint,
        "items": len(catalog),
        "with_image": with_image.num_rows,
        "without_title": pc.sum(pc.equal(table["title"], "")).as_py(),
        "quarantined": catalog.meta["quarantined"],
        "quarantine_reasons": _reasons(catalog.path / QUARANTINE_FILE),
        "repeated_item_ids": catalog.meta["repeated_item_ids"],
        "same_pictures": catalog.meta["same_pictures"],
        "categories": len(set(pc.unique(table["category"]).to_pylist()) - {""}),
        "splits": {split: len(catalog.indices(split)) for split in SPLITS},
        "title_characters": _quantiles(pc.utf8_length(table["title"]).to_numpy()),
        "image_width": _quantiles(with_image["width"].to_numpy()),
        "image_height": _quantiles(with_image["height"].to_numpy()),
        "image_bytes": _quantiles(with_image["size"].to_numpy()),
        "attributes": {name: len(values) for name, values in attributes.items()},
        "attribute_where": catalog.attribute_where,
        "sample_titles": samples,
        "bytes": sum(file.stat().st_size for file in catalog.path.rglob("*") if file.is_file()),
    }


def _reasons(quarantine: Path) -> dict[str, int]:
    """Reason, numbers replaced by N -> how often it occurs; the ten most frequent."""
    with quarantine.open(encoding="utf-8") as lines:
        return dict(Counter(map(reason_of, lines)).most_common(10))


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    if len(values) == 0:
        return {}
    points = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: float(np.quantile(values, point)) for name, point in points.items()}
