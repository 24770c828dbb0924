"""A synthetic behaviour log of any size: popularity of items and activity of users follow power laws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.sources import Item
from mbsd.io.files import replacing

CHUNK = 1 << 21
ROWS_PER_ITEM = 200
ROWS_PER_USER = 40
QUERIES_PER_ITEM = 6
NUM_CATEGORIES = 300
NUM_VALUES = {"colour": 24, "material": 16, "pattern": 12, "sleeve": 6, "style": 40}
FIRST_MICROSECOND = 1_709_251_200_000_000  # 2024-03-01
DAYS = 90


def write_log(folder: Path, *, rows: int, seed: int = 0) -> None:
    """Write `catalog` (a built catalogue without pictures) and `log.parquet` with `rows` rows below a folder.

    There are rows / 200 items with up to six queries each, and rows / 40 users. The item of popularity rank r occurs in
    proportion to r^(-2/3); so do users. One row in twenty is a purchase and one in ten a cart, a tenth of the clicks
    are on a random other item, and one query in twenty is in capitals. Equal `rows` and `seed` give equal logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_items = max(rows // ROWS_PER_ITEM, 50)
    rng = np.random.default_rng([seed, rows])
    category = (NUM_CATEGORIES * rng.random(num_items) ** 1.5).astype(np.int64)
    codes = {name: rng.integers(0, count, num_items) for name, count in NUM_VALUES.items()}
    if not (folder / "catalog").exists():
        build_catalog(_items(category, codes), None, folder / "catalog", BuildOptions(workers=1, progress=False))
    queries = _queries(rng, category, codes)
    schema = pa.schema([(name, pa.string()) for name in ("user", "query", "item", "kind")])
    schema = schema.append(pa.field("time", pa.timestamp("us")))
    log = folder / "log.parquet"
    with replacing(log) as beside, pq.ParquetWriter(beside, schema, compression="snappy") as writer:
        for start in range(0, rows, CHUNK):
            writer.write_table(_rows(rng, min(CHUNK, rows - start), rows, queries, num_items).cast(schema))


def _words(prefix: str, count: int) -> list[str]:
    """Words of one length, so that none is inside another."""
    return [f"{prefix}{chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(count)]


def _items(category: NDArray[np.int64], codes: dict[str, NDArray[np.int64]]) -> Iterator[Item]:
    categories = _words("category", NUM_CATEGORIES)
    values = {name: _words(name, count) for name, count in NUM_VALUES.items()}
    for k, kind in enumerate(category.tolist()):
        attributes = {name: values[name][int(codes[name][k])] for name in NUM_VALUES}
        yield Item(_item_id(k), f"title {k}", "", categories[kind], attributes)


def _item_id(item: int) -> str:
    return f"item-{item}"


def _queries(rng: np.random.Generator, category: NDArray[np.int64], codes: dict[str, NDArray[np.int64]]) -> Any:
    """Text of query q of item k, at place k x QUERIES_PER_ITEM + q: one or two of its terms, its category, a brand."""
    count = len(category) * QUERIES_PER_ITEM
    owner = np.repeat(np.arange(len(category)), QUERIES_PER_ITEM)
    words = [pa.array(_words(name, size)).take(pa.array(codes[name][owner])) for name, size in NUM_VALUES.items()]
    first = rng.integers(0, len(words), count)
    second = np.where(rng.random(count) < 0.6, rng.integers(0, len(words), count), first)
    kinds = pa.array(_words("category", NUM_CATEGORIES)).take(pa.array(category[owner]))
    brands = pa.array([f" brand{k}" for k in range(3000)] + [""]).take(
        pa.array(np.where(rng.random(count) < 0.3, rng.integers(0, 3000, count), 3000))
    )
    said = pc.choose(pa.array(first), *words)
    also = pc.if_else(pa.array(first == second), "", pc.binary_join_element_wise(" ", pc.choose(second, *words), ""))
    return pc.binary_join_element_wise(said, also, " ", kinds, brands, "")


def _rows(rng: np.random.Generator, count: int, rows: int, queries: Any, num_items: int) -> Any:
    item = (num_items * rng.random(count) ** 3).astype(np.int64)
    place = item * QUERIES_PER_ITEM + (QUERIES_PER_ITEM * rng.random(count) ** 2).astype(np.int64)
    user = (max(rows // ROWS_PER_USER, 50) * rng.random(count) ** 3).astype(np.int64)
    kind = rng.choice(3, count, p=[0.85, 0.1, 0.05])
    stray = (kind == 0) & (rng.random(count) < 0.1)
    seen = np.where(stray, rng.integers(0, num_items, count), item)
    text = queries.take(pa.array(place))
    micros = FIRST_MICROSECOND + rng.integers(0, DAYS * 86_400_000_000, count)
    return pa.table(
        {
            "user": pc.binary_join_element_wise("user-", pc.cast(pa.array(user), pa.string()), ""),
            "query": pc.if_else(pa.array(rng.random(count) < 0.05), pc.utf8_upper(text), text),
            "item": pc.binary_join_element_wise("item-", pc.cast(pa.array(seen), pa.string()), ""),
            "kind": pa.array(["click", "cart", "purchase"]).take(pa.array(kind)),
            "time": pa.array(micros.astype("datetime64[us]")),
        }
    )
