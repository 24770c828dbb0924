"""Clustering of vectors in the views text, image, mean and full: `mbsd.tasks.clustering` for vectors of any kind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mbsd.tasks.clustering import cluster_metrics, group
from mbsd.tasks.vector_task import Encoded, Measured, Subject, VectorTask


def _measure(subject: Subject, encoded: Encoded) -> Mapping[str, Measured]:
    table, rows = subject.labels, subject.rows
    labels, measured = table.column("label")[rows], {}
    for view, vectors in encoded.rows.at(table.column("item")[rows]).vectors.items():
        clusters = group(vectors, len(np.unique(labels)), subject.settings.clustering)
        more = {"clusters": len(np.unique(clusters[clusters >= 0])), "in_none": float(np.mean(clusters < 0))}
        measured[view] = Measured(cluster_metrics, clusters, labels, more=more)
    return measured


CLUSTER_VECTORS = VectorTask(name="clustering", kind="categories", measure=_measure)
