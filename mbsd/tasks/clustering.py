"""Similar-product clustering: group the vectors of items, and hold the groups against their categories.

Nothing is trained: any model's vectors can be grouped. They are compared by their direction (cosine).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.preprocessing import normalize

from mbsd.catalog.tables import Table
from mbsd.config.scoring import ClusteringConfig, EvaluateConfig
from mbsd.config.stages import TaskConfig
from mbsd.errors import UserError
from mbsd.model.heads import MbsdForClassification
from mbsd.tasks.task import Labels, Task

RESTARTS = 10  # of k-means
MANY = 100_000  # vectors; above, k-means is faiss' own, in float32
PER_GROUP = 4096  # at most so many vectors a group are looked at to find the groups of many
ROUNDS = 50  # of it, at each restart


def cluster_metrics(clusters: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
    """NMI and ARI of groups against categories, and purity: the share of items in their group's commonest category."""
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "purity": float(contingency_matrix(labels, clusters).max(axis=0).sum() / len(labels)),
    }


def group(vectors_nD: Any, num_categories: int, settings: ClusteringConfig) -> NDArray[np.int64]:
    """The group of each of n vectors (dense or sparse); HDBSCAN's -1: in none, which counts as a group of its own.

    Up to `MANY` dense vectors, and sparse ones, are grouped by scikit-learn; more by faiss, which takes a fraction of
    the time.

    Raises:
        UserError: more groups than vectors.
    """
    directions = normalize(vectors_nD.astype(np.float64))
    if settings.method == "hdbscan":
        found = HDBSCAN(min_cluster_size=settings.min_cluster_size, copy=True).fit_predict(directions)
    else:
        clusters = settings.clusters or num_categories
        if clusters > directions.shape[0]:
            raise UserError(f"clustering.clusters={clusters}: there are only {directions.shape[0]} items; lower it")
        many = directions.shape[0] > MANY and not scipy.sparse.issparse(directions)
        found = (_group_many if many else _group_few)(directions, clusters, settings.seed)
    grouped: NDArray[np.int64] = np.asarray(found, dtype=np.int64)
    return grouped


def _group_few(directions: Any, clusters: int, seed: int) -> Any:
    return KMeans(clusters, n_init=RESTARTS, random_state=seed).fit_predict(directions)


def _group_many(directions_nD: NDArray[np.float64], clusters: int, seed: int) -> Any:
    vectors = np.ascontiguousarray(directions_nD, dtype=np.float32)
    groups = faiss.Kmeans(
        vectors.shape[1], clusters, niter=ROUNDS, nredo=RESTARTS, seed=seed,
        min_points_per_centroid=1, max_points_per_centroid=PER_GROUP,
    )  # fmt: skip
    groups.train(vectors)
    return groups.index.search(vectors, 1)[1][:, 0]


def _compare(
    vectors_nD: NDArray[Any], labels: NDArray[np.int64], settings: EvaluateConfig
) -> tuple[NDArray[Any], dict[str, Any]]:
    clusters = group(vectors_nD, len(np.unique(labels)), settings.clustering)
    found = {"clusters": len(np.unique(clusters[clusters >= 0])), "in_none": float(np.mean(clusters < 0))}
    return clusters, found


def _categories(table: Table, _: Any) -> Labels:
    return Labels(tuple(table.class_names), np.arange(len(table.class_names)))


def _no_head(labels: Labels, config: TaskConfig) -> dict[str, Any]:
    return {}


CLUSTERING = Task(
    name="clustering",
    kind="categories",
    metric_names=("nmi", "ari", "purity"),
    monitor="nmi",
    loss=None,
    label_dtype=torch.int64,
    metrics=cluster_metrics,
    labels=_categories,
    known_labels=_categories,
    head_class=MbsdForClassification,
    head=_no_head,
    compare=_compare,
)
