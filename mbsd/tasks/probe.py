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

Features = Any  # [n, D], dense or sparse
Int64 = NDArray[np.int64]

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # C, inverse strength: unit vectors need weights far from 0
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
    train: Part, validation: Part, asked: Mapping[str, Features], num_classes: int, penalties: Sequence[float]
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Log-probabilities [n, C] of the asked features by name, by the model that is right most often on validation.

    Args:
        train: rows of two classes or more.
        asked: the rows to be scored.
        penalties: C of scikit-learn, each is tried; of equally good ones the first.

    Returns:
        The log-probabilities, and the C that was chosen.
    """
    tried = [(c, fitted(train.features, train.labels, c)) for c in penalties]
    held_out = [
        right(log_probabilities(model, validation.features, num_classes), validation.labels) for _, model in tried
    ]
    chosen, model = tried[int(np.argmax(held_out))]
    return {name: log_probabilities(model, features, num_classes) for name, features in asked.items()}, chosen
