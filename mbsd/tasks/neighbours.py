"""Classification by the nearest training items (k nearest neighbours): nothing is trained but what is near.

Each of the k training items whose vectors are nearest by cosine votes for its category with exp(cosine / 0.07), as in
Wu et al. (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from mbsd.tasks.zero_shot import answer_metrics, class_answers

Features = Any  # [n, D], dense or sparse
Int64 = NDArray[np.int64]

TEMPERATURE = 0.07


def votes(known: Features, labels: Int64, asked: Features, num_classes: int, neighbours: Sequence[int]) -> NDArray[Any]:
    """What the k nearest known rows say of each asked row, for every k: [n, K, C] float64.

    A known row of zeros has no vector and does not vote; an asked row of zeros hears no votes. With fewer than k known
    rows all of them vote; of equally near ones those first in the table.
    """
    from_nD, to_nD = (normalize(part, norm="l2").astype(np.float64) for part in (known, asked))
    there, heard = _has_vector(from_nD), np.flatnonzero(_has_vector(to_nD))
    of_known, most = labels[there], min(max(neighbours), int(there.sum()))
    found = np.zeros((to_nD.shape[0], len(neighbours), num_classes))
    if most == 0 or len(heard) == 0:
        return found
    # Of unit vectors the nearest by distance are the nearest by cosine: squared distance = 2 - 2 cosine.
    search = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(from_nD[there])
    distances, near = search.kneighbors(to_nD[heard])
    weights = np.exp((1 - distances**2 / 2) / TEMPERATURE)
    for n, k in enumerate(neighbours):
        rows = np.repeat(heard, min(k, most))
        np.add.at(found[:, n], (rows, of_known[near[:, :k]].reshape(-1)), weights[:, :k].reshape(-1))
    return found


def neighbour_metrics(votes_nKC: NDArray[Any], labels: Int64, neighbours: Sequence[int]) -> dict[str, float]:
    """accuracy_k1, macro_f1_k1, …: of each number of neighbours."""
    return {
        f"{name}_k{k}": value
        for n, k in enumerate(neighbours)
        for name, value in answer_metrics(class_answers(votes_nKC[:, n]), labels).items()
    }


def _has_vector(features: Features) -> NDArray[np.bool_]:
    return np.asarray(abs(features).sum(axis=1)).reshape(-1) > 0
