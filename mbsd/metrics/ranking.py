"""How well vectors rank candidates for queries: recall at 1, 5 and 10, reciprocal rank, nDCG, average precision.

Ties count against the vectors: where a wrong candidate has a right one's score it stands before it. So vectors that are
all the same score as if every right candidate came last, and not first.

Vectors are compared by their direction. Each number of a direction is rounded to a multiple of 2^-26, so that every sum
of products is exact in float64: scores are the same to the last bit however many rows are compared at a time, in any
order and on any device, and equal vectors do tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbsd.batch import NO_KEY
from mbsd.errors import UserError
from mbsd.metrics.chance import chance_of, median_rank

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

STEPS = 2.0**26  # of a direction's numbers: products are of 52 bits, sums of at most 53
ROWS = 4096  # directions that are made at a time
TILE = 8  # times as many candidates as queries are compared at a time
TOP = 10
METRICS = ("r1", "r5", "r10", "mrr", "median_rank", "ndcg10", "map")


@dataclass(frozen=True)
class Identified:
    """Vectors and whose they are.

    Attributes:
        vectors: float [n, E], numpy or torch; their length does not matter.
        items: int64 [n]; item numbers, each once; -1: of no item.
        keys: int64 [n, K]; equal ones (but for NO_KEY) are the same product; K may be 0.
    """

    vectors: Any
    items: Int64
    keys: Int64

    def where(self, chosen: NDArray[Any]) -> Identified:
        """Some of them, by bool [n] or row numbers."""
        return Identified(self.vectors[chosen], self.items[chosen], self.keys[chosen])

    def own_pairs(self) -> Identified:
        """The same without keys: nothing but the item itself is the same product."""
        return Identified(self.vectors, self.items, self.keys[:, :0])


@dataclass(frozen=True)
class Ranking:
    """How q queries fared, those that have a right candidate.

    Attributes:
        rows: int64 [q]; which of the queries they are.
        values: metric -> float64 [q]; "rank" is 1 + the number of wrong candidates that score as well as the best right
            one, or better; "p1" and "p10" are the shares of right ones among the first and the first ten.
        chance: metric -> float64 [q]; what is to be expected of a random order of the candidates.
        left_out: queries without any right candidate.
        candidates: how many there are.
        median_chance: the median of "rank" over random orders and queries.
    """

    rows: Int64
    values: dict[str, Float64]
    chance: dict[str, Float64]
    left_out: int
    candidates: int
    median_chance: float

    def means(self, names: tuple[str, ...] = METRICS) -> dict[str, float]:
        """Over the queries: the mean of each of these metrics; "median_rank" is the median of the ranks."""
        return {
            name: float(np.median(self.values["rank"]) if name == "median_rank" else np.mean(self.values[name]))
            for name in names
        }

    def expected(self, names: tuple[str, ...] = METRICS) -> dict[str, float]:
        """The same of a random order of the candidates."""
        return {
            name: self.median_chance if name == "median_rank" else float(np.mean(self.chance[name])) for name in names
        }


def ranking(queries: Identified, candidates: Identified, *, exclude_own: bool = False, chunk: int = 1024) -> Ranking:
    """Rank all candidates for each query. A candidate is right if it is of the query's item or shares one of its keys.

    Args:
        exclude_own: the candidate of the query's own item is neither right nor wrong: for vectors of one modality,
            where it is the query itself.
        chunk: queries that are compared at a time; the result does not depend on it.

    Raises:
        UserError: a vector holds a number that is not finite.
    """
    of_queries, of_candidates = directions(queries.vectors), directions(candidates.vectors)
    lookup = _Lookup(candidates, exclude_own)
    blocks = []
    for first in range(0, len(queries.items), chunk):
        pairs = lookup.pairs(queries.items[first : first + chunk], queries.keys[first : first + chunk])
        if len(pairs.queries):
            blocks.append(_ranked(of_queries[first : first + chunk], of_candidates, pairs, first))
    found = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} if blocks else {}
    empty = np.zeros(0)
    rows = found.pop("row", empty).astype(np.int64)
    sizes, right = (found.pop(name, empty).astype(np.int64) for name in ("size", "right"))
    return Ranking(
        rows=rows,
        values=found or {name: empty for name in ("rank", "r1", "r5", "r10", "mrr", "p1", "p10", "ndcg10", "map")},
        chance=chance_of(sizes, right),
        left_out=len(queries.items) - len(rows),
        candidates=len(candidates.items),
        median_chance=median_rank(sizes, right),
    )


def directions(vectors: Any) -> Tensor:
    """Unit vectors in whole multiples of 1 / STEPS: int32 [n, E]; a vector of zeros stays one.

    Raises:
        UserError: a number is not finite.
    """
    given = vectors if isinstance(vectors, Tensor) else torch.from_numpy(np.ascontiguousarray(vectors))
    found = torch.empty(given.shape, dtype=torch.int32, device=given.device)
    for first in range(0, len(given), ROWS):
        block = given[first : first + ROWS].double()
        if not block.isfinite().all():
            row = first + int((~block.isfinite().all(1)).nonzero()[0])
            raise UserError(
                f"vector {row + 1} of {len(given)} holds a number that is not finite: the model that made it has "
                "diverged, or its precision overflows; take an earlier checkpoint"
            )
        length = block.square().sum(1, keepdim=True).sqrt()
        found[first : first + ROWS] = (block / length.clamp_min(1e-12) * STEPS).round().int()
    return found


@dataclass(frozen=True)
class _Pairs:
    """What some queries are to find: (queries[p], candidates[p]) are right, by rising query; `own` is not looked at.

    Attributes:
        own: int64 [queries]; the candidate that is left out of each query, or -1.
    """

    queries: Int64
    candidates: Int64
    own: Int64


class _Lookup:
    """Finds the right candidates of queries without comparing all with all."""

    def __init__(self, candidates: Identified, exclude_own: bool) -> None:
        columns = [candidates.items, *candidates.keys.T]
        self._orders = [np.argsort(column, kind="stable") for column in columns]
        self._sorted = [column[order] for column, order in zip(columns, self._orders, strict=True)]
        self._exclude_own = exclude_own

    def pairs(self, items: Int64, keys: Int64) -> _Pairs:
        """Of some queries."""
        total = len(self._orders[0])
        found = [self._equal(number, column) for number, column in enumerate([items, *keys.T])]
        own = np.full(len(items), -1, dtype=np.int64)
        if self._exclude_own:
            queries, candidates = found[0]
            own[queries] = candidates
        numbers = np.unique(np.concatenate([queries * total + candidates for queries, candidates in found]))
        queries, candidates = np.divmod(numbers, max(1, total))
        wanted = candidates != own[queries]
        return _Pairs(queries[wanted], candidates[wanted], own)

    def _equal(self, number: int, values: Int64) -> tuple[Int64, Int64]:
        """The pairs (query, candidate) that have the same value in a column."""
        first = np.searchsorted(self._sorted[number], values, side="left")
        last = np.searchsorted(self._sorted[number], values, side="right")
        counts = np.where(values == NO_KEY, 0, last - first)
        queries = np.repeat(np.arange(len(values)), counts)
        within = np.arange(len(queries)) - np.repeat(counts.cumsum() - counts, counts)
        return queries, self._orders[number][first[queries] + within]


def _ranked(queries: Tensor, candidates: Tensor, pairs: _Pairs, first: int) -> dict[str, NDArray[Any]]:
    """metric -> value of each of these queries that has a right candidate; and its row, its candidates and right ones.

    Args:
        first: row of the first of these queries.
    """
    rows, of_pair, right = np.unique(pairs.queries, return_inverse=True, return_counts=True)
    own = pairs.own[rows]
    scores = _scores_of(queries, candidates, pairs.queries, pairs.candidates)
    ascending = np.lexsort((scores, of_pair))
    scores = scores[ascending]
    rank_P = np.arange(len(scores)) - np.repeat(right.cumsum() - right, right)  # 0: the query's worst right candidate
    scores_qP = np.full((len(rows), right.max()), np.inf)
    scores_qP[of_pair, rank_P] = scores
    better_qP = _count_at_least(queries[torch.from_numpy(rows).to(queries.device)], candidates, scores_qP)
    has_own = np.flatnonzero(own >= 0)
    of_own = _scores_of(queries, candidates, rows[has_own], own[has_own])
    better_qP[has_own] -= of_own[:, None] >= scores_qP[has_own]
    # Right candidates with a score of at least this one's: equal ones have all of them before or beside them.
    tied = np.concatenate([[True], (np.diff(scores) != 0) | (np.diff(of_pair) != 0)])
    start = np.maximum.accumulate(np.where(tied, np.arange(len(scores)), 0))
    at_least = right[of_pair] - rank_P[start]
    nth = right[of_pair] - rank_P  # 1: the query's best right candidate
    position = better_qP[of_pair, rank_P] - at_least + nth

    def summed(values: NDArray[Any]) -> Float64:
        """Over each query's pairs, one after the other: the same whatever stands beside them."""
        return np.asarray(np.bincount(of_pair, weights=values, minlength=len(rows)), dtype=np.float64)

    best = position[right.cumsum() - 1]
    ideal = np.concatenate([[0.0], (1 / np.log2(np.arange(2, TOP + 2))).cumsum()])
    gain = np.where(position <= TOP, 1 / np.log2(1 + position), 0.0)
    return {
        "row": first + rows,
        "size": len(candidates) - (own >= 0),
        "right": right,
        "rank": best.astype(np.float64),
        "r1": (best <= 1).astype(np.float64),
        "r5": (best <= 5).astype(np.float64),
        "r10": (best <= TOP).astype(np.float64),
        "mrr": 1 / best,
        "p1": (best <= 1).astype(np.float64),
        "p10": summed(position <= TOP) / TOP,
        "ndcg10": summed(gain) / ideal[np.minimum(right, TOP)],
        "map": summed(nth / position) / right,
    }


def _scores_of(queries: Tensor, candidates: Tensor, of_queries: Int64, of_candidates: Int64) -> Float64:
    """The scores of some pairs, [pairs]."""
    found = np.empty(len(of_queries))
    for begin in range(0, len(found), ROWS):
        at = slice(begin, begin + ROWS)
        left, right = (
            side[torch.from_numpy(rows[at]).to(side.device)].double()
            for side, rows in ((queries, of_queries), (candidates, of_candidates))
        )
        found[at] = (left * right).sum(1).cpu().numpy()
    return found


def _count_at_least(queries: Tensor, candidates: Tensor, scores_qP: Float64) -> Int64:
    """How many of all candidates score at least so much with each query: int64 [q, P].

    Args:
        scores_qP: rising in each row.
    """
    bounds = torch.from_numpy(scores_qP).to(queries.device)
    counts = torch.zeros(bounds.shape[0], bounds.shape[1] + 1, dtype=torch.int64, device=queries.device)
    left, step = queries.double(), TILE * max(1, len(queries))
    for first in range(0, len(candidates), step):
        found = torch.searchsorted(bounds, left @ candidates[first : first + step].double().T, right=True)
        counts.scatter_add_(1, found, torch.ones_like(found))
    at_least = counts.flip(1).cumsum(1).flip(1)[:, 1:]
    reached: Int64 = at_least.cpu().numpy()
    return reached
