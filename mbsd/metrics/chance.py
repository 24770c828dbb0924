"""What ranking metrics are to be expected of a random order: the value of chance that stands beside each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

TOP = 10
NEGLIGIBLE = 1e-17  # a probability that adds nothing in float64


def chance_of(candidates: Int64, right: Int64) -> dict[str, Float64]:
    """metric -> its expectation where the candidates stand in random order, for each query: float64 [q].

    Args:
        candidates, right: int64 [q]; how many there are, and how many of them are right (one or more).
    """
    pairs, of_query = np.unique(np.stack([candidates, right], axis=1), axis=0, return_inverse=True)
    expected: dict[str, Callable[[int, int], float]] = {
        "r1": lambda m, p: _found_in(1, m, p),
        "r5": lambda m, p: _found_in(5, m, p),
        "r10": lambda m, p: _found_in(TOP, m, p),
        "mrr": _reciprocal_rank,
        "p1": lambda m, p: p / m,
        "p10": lambda m, p: min(TOP, m) * p / m / TOP,
        "ndcg10": _ndcg,
        "map": _average_precision,
    }
    return {
        name: np.array([of_pair(int(m), int(p)) for m, p in pairs], dtype=np.float64)[of_query.reshape(-1)]
        for name, of_pair in expected.items()
    }


def median_rank(candidates: Int64, right: Int64) -> float:
    """The median, over random orders and queries, of the rank of the first right candidate."""
    pairs, counts = np.unique(np.stack([candidates, right], axis=1), axis=0, return_counts=True)
    low, high = 1, int(candidates.max(initial=1))
    while low < high:
        middle = (low + high) // 2
        found = sum(n * _found_in(middle, int(m), int(p)) for (m, p), n in zip(pairs, counts, strict=True))
        low, high = (low, middle) if found >= counts.sum() / 2 else (middle + 1, high)
    return float(low)


def _found_in(top: int, candidates: int, right: int) -> float:
    """Probability that one of the first `top` is right: without replacement."""
    before = np.arange(min(top, candidates))
    missed = np.clip(candidates - right - before, 0, None) / (candidates - before)
    return float(1 - np.prod(missed))


def _reciprocal_rank(candidates: int, right: int) -> float:
    """Sum over r of 1/r times the probability that the first right one stands at r."""
    total, missed, first = 0.0, 1.0, 1
    while missed > NEGLIGIBLE and first <= candidates - right + 1:
        ranks = np.arange(first, min(first + 65536, candidates - right + 2))
        at_rank = right / (candidates - ranks + 1)  # given that none stood before
        before = missed * np.concatenate([[1.0], np.cumprod(1 - at_rank)])
        total += float(np.sum(before[:-1] * at_rank / ranks))
        missed, first = float(before[-1]), int(ranks[-1]) + 1
    return total


def _ndcg(candidates: int, right: int) -> float:
    """Every place is as likely to hold a right one."""
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    gain = right / candidates * discounts[: min(TOP, candidates)].sum()
    return float(gain / discounts[: min(TOP, right)].sum())


def _average_precision(candidates: int, right: int) -> float:
    """Bestgen (2015): (1 / m) (H + (p - 1) / (m - 1) (m - H)), H the m-th harmonic number."""
    harmonic = float(np.sum(1 / np.arange(1, candidates + 1)))
    if candidates == 1:
        return 1.0
    return (harmonic + (right - 1) / (candidates - 1) * (candidates - harmonic)) / candidates
