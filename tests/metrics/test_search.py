"""The nearest vectors: all of them compared by hand, and by cells."""

from __future__ import annotations

import numpy as np
import pytest

from mbsd.errors import UserError
from mbsd.metrics.search import Nearest


def drawn(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 12)).astype(np.float32)


def test_all_are_compared() -> None:
    vectors, queries = drawn(300, 1) * 3, drawn(20, 2)
    vectors[[4, 100]] = 0
    cosines = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    cosines /= np.linalg.norm(queries, axis=1)[:, None] * np.where(lengths > 0, lengths, 1)
    cosines[:, [4, 100]] = -np.inf
    expected = np.argsort(-cosines, axis=1)[:, :7]
    index = Nearest(vectors)
    found = index.search(queries, 7)
    assert index.exact and len(index) == 298
    assert np.array_equal(found.rows, expected)
    assert np.abs(found.scores - np.take_along_axis(cosines, expected, axis=1)).max() < 1e-6
    half = Nearest(vectors.astype(np.float16)).search(queries, 7)
    assert (half.rows == expected).mean() > 0.95


def test_fewer_than_asked_for_and_none() -> None:
    found = Nearest(drawn(3, 3)).search(drawn(2, 4), 5)
    assert (found.rows[:, :3] >= 0).all() and (found.rows[:, 3:] == -1).all() and (found.scores[:, 3:] == -1).all()
    assert (Nearest(np.zeros((4, 12))).search(drawn(2, 4), 5).rows == -1).all()


def test_by_cells_most_are_found() -> None:
    vectors = drawn(4000, 5)
    index = Nearest(vectors, exact=False)
    found, exact = index.search(vectors[:200], 10).rows, Nearest(vectors).search(vectors[:200], 10).rows
    assert not index.exact and (found[:, 0] == np.arange(200)).all(), "a vector's own cell is looked into"
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert 0.3 < recall < 1


def test_what_cannot_be_searched() -> None:
    with pytest.raises(UserError, match=r"queries of shape \[2, 5\]: the vectors that are searched have 12 numbers"):
        Nearest(drawn(3, 6)).search(np.zeros((2, 5)), 1)
    vectors = drawn(3, 6)
    vectors[1, 2] = np.nan
    with pytest.raises(UserError, match="vector 1 holds numbers that are not finite"):
        Nearest(vectors)
