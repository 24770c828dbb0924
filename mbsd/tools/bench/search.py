"""`mbsd bench search`: the nearest of many vectors, exactly and by cells: time, recall, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import faiss
import numpy as np
import psutil
from numpy.typing import NDArray

from mbsd.errors import UserError
from mbsd.metrics.search import Nearest

Float32 = NDArray[np.float32]

ITEMS_A_PRODUCT, PRODUCTS_A_CATEGORY = 20, 50
PRODUCT = 0.8  # how long the product's part of a vector is beside its category's, which is 1
ROWS = 65536  # made at a time


@dataclass(frozen=True)
class SearchBench:
    """What is measured.

    Attributes:
        vectors: how many are searched.
        width: numbers of each.
        spread: how long an item's own part is beside its category's.
        queries: asked at once.
        k: nearest ones asked for.
        probed: cells that are looked into.
        turns: of each search; the fastest counts.
        threads: of faiss.
    """

    vectors: int
    width: int
    spread: float
    queries: int
    k: int
    probed: tuple[int, ...]
    turns: int
    threads: int


def measure_search(bench: SearchBench) -> dict[str, Any]:
    """Measure and print: seconds to build, seconds of all queries, and the share of the exact answers that are found.

    CPU seconds are of all threads together: beside other work on the machine they say more than those of the clock.

    The vectors are made: each is the direction of its category's vector, its product's and its own, all of them random
    normal, 20 items a product and 50 products a category. Queries are further items of the same products.

    Raises:
        UserError: more queries than there are vectors.
    """
    if bench.queries > bench.vectors:
        raise UserError(f"--queries {bench.queries}: expected at most --vectors {bench.vectors}")
    faiss.omp_set_num_threads(bench.threads)
    vectors, queries = made_vectors(bench.vectors, bench.width, bench.queries, bench.spread)
    exact, of_exact = _built(lambda: Nearest(vectors, exact=True))
    of_search, truth = _timed(exact, queries, bench)
    print(
        f"{bench.vectors} vectors of {bench.width}, {bench.queries} queries, {bench.k} nearest, {bench.threads} threads"
    )
    print(f"exact: {_said(of_exact)}, {of_exact['gib']:.2f} GiB; all queries {_said(of_search)}")
    found: dict[str, Any] = {**asdict(bench), "exact": {"build": of_exact, "search": of_search}}
    del exact
    cells, of_cells = _built(lambda: Nearest(vectors, exact=False))
    print(f"{cells.cells} cells: {_said(of_cells)}, {of_cells['gib']:.2f} GiB")
    found["cells"] = {"build": of_cells, "cells": cells.cells, "probed": {}}
    for probed in bench.probed:
        cells.probe(min(probed, cells.cells))
        of_search, rows = _timed(cells, queries, bench)
        recall = recall_of(rows, truth)
        found["cells"]["probed"][probed] = {"search": of_search, "recall": recall}
        print(f"  {probed:4d} looked into: all queries {_said(of_search)}, recall@{bench.k} {recall:.4f}")
    return found


def made_vectors(count: int, width: int, queries: int, spread: float) -> tuple[Float32, Float32]:
    """`count` unit vectors and `queries` further ones of the same products: see `measure_search`."""
    rng = np.random.default_rng(0)
    products = -(-count // ITEMS_A_PRODUCT)
    of_category = rng.standard_normal((-(-products // PRODUCTS_A_CATEGORY), width), dtype=np.float32)
    of_product = of_category[np.arange(products) // PRODUCTS_A_CATEGORY]
    of_product += PRODUCT * rng.standard_normal((products, width), dtype=np.float32)

    def made(product: NDArray[np.int64]) -> Float32:
        items = np.empty((len(product), width), dtype=np.float32)
        for first in range(0, len(product), ROWS):
            part = of_product[product[first : first + ROWS]]
            part += spread * rng.standard_normal(part.shape, dtype=np.float32)
            items[first : first + ROWS] = part / np.linalg.norm(part, axis=1, keepdims=True)
        return items

    return made(np.arange(count) // ITEMS_A_PRODUCT), made(rng.integers(0, products, queries))


def recall_of(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """The share of the rows [q, k] of `truth` that are among those of `found`."""
    return float(np.mean([np.isin(of_query, rows).mean() for of_query, rows in zip(truth, found, strict=True)]))


def _built(make: Callable[[], Nearest]) -> tuple[Nearest, dict[str, float]]:
    process, clock = psutil.Process(), _Clock()
    before = process.memory_info().rss
    index = make()
    return index, {**clock.read(), "gib": (process.memory_info().rss - before) / 2**30}


def _timed(index: Nearest, queries: Float32, bench: SearchBench) -> tuple[dict[str, float], NDArray[np.int64]]:
    """The seconds of the fastest turn, and the rows that were found."""
    times, rows = [], np.zeros((0, bench.k), dtype=np.int64)
    for _ in range(bench.turns):
        clock = _Clock()
        rows = index.search(queries, bench.k).rows
        times.append(clock.read())
    return min(times, key=lambda of_turn: of_turn["cpu_s"]), rows


class _Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Of the clock, and of all threads of this process."""
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


def _said(times: dict[str, float]) -> str:
    return f"{times['wall_s']:.3g} s ({times['cpu_s']:.3g} CPU s)"
