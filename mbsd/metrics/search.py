"""The nearest of many vectors, by their cosine, with faiss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mbsd.errors import UserError
from mbsd.io.stored_vectors import read_vectors

Float32 = NDArray[np.float32]

EXACT_UP_TO = 1_000_000  # vectors that are all compared with each query; of more, those of the likeliest cells
SAMPLES_PER_CELL = 64  # that cells are learned from
PROBED = 1 / 64  # share of the cells that are looked into
ROWS = 65536  # that are held a second time, as directions, while they are put into the index


@dataclass(frozen=True)
class Found:
    """The k nearest of each query, best first.

    Attributes:
        rows: int64 [q, k]; which of the vectors; -1: there are no more.
        scores: float32 [q, k]; the cosine; -1 where there is no row.
    """

    rows: NDArray[np.int64]
    scores: Float32


@dataclass(frozen=True)
class Hit:
    """An item that was found: its id, its number in the catalogue, and its cosine with the query."""

    item_id: str
    item: int
    score: float


class Nearest:
    """Vectors that are searched by their cosine. Zeros, as of an item that has no vector, are never found.

    Attributes:
        exact: whether every vector is compared with each query. Else those of the likeliest cells into which they are
            divided (faiss' IVF; `PROBED`): a near one in another cell is missed.
    """

    def __init__(self, vectors_nE: Any, *, exact: bool | None = None) -> None:
        """Make the index; `exact`: default: up to a million vectors."""
        vectors = np.asarray(vectors_nE)
        lengths = np.concatenate([np.linalg.norm(part, axis=1) for part in _parts(vectors)] or [np.zeros(0)])
        if not np.isfinite(lengths).all():
            raise UserError(
                f"vector {int(np.flatnonzero(~np.isfinite(lengths))[0])} holds numbers that are not finite; write the "
                "vectors again from a model whose weights are finite"
            )
        self._rows = np.flatnonzero(lengths > 0)
        self.width = int(vectors.shape[1])
        self.exact = len(self._rows) <= EXACT_UP_TO if exact is None else exact
        self._index: Any = faiss.IndexFlatIP(self.width)
        if not self.exact:
            cells = max(1, min(int(4 * len(self._rows) ** 0.5), len(self._rows) // SAMPLES_PER_CELL))
            self._index = faiss.IndexIVFFlat(self._index, self.width, cells, faiss.METRIC_INNER_PRODUCT)
            self._index.nprobe = max(1, round(cells * PROBED))
            seen = np.random.default_rng(0).permutation(self._rows)[: cells * SAMPLES_PER_CELL]
            self._index.train(_directions(vectors[seen]))
        for part in range(0, len(self._rows), ROWS):
            self._index.add(_directions(vectors[self._rows[part : part + ROWS]]))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def cells(self) -> int:
        """Into which the vectors are divided; 0: all are compared."""
        return 0 if self.exact else int(self._index.nlist)

    def probe(self, cells: int) -> None:
        """Look into this many of the cells from now on: more are slower and miss less."""
        assert not self.exact and 1 <= cells <= self.cells
        self._index.nprobe = cells

    def search(self, queries_qE: Any, k: int) -> Found:
        """The k nearest of each query, whose length does not matter.

        Raises:
            UserError: queries of another width.
        """
        queries = np.asarray(queries_qE, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise UserError(
                f"queries of shape {list(queries.shape)}: the vectors that are searched have {self.width} numbers; "
                "encode both with one model and vector"
            )
        asked = max(1, min(k, len(self)))
        scores, places = self._index.search(_directions(queries), asked)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        cosines = np.full((len(queries), k), -1, dtype=np.float32)
        there = places >= 0
        rows[:, :asked][there] = self._rows[places[there]]
        cosines[:, :asked][there] = scores[there]
        return Found(rows, cosines)


class StoredIndex:
    """The vectors of a folder that `launchers/embed.py` wrote, ready to be searched.

    Args:
        view: as of `mbsd.io.stored_vectors.read_vectors`.
        exact: as of `Nearest`.

    Raises:
        UserError: as of `read_vectors`.
    """

    def __init__(self, folder: Path, view: str | None = None, *, exact: bool | None = None) -> None:
        self.folder, self.stored = folder, read_vectors(folder, view)
        self.nearest = Nearest(self.stored.vectors_nE, exact=exact)

    def search(self, queries_qE: Any, k: int) -> list[list[Hit]]:
        """The k nearest items of each query, best first; fewer where there are no more.

        Raises:
            UserError: queries of another width.
        """
        found = self.nearest.search(queries_qE, k)
        return [
            [
                Hit(self.stored.ids[row].as_py(), int(self.stored.items[row]), float(score))
                for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
                if row >= 0
            ]
            for rows, scores in zip(found.rows, found.scores, strict=True)
        ]


def _parts(vectors: NDArray[Any]) -> Iterator[Float32]:
    for first in range(0, len(vectors), ROWS):
        yield vectors[first : first + ROWS].astype(np.float32)


def _directions(vectors: NDArray[Any]) -> Float32:
    """Unit vectors; zeros stay zeros."""
    single = vectors.astype(np.float32)
    lengths = np.linalg.norm(single, axis=1, keepdims=True)
    found: Float32 = np.ascontiguousarray(single / np.where(lengths > 0, lengths, 1))
    return found
