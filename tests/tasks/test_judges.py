"""Judging frozen vectors: hand-made vectors whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from mbsd.tasks.matching import APART, best_threshold, measured_at, pair_scores, thresholds_at
from mbsd.tasks.names import shown_name, text_vectors
from mbsd.tasks.neighbours import neighbour_metrics, votes
from mbsd.tasks.probe import LEAST, Part, probe, right
from mbsd.tasks.tags import tag_metrics, tag_scores
from mbsd.tasks.zero_shot import (
    NO_CLASS,
    class_answers,
    class_ranks,
    lead,
    zero_shot_metrics,
)

AXES = np.eye(8, dtype=np.float32)


def spoken(texts: list[str]) -> np.ndarray:
    """A text tower that knows four words: the sum of their axes, whatever its length."""
    words = ["shirt", "dress", "red", "photo"]
    return np.stack([3 * sum(AXES[n] * (word in text.split()) for n, word in enumerate(words)) for text in texts])


def zero_shot(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    found = np.stack([class_answers(scores), class_ranks(scores, labels)], axis=1)
    return zero_shot_metrics(found, labels, scores.shape[1])


def nearest(known: np.ndarray, of_known: np.ndarray, asked: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    said = votes(known, of_known, asked, 1 + int(of_known.max()), (1, 5))
    return neighbour_metrics(np.stack([class_answers(found) for found in said.values()], axis=1), labels, (1, 5))


def test_a_class_is_the_mean_of_its_sentences() -> None:
    """Each sentence counts the same, however long its vector is."""
    names = [shown_name(name, "leaf") for name in ("Apparel > Top > shirt", "dress")]
    assert names == ["shirt", "dress"] and shown_name("Apparel > Top > shirt", "path") == "Apparel Top shirt"
    found = text_vectors(names, ["{}", "photo of {}"], spoken)
    expected = AXES[:2] + (AXES[:2] + AXES[3]) / np.sqrt(2)
    assert np.allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert np.allclose(text_vectors(["shirt"], ["{}"], spoken), AXES[:1])


def test_zero_shot_by_hand() -> None:
    """Seven classes, six items: right, right, second, sixth, seventh, and one without a vector."""
    scores = np.zeros((6, 7))
    order = np.linspace(0.9, 0.1, 7)
    for row, (label, rank) in enumerate([(0, 1), (1, 1), (1, 2), (2, 6), (3, 7)]):
        others = [n for n in range(7) if n != label]
        scores[row, [*others[: rank - 1], label, *others[rank - 1 :]]] = order
    labels = np.array([0, 1, 1, 2, 3, 0])
    assert class_ranks(scores, labels).tolist() == [1, 1, 2, 6, 7, 7]
    answers = class_answers(scores)
    assert answers.tolist() == [0, 1, 0, 0, 0, NO_CLASS]
    found = zero_shot(scores, labels)
    assert found["accuracy"] == pytest.approx(2 / 6) and found["top5"] == pytest.approx(3 / 6)
    assert found["mean_recall"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 0) / 4)
    assert found["macro_f1"] == pytest.approx(np.mean([2 / (2 + 3 + 1), 2 / 3, 0, 0]))


def test_zero_shot_as_scikit_learn_has_it() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(500, 9)), rng.integers(0, 9, 500)
    scores[np.arange(500), labels] += 1
    found, answers = zero_shot(scores, labels), scores.argmax(1)
    assert found["accuracy"] == np.mean(answers == labels)
    assert found["macro_f1"] == pytest.approx(f1_score(labels, answers, average="macro"))
    assert found["mean_recall"] == pytest.approx(balanced_accuracy_score(labels, answers))
    top = np.argsort(-scores, axis=1)[:, :5]
    assert found["top5"] == np.mean([label in row for label, row in zip(labels, top, strict=True)])
    assert "top5" not in zero_shot(scores[:, :5], labels % 5)  # always right


def test_a_collapsed_model_finds_no_class() -> None:
    """All vectors are equal, so every class is as near as every other: that is no answer, also where one is common."""
    labels = np.array([0] * 90 + [1] * 10)
    assert set(zero_shot(np.full((100, 6), 0.7), labels).values()) == {0.0}
    vectors = np.ones((100, 4)) / 2
    found = nearest(vectors[:50], labels[::2], vectors, labels)
    assert found["accuracy_k1"] == 0.9 and found["macro_f1_k5"] < 0.5  # the commonest class: chance
    pairs = pair_scores(vectors, vectors, np.ones(100, dtype=bool))
    assert roc_auc_score(labels, pairs) == 0.5 and tag_metrics(pairs, labels)["average_precision"] == 0.1


def test_the_lead_of_one_class() -> None:
    """Above 0 exactly where the class is the answer; the distance to the best of the others."""
    scores = np.array([[0.5, 0.2, 0.4], [0.1, 0.2, 0.7], [0.3, 0.3, 0.3]])
    assert lead(scores, 0) == pytest.approx([0.1, -0.6, 0.0])
    assert lead(scores, 2) == pytest.approx([-0.1, 0.5, 0.0])


def test_votes_by_hand() -> None:
    """Cosines 1, 0.8, 0.6 to items of the classes 0, 1, 1; a known item without a vector does not vote."""
    known = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 0]], dtype=np.float32) * [[1], [5], [1], [1]]
    labels = np.array([0, 1, 1, 2])
    asked = np.array([[2.0, 0], [0, 0]], dtype=np.float32)
    found = np.stack(list(votes(known, labels, asked, 3, (1, 2, 20)).values()), axis=1)
    weights = np.exp(np.array([1, 0.8, 0.6]) / 0.07)
    expected = [[weights[0], 0, 0], [weights[0], weights[1], 0], [weights[0], weights[1] + weights[2], 0]]
    assert np.allclose(found[0], expected, rtol=1e-5)
    assert not found[1].any()  # who has no vector hears nobody, and is wrong
    metrics = nearest(known, labels, asked, np.array([0, 0]))
    assert metrics["accuracy_k1"] == metrics["accuracy_k5"] == 0.5
    sparse = votes(scipy.sparse.csr_matrix(known), labels, scipy.sparse.csr_matrix(asked), 3, (1, 2, 20))
    assert np.allclose(np.stack(list(sparse.values()), axis=1), found, rtol=1e-5)


def test_votes_of_many_as_a_plain_loop_has_them() -> None:
    rng = np.random.default_rng(1)
    known, asked, labels = rng.normal(size=(70, 5)), rng.normal(size=(31, 5)), rng.integers(0, 4, 70)
    found = votes(known, labels, asked, 4, (5,))[5]
    for n, vector in enumerate(asked):
        cosines = known @ vector / np.linalg.norm(known, axis=1) / np.linalg.norm(vector)
        expected = np.zeros(4)
        for near in np.argsort(-cosines)[:5]:
            expected[labels[near]] += np.exp(cosines[near] / 0.07)
        assert np.allclose(found[n], expected)


def test_a_probe_of_what_a_line_divides() -> None:
    """Validation chooses among the penalties; a class without a training row is never answered."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 300)
    features = AXES[labels][:, :5] + 0.1 * rng.normal(size=(300, 5))
    train, held_out = Part(features[:100], labels[:100]), Part(features[100:200], labels[100:200])
    found, chosen = probe(train, held_out, features[200:], 4, (0.1, 10.0))
    assert right(found, labels[200:]) > 0.98 and chosen in (0.1, 10.0)
    assert (found[:, 3] == LEAST).all()
    # Validation rows with other labels choose another model: by them alone the choice is made.
    turned = Part(held_out.features, np.full(100, np.bincount(train.labels).argmax()))
    assert probe(train, turned, features, 4, (1e-6, 1.0))[1] == 1e-6
    assert probe(train, held_out, features, 4, (1e-6, 1.0))[1] == 1.0


def test_the_threshold_is_the_validations() -> None:
    """Whatever the test split holds, it is measured at the threshold that other rows chose."""
    scores, labels = np.array([0.9, 0.8, 0.4, 0.3, 0.2]), np.array([1, 1, 0, 1, 0])
    threshold = best_threshold(scores, labels)
    assert 0.2 < threshold < 0.3  # F1: 0.86 of four taken, 0.8 of two
    assert best_threshold(scores[:2], np.array([1, 0])) == pytest.approx(0.85)
    assert ((scores > threshold) == [True, True, True, True, False]).all()
    at = thresholds_at(scores, labels, (0.5, 1.0))
    assert 0.4 < at[0.5] < 0.8 and 0.2 < at[1.0] < 0.3
    others, theirs = np.array([0.95, 0.7, 0.28, 0.1]), np.array([0, 1, 1, 0])
    found = measured_at(others, theirs, at)
    assert found["0.5"] == {"precision": 0.5, "recall": 0.5, "threshold": at[0.5]}
    assert found["1"]["precision"] == pytest.approx(2 / 3) and found["1"]["recall"] == 1.0
    assert best_threshold(others, theirs) != threshold


def test_a_pair_of_which_one_has_no_vector() -> None:
    first = np.array([[1, 0], [0, 0], [0.6, 0.8]], dtype=np.float32)
    second = np.array([[0.6, 0.8], [1, 0], [-0.6, -0.8]], dtype=np.float32)
    known = np.array([True, False, True])
    assert pair_scores(first, second, known) == pytest.approx([0.6, APART, -1.0])
    sparse = pair_scores(scipy.sparse.csr_matrix(first), scipy.sparse.csr_matrix(second), known)
    assert sparse == pytest.approx([0.6, APART, -1.0])


def test_tags_by_hand() -> None:
    """Shirts that are red or not: only the tag's axis tells."""
    items = np.array([AXES[0] + AXES[2], AXES[0], AXES[1] + AXES[2], AXES[1] * 0]) / np.sqrt(2)
    found = tag_scores(["colour:red", "colour:red", "kind:dress", "kind:dress"], items, ["{}"], spoken)
    assert found == pytest.approx([np.sqrt(0.5), 0, np.sqrt(0.5), 0])
    labels = np.array([1, 0, 1, 0])
    assert tag_metrics(found, labels) == {"roc_auc": 1.0, "average_precision": 1.0}
    assert tag_metrics(found, np.ones(4)) == {}
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=99), rng.integers(0, 2, 99)
    assert tag_metrics(scores, labels)["average_precision"] == average_precision_score(labels, scores)
