"""Zero-shot classification: an item is of the category whose name lies nearest to it. No row is trained on.

Scores are cosines [n, C] of n items' vectors and C classes' vectors; a class's vector is the mean of its name's vectors
in several sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score
from sklearn.preprocessing import normalize

Vectors = NDArray[np.floating[Any]]
Int64 = NDArray[np.int64]
Name = Literal["leaf", "path"]

Encode = Callable[[list[str]], Vectors]  # texts [t] -> vectors [t, E]

NO_CLASS = -1  # the answer where no class is the likeliest alone
SEPARATOR = ">"  # of the names in a category's path, such as Apparel > Topwear > Shirts


def shown_name(name: str, show: Name) -> str:
    """What is said of a class.

    Args:
        name: a category, or a path of them, "Apparel > Topwear > Shirts".
        show: leaf: the last name of a path; path: all of them, as words one after the other.
    """
    names = [part.strip() for part in name.split(SEPARATOR) if part.strip()] or [name]
    return names[-1] if show == "leaf" else " ".join(names)


def text_vectors(texts: Sequence[str], templates: Sequence[str], encode: Encode) -> Vectors:
    """Unit vectors [t, E] of t texts: of each the mean of its unit vectors in every template (at its "{}")."""
    said = [template.replace("{}", text) for text in texts for template in templates]
    each: Vectors = normalize(encode(said))
    found: Vectors = normalize(each.reshape(len(texts), len(templates), -1).mean(axis=1))
    return found


def class_ranks(scores_nC: Vectors, labels: Int64) -> Int64:
    """The rank of each row's own class, 1 the best: ties count against it, so that equal scores are no answer."""
    own = scores_nC[np.arange(len(labels)), labels][:, None]
    return np.asarray((scores_nC >= own).sum(axis=1), dtype=np.int64)


def class_answers(scores_nC: Vectors) -> Int64:
    """The class of the highest score of each row; NO_CLASS where several have it."""
    best = scores_nC.max(axis=1, keepdims=True)
    alone = (scores_nC == best).sum(axis=1) == 1
    return np.where(alone, scores_nC.argmax(axis=1), NO_CLASS).astype(np.int64)


def answer_metrics(answers: Int64, labels: Int64) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur among labels or answers (macro); NO_CLASS is wrong."""
    classes = np.union1d(labels, answers[answers != NO_CLASS])
    return {
        "accuracy": float(np.mean(answers == labels)),
        "macro_f1": float(f1_score(labels, answers, labels=classes, average="macro", zero_division=0.0)),
    }


def zero_shot_metrics(scores_nC: Vectors, labels: Int64) -> dict[str, float]:
    """Accuracy, top-5 (of more classes than five), macro-F1, and the mean recall of the classes that occur."""
    answers = class_answers(scores_nC)
    found = answer_metrics(answers, labels)
    if scores_nC.shape[1] > 5:
        found["top5"] = float(np.mean(class_ranks(scores_nC, labels) <= 5))
    found["mean_recall"] = float(
        recall_score(labels, answers, labels=np.unique(labels), average="macro", zero_division=0.0)
    )
    return found


def lead(scores_nC: Vectors, positive: int) -> Vectors:
    """How far one class's score lies above the best other one [n]: above 0 it is the answer."""
    others = np.delete(scores_nC, positive, axis=1).max(axis=1)
    found: Vectors = scores_nC[:, positive] - others
    return found
