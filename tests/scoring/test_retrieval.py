"""Retrieval on arrays whose answers are known, and intervals that cover the truth."""

from __future__ import annotations

import numpy as np
import pytest

from mbsd.scoring.intervals import intervals
from mbsd.tasks.retrieval import Pool, by_category, ranking_metrics, retrieved
from mbsd.tasks.vector_task import ItemVectors

ITEMS = 12


def pool(text: np.ndarray, image: np.ndarray, keys: np.ndarray, asking: np.ndarray | None = None) -> Pool:
    """Items 0, 2, 4, …; rows of zeros show nothing."""
    vectors = {"text": text, "image": image, "mean": text + image}
    present = {view: of_view.any(axis=1) for view, of_view in vectors.items()}
    items = np.arange(len(text)) * 2
    ask = np.ones(len(text), dtype=bool) if asking is None else asking
    names = ["warm" if item % 4 == 0 else "cold" for item in items]
    return Pool(ItemVectors(items, vectors, present), keys, ask, names)


def test_each_direction_finds_what_it_should() -> None:
    """Titles are those of pairs of items, pictures of each item alone: the own picture cannot always be first."""
    pairs = np.arange(ITEMS) // 2
    text, image = np.eye(ITEMS)[pairs * 2], np.eye(ITEMS)
    image[3] = 0  # the picture of item 6 is missing
    keys = np.stack([np.full(ITEMS, -1), pairs], axis=1)
    found = {name: (result, rows) for name, result, rows in retrieved(pool(text, image, keys))}
    result, rows = found["text->image"]
    assert rows.tolist() == list(range(ITEMS)) and result.candidates == ITEMS - 1
    assert (result.values["r1"] == 1).all(), "the first of the pair has the picture that both titles mean"
    result, rows = found["text->image_own"]
    assert rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11] and result.left_out == 1
    assert result.values["r1"].tolist() == [1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0]
    assert result.values["rank"].max() == ITEMS - 1, "a picture that is as far as all others stands behind them"
    result, rows = found["mean->mean"]
    assert (result.values["r1"] == 1).all() and result.candidates == ITEMS
    across = {"text->image", "text->image_own", "image->text", "image->text_own"}
    assert set(found) == {*across, "text->text", "image->image", "mean->mean"}


def test_only_those_ask_that_should_and_all_are_candidates() -> None:
    rng = np.random.default_rng(0)
    keys, asking = rng.integers(0, 4, (ITEMS, 1)), np.arange(ITEMS) % 3 == 0
    some = pool(rng.normal(size=(ITEMS, 5)), rng.normal(size=(ITEMS, 5)), keys, asking)
    all_of_them = {name: (r, rows) for name, r, rows in retrieved(Pool(some.vectors, keys, np.ones(ITEMS, dtype=bool)))}
    for name, result, rows in retrieved(some):
        whole, all_rows = all_of_them[name]
        assert set(rows) <= set(np.flatnonzero(asking)) and result.candidates == ITEMS
        at = np.isin(all_rows, rows)
        assert all(np.array_equal(result.values[m], whole.values[m][at]) for m in result.values)


def test_categories_find_their_items() -> None:
    warm = (np.arange(ITEMS) * 2) % 4 == 0
    image = np.stack([warm, ~warm], axis=1).astype(float)
    found = dict(by_category(pool(image[::-1], image, np.full((ITEMS, 0), 0)), ["cold", "warm"], np.eye(2)[::-1]))
    assert found["category->image"].values["p1"].tolist() == [1, 1]
    assert found["category->image"].values["p10"].tolist() == [0.6, 0.6]
    assert found["category->text"].values["p1"].tolist() == [0, 0]
    assert found["category->image"].expected(("p1", "p10")) == pytest.approx({"p1": 0.5, "p10": 0.5})


def test_intervals_cover_the_truth() -> None:
    """95 % intervals of r1, mrr and the median rank, over 60 draws of 80 queries whose ranks have a known law."""
    names = ("r1", "mrr", "median_rank")
    law = np.array([0.35, 0.25, 0.15, 0.1, 0.15])
    ranks = np.arange(1, 6)
    truth = {"r1": 0.35, "mrr": float((law / ranks).sum()), "median_rank": 2.0}
    rng, inside = np.random.default_rng(3), dict.fromkeys(names, 0)
    for draw in range(60):
        drawn = rng.choice(ranks, size=80, p=law).astype(float)
        values = np.stack([drawn == 1, 1 / drawn, drawn], axis=1)
        found = intervals(ranking_metrics(names), values, np.zeros(80, dtype=np.int64), 100, draw)
        for name, (low, high) in found.items():
            inside[name] += low <= truth[name] <= high
    assert inside["r1"] in range(52, 60) and inside["mrr"] in range(52, 60) and inside["median_rank"] >= 57, inside
