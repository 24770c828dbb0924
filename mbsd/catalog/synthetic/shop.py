"""A synthetic shop: items with titles and pictures, and the behaviour log of its visitors.

It is small enough for a demo and fit to measure with: some attributes are in pictures alone, some in titles alone (see
`words`), and every purchase is of an item for which all terms of the query hold.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbsd.catalog.layout import id_in_split_of
from mbsd.catalog.synthetic.duplicates import in_another_guise, origins_of, retold
from mbsd.catalog.synthetic.pictures import draw_item
from mbsd.catalog.synthetic.words import BOTTOMS, COLLAR, COLOUR, SLEEVE, VOCABULARY, WHERE_SEEN, Language, Vocabulary
from mbsd.errors import UserError
from mbsd.io.files import replacing

CHUNK = 128
ABSENT = -1  # the code of an attribute that an item does not have
FIRST_DAY = np.datetime64("2024-03-01T00:00:00", "us")
DAYS = 90
ROWS_PER_ITEM = 17  # rows of an item are Pareto with exponent 2 from this on: their mean is twice this
MAX_ROWS_PER_ITEM = 400
QUERY_TERMS = (0.45, 0.35, 0.15, 0.05)
# Shoppers ask for what can be seen: the smaller the key, the more often the attribute is a term of a query.
KEY_OF_ATTRIBUTE = np.array([{"image": 0.5, "both": 1.0, "title": 2.0}[where] for where in WHERE_SEEN])


@dataclass(frozen=True)
class SyntheticSummary:
    """How much was written, and where."""

    items: int
    log_rows: int
    items_file: Path
    images: Path
    log_file: Path
    attribute_where_file: Path


@dataclass(frozen=True)
class ShopOptions:
    """What is drawn.

    Attributes:
        num_items: number of items.
        seed: 0 or more.
        language: that of titles, attributes and queries.
        image_side: side of the square pictures in pixels.
        duplicates: share of the items that are the product of another one, sold by another shop (see `duplicates`).
            Above 0, every item has a `product_id`, which is equal where the product is.
        query_terms: shares of the queries with one, two, three and four terms beside the category's word.

    Raises:
        UserError: a value makes no sense.
    """

    num_items: int
    seed: int
    language: Language = "zh"
    image_side: int = 224
    duplicates: float = 0.0
    query_terms: tuple[float, ...] = QUERY_TERMS

    def __post_init__(self) -> None:
        if self.language not in VOCABULARY:
            raise UserError(f"language {self.language!r}; expected one of {', '.join(VOCABULARY)}")
        for name, least in (("num_items", 1), ("image_side", 32), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.duplicates < 1:
            raise UserError(f"duplicates is {self.duplicates:g}; expected a share of the items, from 0 to below 1")
        shares = self.query_terms
        if len(shares) != len(QUERY_TERMS) or not min(shares) >= 0 or not math.isclose(sum(shares), 1):
            raise UserError(
                f"query_terms are {', '.join(f'{share:g}' for share in shares)}; expected the shares of queries with "
                "1, 2, 3 and 4 terms, of which the sum is 1"
            )


@dataclass(frozen=True)
class _Drawn:
    """An item before it is written; the codes are indices in `Vocabulary.values`, or `ABSENT`."""

    item_id: str
    category: int
    codes: tuple[int, ...]
    words: tuple[str, ...]


def synthesise(out: Path, options: ShopOptions, workers: int = 0) -> SyntheticSummary:
    """Write `items.jsonl`, `images/*.jpg`, `log.parquet` and `attribute_where.json` below `out`.

    Item k depends on (seed, k, language) alone, its picture on (seed, k); a duplicate on its original too, of which
    there are the more, the fewer duplicates are drawn. The log (columns user, query, item, kind, time) depends on all
    items; it has about 34 rows for each.

    Args:
        out: a folder that does not exist or is empty.
        options: what is drawn.
        workers: processes that draw; 0 = one per core; 1 = this process.

    Raises:
        UserError: `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there and not an empty folder; choose another name or remove it")
    origins = origins_of(options.num_items, options.duplicates, options.seed)
    with replacing(out) as beside:
        (beside / "images").mkdir(parents=True)
        drawn = [_draw_words(options, item, origin) for item, origin in enumerate(origins)]
        _write_images(beside / "images", origins, options, workers or os.cpu_count() or 1)
        words = VOCABULARY[options.language]
        with (beside / "items.jsonl").open("w", encoding="utf-8") as file:
            for k, item in enumerate(drawn):
                attributes = {
                    name: values[code]
                    for name, values, code in zip(words.names, words.values, item.codes, strict=True)
                    if code != ABSENT
                }
                record = {
                    "item_id": item.item_id,
                    "title": words.separator.join(item.words),
                    "category": words.categories[item.category],
                    "attributes": attributes,
                    "image": image_name(k),
                }
                if options.duplicates:
                    record["product_id"] = f"product-{origins[k]:07d}"
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        where = dict(zip(words.names, WHERE_SEEN, strict=True))
        (beside / "attribute_where.json").write_text(json.dumps(where, ensure_ascii=False, indent=2) + "\n", "utf-8")
        log = _log(drawn, options)
        pq.write_table(log, beside / "log.parquet", compression="zstd")
    return SyntheticSummary(
        items=options.num_items,
        log_rows=log.num_rows,
        items_file=out / "items.jsonl",
        images=out / "images",
        log_file=out / "log.parquet",
        attribute_where_file=out / "attribute_where.json",
    )


def item_id(item: int) -> str:
    """Return the id of item number `item`; a duplicate's may go on behind it."""
    return f"syn-{item:07d}"


def image_name(item: int) -> str:
    """Return the name below `images/` of the picture of item number `item`."""
    return f"{item:07d}.jpg"


def _codes(seed: int, item: int) -> tuple[random.Random, int, tuple[int, ...]]:
    """Return (generator, category, codes) of an item; the generator's next numbers draw the picture."""
    rng = random.Random(f"synthetic\t{seed}\t{item}")
    words = VOCABULARY["en"]
    category = rng.randrange(len(words.categories))
    codes = [rng.randrange(len(values)) for values in words.values]
    if category in BOTTOMS:
        codes[COLLAR] = codes[SLEEVE] = ABSENT
    return rng, category, tuple(codes)


def _draw_words(options: ShopOptions, item: int, origin: int) -> _Drawn:
    """An item, all but its picture; `origin` is its own number, or that of the item whose product it is."""
    seed, words = options.seed, VOCABULARY[options.language]
    _, category, codes = _codes(seed, origin)
    title = _title(seed, origin, category, codes, words)
    if item == origin:
        return _Drawn(item_id(item), category, codes, title)
    again = random.Random(f"title again\t{seed}\t{item}")
    return _Drawn(id_in_split_of(item_id(origin), item_id(item)), category, codes, retold(again, title, words))


def _title(seed: int, item: int, category: int, codes: tuple[int, ...], words: Vocabulary) -> tuple[str, ...]:
    rng = random.Random(f"title\t{seed}\t{item}")
    shown = []
    for attribute, code in enumerate(codes):
        if code == ABSENT or WHERE_SEEN[attribute] == "image":
            continue
        synonym = attribute == COLOUR and rng.random() < 0.25
        shown.append(rng.choice(words.colour_synonyms[code]) if synonym else words.values[attribute][code])
    shown += rng.sample(words.adjectives, rng.randint(0, 1))
    rng.shuffle(shown)
    season = f"{rng.choice(range(2020, 2025))}{words.separator}{rng.choice(words.seasons)}"
    opening = [rng.choice(words.brands)]
    if rng.random() < 0.5:
        opening.insert(rng.randint(0, 1), season)
    if rng.random() < 0.5:
        opening.append(rng.choice(words.genders))
    return (*opening, *shown, words.categories[category])


def _write_images(folder: Path, origins: list[int], options: ShopOptions, workers: int) -> None:
    every = list(enumerate(origins))
    chunks = [every[start : start + CHUNK] for start in range(0, len(every), CHUNK)]
    if workers == 1 or len(chunks) == 1:
        for chunk in chunks:
            _draw_images(folder, chunk, options)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
        for future in [pool.submit(_draw_images, folder, chunk, options) for chunk in chunks]:
            future.result()


def _draw_images(folder: Path, items: list[tuple[int, int]], options: ShopOptions) -> None:
    """Draw the pictures of (item, origin)."""
    for item, origin in items:
        rng, category, codes = _codes(options.seed, origin)
        jpeg = draw_item(rng, codes, category, options.image_side)
        if item != origin:
            jpeg = in_another_guise(random.Random(f"picture again\t{options.seed}\t{item}"), jpeg)
        (folder / image_name(item)).write_bytes(jpeg)


def _log(drawn: list[_Drawn], options: ShopOptions) -> Any:
    """Return the behaviour log as a pyarrow Table.

    Each item has a few queries: 1 to 4 of its own terms, most often of attributes that can be seen, and its category's
    word. Popular items have more queries, and their first ones are asked most. In 45 % of the rows the item is bought;
    the rest are clicks, 30 % of them on an item for which a term of the query does not hold.
    """
    rng = np.random.default_rng([options.seed, len(drawn)])
    codes = np.array([item.codes for item in drawn], dtype=np.int64)  # [items, attributes]
    category = np.array([item.category for item in drawn], dtype=np.int64)
    num_rows = np.minimum(ROWS_PER_ITEM * rng.uniform(1e-6, 1, len(drawn)) ** -0.5, MAX_ROWS_PER_ITEM).astype(np.int64)
    num_queries = np.minimum(2 + num_rows // 14, 10)
    first_query = np.cumsum(num_queries) - num_queries

    owner = np.repeat(np.arange(len(drawn)), num_queries)
    # The terms with the lowest random keys are in the query; absent attributes sort last and are never terms.
    present = codes[owner] != ABSENT
    keys = np.where(present, rng.random(present.shape) * KEY_OF_ATTRIBUTE, np.inf)
    num_terms = np.minimum(rng.choice([1, 2, 3, 4], p=options.query_terms, size=len(owner)), present.sum(axis=1))
    asked = np.argsort(np.argsort(keys, axis=1), axis=1) < num_terms[:, None]  # [queries, attributes]
    terms = np.where(asked, codes[owner], ABSENT)

    item = np.repeat(np.arange(len(drawn)), num_rows)
    query = first_query[item] + (num_queries[item] * rng.random(len(item)) ** 1.5).astype(np.int64)
    bought = rng.random(len(item)) < 0.45
    stray = ~bought & (rng.random(len(item)) < 0.30)
    item = np.where(stray, _strangers(rng, terms[query], category[owner[query]], codes, category, item), item)
    # Few enough visitors that a query has several buyers, enough of them that a buyer seldom counts twice.
    user = rng.integers(0, max(50, len(drawn) // 2), len(item))
    time = FIRST_DAY + rng.integers(0, DAYS * 86_400_000_000, len(item)).astype("timedelta64[us]")

    distinct, place = np.unique(np.column_stack([category[owner], terms]), axis=0, return_inverse=True)
    texts = pa.array(list(_query_texts(distinct, options.language)))
    order = np.argsort(time, kind="stable")
    return pa.table(
        {
            "user": pa.array([f"u{k:07d}" for k in range(int(user.max()) + 1)]).take(pa.array(user[order])),
            "query": texts.take(pa.array(place.reshape(-1)[query][order])),
            "item": pa.array([one.item_id for one in drawn]).take(pa.array(item[order])),
            "kind": pa.array(["click", "purchase"]).take(pa.array(bought[order].astype(np.int8))),
            "time": pa.array(time[order]),
        }
    )


def _strangers(
    rng: np.random.Generator,
    terms: NDArray[np.int64],
    wanted: NDArray[np.int64],
    codes: NDArray[np.int64],
    category: NDArray[np.int64],
    own: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return for each row an item that lacks a term of its query or has another category; `own` if no draw finds one.

    The first draws are from the query's own category, since visitors seldom click on trousers under "T-shirt".
    """
    by_category = np.argsort(category, kind="stable")
    size = np.bincount(category, minlength=int(category.max()) + 1)
    start = np.cumsum(size) - size
    result = own.copy()
    missing = np.ones(len(own), dtype=bool)
    for attempt in range(4):
        near = by_category[start[wanted] + (rng.random(len(own)) * size[wanted]).astype(np.int64)]
        drawn = near if attempt < 3 else rng.integers(0, len(category), len(own))
        fails = ((terms != ABSENT) & (terms != codes[drawn])).any(axis=1) | (category[drawn] != wanted)
        result = np.where(missing & fails, drawn, result)
        missing &= ~fails
    return result


def _query_texts(distinct: NDArray[np.int64], language: Language) -> Iterator[str]:
    """Yield the text of each query, a row of (category, terms …)."""
    words = VOCABULARY[language]
    for category, *terms in distinct.tolist():
        asked = [values[code] for values, code in zip(words.values, terms, strict=True) if code != ABSENT]
        yield " ".join([*asked, words.categories[category]])
