"""Classification by the nearest training items (k nearest neighbours): nothing is trained but what is near.

Each of the k training items whose vectors are nearest by cosine votes for its category with exp(cosine / 0.07), as in
Wu et al. (2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from mbsd.errors import UserError
from mbsd.tasks.vector_task import Encoded, Int64, Measured, Subject, VectorTask, items_of, split_rows
from mbsd.tasks.zero_shot import answer_metrics, class_answers, class_names

Features = Any  # [n, D], dense or sparse

TEMPERATURE = 0.07


def votes(
    known: Features, labels: Int64, asked: Features, num_classes: int, neighbours: Sequence[int]
) -> dict[int, NDArray[np.float64]]:
    """k -> what the k nearest known rows say of each asked row [n, C].

    A known row of zeros has no vector and does not vote; an asked row of zeros hears no votes. With fewer than k known
    rows all of them vote; of equally near ones those first in the table.
    """
    from_nD, to_nD = (normalize(part).astype(np.float64) for part in (known, asked))
    there, heard = _has_vector(from_nD), np.flatnonzero(_has_vector(to_nD))
    of_known, most = labels[there], min(max(neighbours), int(there.sum()))
    found = {k: np.zeros((to_nD.shape[0], num_classes)) for k in neighbours}
    if most == 0 or len(heard) == 0:
        return found
    # Of unit vectors the nearest by distance are the nearest by cosine: squared distance = 2 - 2 cosine.
    search = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(from_nD[there])
    distances, near = search.kneighbors(to_nD[heard])
    weights = np.exp((1 - distances**2 / 2) / TEMPERATURE)
    for k, votes_nC in found.items():
        rows = np.repeat(heard, min(k, most))
        np.add.at(votes_nC, (rows, of_known[near[:, :k]].reshape(-1)), weights[:, :k].reshape(-1))
    return found


def neighbour_metrics(answers_nK: Int64, labels: Int64, neighbours: Sequence[int]) -> dict[str, float]:
    """accuracy_k1, macro_f1_k1, …: of each number of neighbours."""
    return {
        f"{name}_k{k}": value
        for k, answers in zip(neighbours, answers_nK.T, strict=True)
        for name, value in answer_metrics(answers, labels).items()
    }


def check_known_classes(subject: Subject) -> None:
    """Refuse a table without training rows, or a class among the scored rows that has none.

    Raises:
        UserError: naming the row.
    """
    table, rows = subject.labels, subject.rows
    known = np.unique(table.column("label")[split_rows(table, "train")])
    unseen = np.flatnonzero(~np.isin(table.column("label")[rows], known))
    if len(unseen):
        row = int(rows[unseen[0]])
        raise UserError(
            f"table {table.path}, row {row + 1}: category {table.column('category')[row]!r} of the "
            f"{subject.settings.split} split has no row in train; move some of its rows there, or take it out"
        )


def _has_vector(features: Features) -> NDArray[np.bool_]:
    return np.asarray(abs(features).sum(axis=1)).reshape(-1) > 0


def _measure(subject: Subject, encoded: Encoded) -> Mapping[str, Measured]:
    table, neighbours = subject.labels, subject.settings.neighbours.k
    items, labels = table.column("item"), table.column("label")
    train, rows = split_rows(table, "train"), subject.rows
    known, asked = encoded.others.at(items[train]), encoded.rows.at(items[rows])
    measured = {}
    for view, vectors in asked.vectors.items():
        said = votes(known.vectors[view], labels[train], vectors, table.num_classes, neighbours)
        answers_nK = np.stack([class_answers(said[k]) for k in neighbours], axis=1)
        measured[view] = Measured(
            partial(neighbour_metrics, neighbours=neighbours),
            answers_nK,
            labels[rows],
            answers={
                f"answer_k{k}": class_names(table.class_names, answers_nK[:, n]) for n, k in enumerate(neighbours)
            },
        )
    return measured


NEIGHBOURS = VectorTask(
    name="neighbours",
    kind="categories",
    measure=_measure,
    others=lambda subject: items_of(subject.labels, split_rows(subject.labels, "train")),
    check=check_known_classes,
)
