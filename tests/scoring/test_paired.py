"""The paired bootstrap against scikit-learn on rows that are really repeated."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mbsd.scoring.paired import difference, resampled_auc


def test_against_repeated_rows() -> None:
    """Items with 1 to 4 rows, equal scores among them; the draws are those of the same generator."""
    rng = np.random.default_rng(3)
    items = np.repeat(rng.permutation(40) * 7, rng.integers(1, 5, 40))
    labels = rng.integers(0, 2, len(items))
    scores = [np.round(labels + rng.normal(0, spread, len(items)), 1).astype(np.float32) for spread in (1.0, 2.0)]
    found = resampled_auc(scores, labels, items, resamples=50, seed=9)
    draws = np.random.default_rng(9)
    distinct = np.unique(items)
    for draw in range(51):
        taken = draws.integers(40, size=40) if draw else np.arange(40)
        rows = np.concatenate([np.flatnonzero(items == distinct[item]) for item in taken])
        expected = [roc_auc_score(labels[rows], of_model[rows]) for of_model in scores]
        assert found[:, draw] == pytest.approx(expected, abs=1e-12)
    told = difference(found[:1], found[1:])
    assert told.mean == told.of_pairs[0] == pytest.approx(expected_difference(scores, labels), abs=1e-12)
    both = difference(found[[0, 0]], found[[1, 0]])
    assert both.of_pairs == (told.mean, 0.0) and both.mean == pytest.approx(told.mean / 2)
    assert both.interval == pytest.approx(tuple(end / 2 for end in told.interval or ()))
    assert told.interval == pytest.approx(tuple(np.quantile((found[0] - found[1])[1:], [0.025, 0.975])))


def expected_difference(scores: list[np.ndarray], labels: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores[0]) - roc_auc_score(labels, scores[1]))


def test_a_difference_is_surer_in_pairs_and_over_items() -> None:
    """Two models that err alike: the interval of the difference is narrow. Rows of an item are no new evidence."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 300)
    shared = labels + rng.normal(0, 2, 300)
    scores = [shared + rng.normal(0, 0.1, 300), shared + rng.normal(0, 0.1, 300)]
    auc = resampled_auc(scores, labels, np.arange(300), 300)
    low, high = difference(auc[:1], auc[1:]).interval or (0.0, 0.0)
    assert high - low < 0.2 * (np.quantile(auc[0], 0.975) - np.quantile(auc[0], 0.025))
    tripled = resampled_auc([np.tile(one, 3) for one in scores], np.tile(labels, 3), np.tile(np.arange(300), 3), 300)
    assert np.allclose(tripled, auc), "the same rows three times, of the same items, tell no more"


def test_one_label() -> None:
    """Resamples with one label are left out; where too many are, there is no interval, and the difference stays."""
    scores = [np.array([0.1, 0.9, 0.2]), np.array([0.9, 0.1, 0.2])]
    auc = resampled_auc(scores, np.array([0, 1, 0]), np.arange(3), 50)
    told = difference(auc[:1], auc[1:])
    assert told.interval is None and told.mean == 1.0
