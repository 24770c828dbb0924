"""Ranking metrics: a loop over all pairs, scikit-learn, collapsed vectors, chance, and any number of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from mbsd.batch import NO_KEY
from mbsd.errors import UserError
from mbsd.metrics.chance import chance_of, median_rank
from mbsd.metrics.ranking import METRICS, Identified, Ranking, ranking

VALUES = ("rank", "r1", "r5", "r10", "mrr", "p1", "p10", "ndcg10", "map")


def vectors(
    rng: np.random.Generator, rows: int, *, directions: int = 4, products: int = 3, first: int = 0
) -> Identified:
    """Vectors of few directions (so that many tie), keys of few products; some rows have no key."""
    few = rng.integers(-1, 2, (directions, 3)).astype(np.float32)
    scale = rng.choice([0.5, 1.0, 2.0], (rows, 1)).astype(np.float32)  # exact in binary: directions stay equal
    return Identified(
        few[rng.integers(0, directions, rows)] * scale,
        first + rng.permutation(rows).astype(np.int64),
        rng.integers(NO_KEY, products, (rows, 2)),
    )


def by_hand(queries: Identified, candidates: Identified, exclude_own: bool) -> dict[str, list[float]]:
    """The definitions, one pair after the other."""
    found: dict[str, list[float]] = {name: [] for name in ("row", *VALUES)}
    for i, item in enumerate(queries.items):
        right, wrong = [], []
        for j, other in enumerate(candidates.items):
            if exclude_own and item == other:
                continue
            shared = any(a == b != NO_KEY for a, b in zip(queries.keys[i], candidates.keys[j], strict=True))
            u, v = (np.asarray(side.vectors, dtype=np.float64)[k] for side, k in ((queries, i), (candidates, j)))
            lengths = math.sqrt(u @ u) * math.sqrt(v @ v)
            score = round(float(u @ v / lengths), 6) if lengths else 0.0
            (right if shared or item == other else wrong).append(score)
        if not right:
            continue
        right.sort(reverse=True)
        places = [k + sum(score >= mine for score in wrong) for k, mine in enumerate(right, start=1)]
        ideal = sum(1 / math.log2(1 + k) for k in range(1, min(10, len(right)) + 1))
        found["row"].append(i)
        found["rank"].append(places[0])
        for top in (1, 5, 10):
            found[f"r{top}"].append(float(places[0] <= top))
        found["mrr"].append(1 / places[0])
        found["p1"].append(float(places[0] == 1))
        found["p10"].append(sum(place <= 10 for place in places) / 10)
        found["ndcg10"].append(sum(1 / math.log2(1 + place) for place in places if place <= 10) / ideal)
        found["map"].append(sum(k / place for k, place in enumerate(places, start=1)) / len(places))
    return found


def same(a: Ranking, b: Ranking) -> bool:
    """To the last bit."""
    return (
        np.array_equal(a.rows, b.rows)
        and all(np.array_equal(a.values[name], b.values[name]) for name in VALUES)
        and all(np.array_equal(a.chance[name], b.chance[name]) for name in a.chance)
        and (a.left_out, a.candidates) == (b.left_out, b.candidates)
    )


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 25), st.booleans(), st.integers(1, 13))
@settings(max_examples=60, deadline=None)
def test_equals_a_loop_over_all_pairs_with_ties(seed: int, n: int, m: int, exclude_own: bool, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    queries, candidates = vectors(rng, n), vectors(rng, m, first=int(rng.integers(0, 3)))
    found, expected = (
        ranking(queries, candidates, exclude_own=exclude_own, chunk=chunk),
        by_hand(queries, candidates, exclude_own),
    )
    assert found.rows.tolist() == expected["row"] and found.left_out == n - len(expected["row"])
    for name in VALUES:
        assert found.values[name].tolist() == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("exclude_own", [False, True])
def test_any_number_of_rows_at_a_time_gives_the_same_to_the_last_bit(exclude_own: bool) -> None:
    rng = np.random.default_rng(0)
    queries, candidates = (
        Identified(rng.normal(size=(rows, 48)).astype(np.float32), np.arange(rows), rng.integers(-1, 20, (rows, 3)))
        for rows in (61, 203)
    )
    whole = ranking(queries, candidates, exclude_own=exclude_own)
    for chunk in (1, 7, 61):
        assert same(whole, ranking(queries, candidates, exclude_own=exclude_own, chunk=chunk))
    torch_ones = (Identified(torch.from_numpy(s.vectors), s.items, s.keys) for s in (queries, candidates))
    assert same(whole, ranking(*torch_ones, exclude_own=exclude_own))


def test_average_precision_and_ndcg_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    size = 40
    queries = Identified(rng.normal(size=(8, 5)), np.full(8, -1), rng.integers(0, 4, (8, 1)))
    candidates = Identified(rng.normal(size=(size, 5)), np.arange(size), rng.integers(0, 4, (size, 1)))
    found = ranking(queries, candidates)
    units = [s.vectors / np.linalg.norm(s.vectors, axis=1, keepdims=True) for s in (queries, candidates)]
    scores, right = units[0] @ units[1].T, (queries.keys == candidates.keys.T).astype(int)
    for row in range(8):
        assert found.values["map"][row] == pytest.approx(average_precision_score(right[row], scores[row]))
        assert found.values["ndcg10"][row] == pytest.approx(
            ndcg_score(right[row : row + 1], scores[row : row + 1], k=10)
        )


@pytest.mark.parametrize("make", [np.ones, np.zeros], ids=["one point", "zeros"])
def test_collapsed_vectors_find_nothing(make: Callable[..., np.ndarray]) -> None:
    candidates = Identified(make((50, 8)), np.arange(50), np.arange(50)[:, None] // 2)
    found = ranking(candidates, candidates)
    assert all(found.values[name].sum() == 0 for name in ("r1", "r5", "r10", "p10", "ndcg10"))
    assert (found.values["rank"] == 49).all()  # 48 wrong ones tie with the two right ones


def test_perfect_vectors_find_everything() -> None:
    product = np.repeat(np.arange(20), 3)
    found = ranking(*[Identified(np.eye(20)[product], np.arange(60), product[:, None])] * 2, exclude_own=True)
    assert all((found.values[name] == 1).all() for name in ("rank", "r1", "mrr", "ndcg10", "map"))
    assert found.left_out == 0 and (found.values["p10"] == 0.2).all()
    assert found.means() == dict.fromkeys(METRICS, 1.0)


def test_queries_without_a_right_candidate_are_left_out_and_counted() -> None:
    one = Identified(np.eye(3), np.arange(3), np.array([[5], [5], [NO_KEY]]))
    found = ranking(one, one, exclude_own=True)
    assert found.rows.tolist() == [0, 1] and found.left_out == 1
    none = ranking(one.own_pairs(), one.own_pairs(), exclude_own=True)
    assert len(none.rows) == 0 and none.left_out == 3 and all(len(none.values[name]) == 0 for name in VALUES)


def test_chance_is_the_mean_over_random_vectors() -> None:
    rng, size, draws = np.random.default_rng(2), 23, 250
    for right in (1, 3, 12):
        keys = np.r_[np.zeros(right), np.ones(size - right)].astype(np.int64)[:, None]
        query = Identified(np.ones((1, 6)), np.array([-1]), np.zeros((1, 1), np.int64))
        found = [ranking(query, Identified(rng.normal(size=(size, 6)), np.arange(size), keys)) for _ in range(draws)]
        for name, of_query in found[0].chance.items():
            values = np.array([one.values[name][0] for one in found])
            assert abs(values.mean() - of_query[0]) < 5 * values.std() / math.sqrt(draws) + 1e-3, name
        assert abs(np.median([one.values["rank"][0] for one in found]) - found[0].median_chance) <= 1
        assert found[0].expected(("r1", "median_rank"))["r1"] == pytest.approx(right / size)


def test_chance_in_closed_form() -> None:
    found = chance_of(np.array([100, 100, 4, 1]), np.array([1, 10, 4, 1]))
    harmonic = sum(1 / k for k in range(1, 101))
    assert found["r1"].tolist() == pytest.approx([0.01, 0.1, 1, 1])
    assert found["r10"][0] == pytest.approx(0.1) and found["mrr"][0] == pytest.approx(harmonic / 100)
    assert found["r10"][1] == pytest.approx(1 - math.comb(90, 10) / math.comb(100, 10))
    exact = sum(math.comb(100 - r, 9) / math.comb(100, 10) / r for r in range(1, 92))
    assert found["mrr"][1] == pytest.approx(exact, rel=1e-12)
    assert found["map"].tolist()[2:] == [1, 1] and found["map"][0] == pytest.approx(harmonic / 100)
    assert median_rank(np.array([101]), np.array([1])) == 51


def test_vectors_that_are_not_finite_are_refused() -> None:
    bad = Identified(np.array([[1.0, 0.0], [np.nan, 1.0]]), np.arange(2), np.zeros((2, 1), np.int64))
    with pytest.raises(UserError, match="vector 2 of 2 .* not finite"):
        ranking(bad, bad)
