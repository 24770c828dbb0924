"""k-means of few and of many vectors: both find the groups that there are, whatever they are called."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from sklearn.metrics import adjusted_rand_score

import mbsd.tasks.clustering as clustering
from mbsd.config.scoring import ClusteringConfig


def test_many_vectors_are_grouped_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][:7]
    truth = rng.integers(0, 7, 900)
    vectors = (centres[truth] + 0.05 * rng.normal(size=(900, 16))) * rng.uniform(0.5, 2, (900, 1))
    few = clustering.group(vectors, 7, ClusteringConfig())
    monkeypatch.setattr(clustering, "MANY", 899)
    many = clustering.group(vectors, 7, ClusteringConfig())
    assert adjusted_rand_score(few, many) == 1 == adjusted_rand_score(truth, many)
    assert np.array_equal(many, clustering.group(vectors, 7, ClusteringConfig())), "the seed decides"
    sparse = clustering.group(scipy.sparse.csr_matrix(np.maximum(vectors, 0)), 7, ClusteringConfig())
    assert len(np.unique(sparse)) == 7
