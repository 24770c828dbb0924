"""Zero-shot classification: an item is of the category whose name lies nearest to it. No row is trained on.

Scores are cosines [n, C] of n items' vectors and C classes' vectors; a class's vector is the mean of its name's vectors
in several sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score

from mbsd.errors import UserError
from mbsd.model.embedder import SHARED_VIEWS
from mbsd.tasks.names import shown_name, templated, text_vectors
from mbsd.tasks.vector_task import Encoded, Int64, Measured, Subject, Vectors, VectorTask

NO_CLASS = -1  # the answer where no class is the likeliest alone


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


def zero_shot_metrics(answers_and_ranks_n2: Int64, labels: Int64, num_classes: int) -> dict[str, float]:
    """Accuracy, top-5 (of more classes than five), macro-F1, and the mean recall of the classes that occur."""
    answers, ranks = answers_and_ranks_n2.T
    found = answer_metrics(answers, labels)
    if num_classes > 5:
        found["top5"] = float(np.mean(ranks <= 5))
    found["mean_recall"] = float(
        recall_score(labels, answers, labels=np.unique(labels), average="macro", zero_division=0.0)
    )
    return found


def lead(scores_nC: Vectors, positive: int) -> Vectors:
    """How far one class's score lies above the best other one [n]: above 0 it is the answer."""
    others = np.delete(scores_nC, positive, axis=1).max(axis=1)
    found: Vectors = scores_nC[:, positive] - others
    return found


def shown_classes(subject: Subject) -> list[str]:
    """What is said of each class of the table.

    Raises:
        UserError: the same of two.
    """
    shown, table = (
        [shown_name(name, subject.settings.names.show) for name in subject.labels.class_names],
        subject.labels,
    )
    for later, name in enumerate(shown):
        if (first := shown.index(name)) < later:
            both = " and ".join(repr(table.class_names[n]) for n in (first, later))
            raise UserError(
                f"table {table.path}: the categories {both} are both shown as {name!r}, so that no name tells them "
                "apart; set names.show=path, or rename one"
            )
    return shown


def class_scores(subject: Subject, encoded: Encoded, items: Vectors) -> Vectors:
    """The cosine of each of n items' vectors with each of C classes' [n, C]."""
    classes_CE = text_vectors(shown_classes(subject), subject.settings.names.templates, encoded.texts)
    found: Vectors = items @ classes_CE.T
    return found


def class_texts(subject: Subject) -> list[str]:
    """Every sentence about a class of the table."""
    return templated(shown_classes(subject), subject.settings.names.templates)


def check_names(subject: Subject) -> None:
    """Refuse categories that are shown by one name."""
    shown_classes(subject)


def _measure(subject: Subject, encoded: Encoded) -> Mapping[str, Measured]:
    table, rows = subject.labels, subject.rows
    labels, of_rows = table.column("label")[rows], encoded.rows.at(table.column("item")[rows])
    measured = {}
    for view, vectors in of_rows.vectors.items():
        scores_nC = class_scores(subject, encoded, vectors)
        answers = class_answers(scores_nC)
        measured[view] = Measured(
            partial(zero_shot_metrics, num_classes=table.num_classes),
            np.stack([answers, class_ranks(scores_nC, labels)], axis=1),
            labels,
            answers={"answer": class_names(table.class_names, answers)},
        )
    return measured


def class_names(names: Sequence[str], answers: Int64) -> NDArray[Any]:
    """The classes' names; empty for NO_CLASS."""
    return np.array([*names, ""], dtype=object)[answers]


ZERO_SHOT = VectorTask(
    name="zero_shot",
    kind="categories",
    measure=_measure,
    views=SHARED_VIEWS,
    compares=True,
    texts=class_texts,
    check=check_names,
)
