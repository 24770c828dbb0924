"""Keys of pictures that look the same: ImageHash's perceptual hash, 64 bits of a picture's lowest frequencies.

It mostly survives another size, JPEG quality or brightness, but not a crop or a shift. Pictures with an equal hash
share a key; at a distance D above 0, all that are linked by steps of at most D differing bits, which chains: two of one
group may differ in more.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mbsd.catalog.identity.files import NO_KEY
from mbsd.catalog.several import Items

Int64 = NDArray[np.int64]
Hashed: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.bool_], list[str]]
BYTES = 8  # of a hash
CHUNK = 1024  # pictures a task
# Pixels: the hash is of 32 x 32, and a JPEG of 320 is decoded at a quarter of its side in a third of the time.
DRAFT = 64
MAX_DISTANCE = 16
TABLES = 4  # of 16 bits each: hashes that differ in D bits differ in D // 4 or fewer in one of them


def near_picture_keys(catalog: Items, distance: int, workers: int, say: Callable[[str], None]) -> Int64:
    """Return each item's key of how its picture looks; NO_KEY without one, or where it is damaged (`say` names it).

    Args:
        catalog: whose pictures are hashed.
        distance: differing bits, of 64, up to which two hashes are linked; 0: equal ones alone.
        workers: processes; 0 = one per core.
        say: prints a line.
    """
    hashes, has_hash = _hashes(catalog, workers or os.cpu_count() or 1, say)
    keys = np.full(len(catalog), NO_KEY, dtype=np.int64)
    distinct, place = np.unique(hashes[has_hash], return_inverse=True)
    group = _linked(distinct, distance) if distance else np.arange(len(distinct))
    keys[has_hash] = group[place]
    return keys


def _linked(hashes: NDArray[np.uint64], distance: int) -> Int64:
    """Return the number of the group of each hash: of those that are linked with it, directly or by others."""
    import faiss

    codes = np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, BYTES)
    index = faiss.IndexBinaryMultiHash(8 * BYTES, TABLES, 8 * BYTES // TABLES)
    index.nflip = distance // TABLES
    index.add(codes)
    ends, _, found = index.range_search(codes, distance + 1)  # FAISS finds what is nearer than the radius
    start = np.repeat(np.arange(len(hashes)), np.diff(ends).astype(np.int64))
    return components(len(hashes), start, found)


def components(num: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> Int64:
    """Return the number of each one's connected component, int64 [num], where `one[k]` is linked with `other[k]`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(num, num))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


def _hashes(catalog: Items, workers: int, say: Callable[[str], None]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The hash of each item's picture, uint64, and whether it has one."""
    hashes = np.zeros(len(catalog), dtype=np.uint64)
    has_hash = np.zeros(len(catalog), dtype=bool)
    chunks = [range(start, min(start + CHUNK, len(catalog))) for start in range(0, len(catalog), CHUNK)]
    if workers == 1 or len(chunks) == 1:
        pool = None
        results: Iterable[Hashed] = map(_hash_chunk, [catalog] * len(chunks), chunks)
    else:
        # Not fork: Arrow's threads hold locks that a child would inherit.
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver"))
        results = pool.map(_hash_chunk, [catalog] * len(chunks), chunks)
    for chunk, (found, shown, damaged) in zip(chunks, tqdm(results, total=len(chunks), disable=None), strict=True):
        hashes[chunk.start : chunk.stop], has_hash[chunk.start : chunk.stop] = found, shown
        for line in damaged:
            say(line)
    if pool is not None:
        pool.shutdown()
    return hashes, has_hash


def _hash_chunk(catalog: Items, items: range) -> Hashed:
    """Hashes of some items' pictures, whether they have one, and a line for each that is damaged."""
    hashes = np.zeros(len(items), dtype=np.uint64)
    shown = np.zeros(len(items), dtype=bool)
    damaged: list[str] = []
    for place, item in enumerate(items):
        jpeg = catalog.whole_image(item, damaged.append)
        if jpeg is not None:
            hashes[place], shown[place] = _hash(jpeg), True
    return hashes, shown, damaged


def _hash(jpeg: bytes) -> int:
    import imagehash

    image = Image.open(io.BytesIO(jpeg))
    image.draft("L", (DRAFT, DRAFT))
    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "little")
