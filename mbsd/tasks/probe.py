"""A linear probe: logistic regression on frozen vectors. How much the model knows, not how well it can be trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from mbsd.errors import UserError
from mbsd.tasks.neighbours import check_known_classes
from mbsd.tasks.vector_task import Encoded, Int64, Measured, Subject, VectorTask, items_of, split_rows
from mbsd.tasks.zero_shot import answer_metrics, class_names

Features = Any  # [n, D], dense or sparse

MAX_ITERATIONS = 100
LEAST = -20.0  # log-probability of a class that was never seen in training


@dataclass(frozen=True)
class Part:
    """A split's rows: features [n, D] and labels [n]."""

    features: Features
    labels: Int64


def fitted(features: Features, labels: Int64, inverse_penalty: float) -> LogisticRegression:
    """A logistic regression; one that has not quite settled is judged on validation rows as every other is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS, tol=1e-3).fit(features, labels)


def log_probabilities(model: LogisticRegression, features: Features, num_classes: int) -> NDArray[np.float64]:
    """[n, C]; LEAST for a class without a training row."""
    found = np.full((features.shape[0], num_classes), LEAST)
    found[:, model.classes_] = model.predict_log_proba(features).clip(min=LEAST)
    return found


def right(logits_nC: NDArray[Any], labels: Int64) -> float:
    """The share of rows whose likeliest class is theirs."""
    return float(np.mean(logits_nC.argmax(axis=1) == labels))


def probe(
    train: Part, validation: Part, asked: Features, num_classes: int, penalties: Sequence[float]
) -> tuple[NDArray[np.float64], float]:
    """Log-probabilities [n, C] of the asked rows, by the model that is right most often on validation.

    Args:
        train: rows of two classes or more.
        penalties: C of scikit-learn, each is tried; of equally good ones the first.

    Returns:
        The log-probabilities, and the C that was chosen.
    """
    tried = [(c, fitted(train.features, train.labels, c)) for c in penalties]
    held_out = [
        right(log_probabilities(model, validation.features, num_classes), validation.labels) for _, model in tried
    ]
    chosen, model = tried[int(np.argmax(held_out))]
    return log_probabilities(model, asked, num_classes), chosen


def check_probe(subject: Subject) -> None:
    """Refuse a table that nothing can be learned from; naming the row where a class has no row in train.

    Raises:
        UserError: also for an empty validation split, or one class alone in train.
    """
    check_known_classes(subject)
    table = subject.labels
    split_rows(table, "validation")
    if len(names := np.unique(table.column("label")[split_rows(table, "train")])) < 2:
        raise UserError(
            f"table {table.path}: all rows of its train split are of the category {table.class_names[names[0]]!r}; "
            "there is nothing to tell apart: use a table with two or more"
        )


def _others(subject: Subject) -> Int64:
    table = subject.labels
    return items_of(table, np.concatenate([split_rows(table, split) for split in ("train", "validation")]))


def _measure(subject: Subject, encoded: Encoded) -> Mapping[str, Measured]:
    table, rows = subject.labels, subject.rows
    items, labels, of_split = table.column("item"), table.column("label"), {}
    for split in ("train", "validation"):
        of_rows = split_rows(table, split)
        of_split[split] = (encoded.others.at(items[of_rows]), labels[of_rows])
    measured = {}
    for view, vectors in encoded.rows.at(items[rows]).vectors.items():
        parts = {split: Part(found.vectors[view], theirs) for split, (found, theirs) in of_split.items()}
        logits_nC, chosen = probe(
            parts["train"], parts["validation"], vectors, table.num_classes, subject.settings.probe.penalties
        )
        answers = logits_nC.argmax(axis=1)
        measured[view] = Measured(
            answer_metrics,
            answers,
            labels[rows],
            more={"penalty": chosen},
            answers={"answer": class_names(table.class_names, answers), "probability": np.exp(logits_nC.max(axis=1))},
        )
    return measured


PROBE = VectorTask(name="probe", kind="categories", measure=_measure, others=_others, check=check_probe)
