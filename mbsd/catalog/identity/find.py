"""Keys of product, title and picture: from a built catalogue and, for products, the source that it was built from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mbsd.catalog.identity.files import NO_KEY
from mbsd.catalog.layout import CATALOG_FILE, id_hash
from mbsd.catalog.queries import normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.catalog.record_files import Records, Row, format_of, some
from mbsd.catalog.several import Items
from mbsd.catalog.sources import item_id_of
from mbsd.errors import UserError

Int64 = NDArray[np.int64]
POSITIVE = 2**63 - 1
ID_COLUMNS = ("item_id", "title", "image")


@dataclass(frozen=True)
class ProductColumn:
    """Where the product of an item is named.

    Attributes:
        name: a column of `items`, or an attribute of the catalogue where `items` is None.
        items: the source that the catalogue was built from; JSONL or Parquet.
        columns: our name of a column of `items` (item_id, title, image) -> the source's, where it is another.

    Raises:
        UserError: another name than these in `columns`.
    """

    name: str
    items: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = next((name for name in self.columns if name not in ID_COLUMNS), None)
        if unknown is not None:
            raise UserError(f"column {unknown!r}; what names an item is {', '.join(ID_COLUMNS)}: give item_id=sku")


def text_keys(texts: list[str]) -> Int64:
    """Return the key of each text: 63 bits of its BLAKE2b; NO_KEY of an empty one."""
    return np.array([id_hash(text) & POSITIVE if text else NO_KEY for text in texts], dtype=np.int64)


def title_keys(catalog: Items, items: Path | None = None) -> Int64:
    """Return each item's key of its title in NFKC, case folded, with single spaces; NO_KEY without a title.

    Args:
        catalog: whose items they are.
        items: a source (JSONL or Parquet) or another catalogue with the same items, whose titles are taken; None: the
            catalogue's own.

    Raises:
        UserError: the source cannot be read, or lacks items of the catalogue.
    """
    if items is None:
        named = catalog.table()["title"].to_pylist()
    elif (items / CATALOG_FILE).is_file():
        table = Catalog(items).table()
        ids, titles = (table[name].to_pylist() for name in ("item_id", "title"))
        named = _of_items(catalog, items, ids, titles, "give one of the same items, with whole titles")
    else:
        named = _from_source(catalog, ProductColumn("title", items))
    return text_keys([normalise_query(title) for title in named])


def picture_keys(catalog: Items, say: Callable[[str], None]) -> Int64:
    """Return each item's key of its stored JPEG's bytes; NO_KEY without a picture.

    Where no other picture has its checksum and size, the bytes differ from all others' and are not read: the key is
    that of checksum and size. The others are read, for a checksum of 32 bits is not enough to tell millions apart. A
    damaged one has no key; `say` names it.
    """
    table = catalog.table()
    offset, size, crc32 = (table[name].to_numpy().astype(np.int64) for name in ("offset", "size", "crc32"))
    has_picture = offset >= 0
    mark = size << 32 | crc32
    keys = np.where(has_picture, mark, NO_KEY)  # a mark among digests of 63 bits: meets none of them
    shown = np.flatnonzero(has_picture)
    _, place, count = np.unique(mark[shown], return_inverse=True, return_counts=True)
    single = count[place] == 1
    for item in shown[~single].tolist():
        jpeg = catalog.whole_image(item, say)
        keys[item] = NO_KEY if jpeg is None else _digest(jpeg)
    return keys


def product_keys(catalog: Items, column: ProductColumn) -> Int64:
    """Return each item's key of the text in a column; NO_KEY where that is missing or empty.

    Raises:
        UserError: there is no such column or attribute, the source cannot be read, or lacks items of the catalogue.
    """
    return text_keys(_attribute(catalog, column.name) if column.items is None else _from_source(catalog, column))


def _attribute(catalog: Items, name: str) -> list[str]:
    """The value of an attribute of each item, "" where it has none."""
    encoded = catalog.table()["attributes"].combine_chunks().dictionary_encode()
    values = [json.loads(text).get(name) for text in encoded.dictionary.to_pylist()]
    if all(value is None for value in values):
        known = some(catalog.attribute_values()) or "none at all"
        raise UserError(
            f"catalogue {catalog.path}: no item has an attribute {name!r} (found {known}); give --items SOURCE, the "
            f"file that the catalogue was built from, if {name!r} is a column of it"
        )
    return [values[index] or "" for index in encoded.indices.to_pylist()]


def _from_source(catalog: Items, column: ProductColumn) -> list[str]:
    """The text of a column of the source, of each item; the first row counts where several have its id."""
    source = column.items
    assert source is not None
    if format_of(source) == "tsv":
        raise UserError(f"{source}: a TSV has no names of columns, so no {column.name!r}; give JSONL or Parquet")
    theirs = {name: name for name in ID_COLUMNS} | dict(column.columns)
    wanted = [*theirs.values(), column.name]
    rows = Records(source, wanted)
    ids, texts = [], []
    is_there = False
    for row in rows:
        is_there = is_there or column.name in row.record
        ids.append(_item_id(row, theirs))
        texts.append(row.text(column.name))
    if not is_there:
        found = some([name for name in wanted[:3] if name != column.name] + list(rows.unread))
        raise UserError(f"{source}: no column {column.name!r}; found {found}")
    advice = (
        "give the source that the catalogue was built from, and --column item_id=NAME where its ids have another name"
    )
    return _of_items(catalog, source, ids, texts, advice)


def _of_items(catalog: Items, source: Path, ids: list[str], texts: list[str], advice: str) -> list[str]:
    """The text of each item of the catalogue, of those that `source` has by their ids."""
    ids_of_catalog = catalog.table()["item_id"]
    place = pc.index_in(ids_of_catalog, value_set=pa.array(ids, pa.string()))
    if place.null_count:
        first = pc.index(place.is_null(), True).as_py()
        raise UserError(
            f"{source}: {place.null_count} of the {len(catalog)} items of catalogue {catalog.path} are not in it, the "
            f"first is {ids_of_catalog[first].as_py()!r}; {advice}"
        )
    return [texts[row] for row in place.to_pylist()]


def _item_id(row: Row, theirs: Mapping[str, str]) -> str:
    """As `mbsd catalog build` reads it."""
    return row.text(theirs["item_id"]) or item_id_of(row.text(theirs["title"]), row.text(theirs["image"]))


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") & POSITIVE
