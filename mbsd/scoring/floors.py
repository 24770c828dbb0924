"""What simple models reach on a task's table: the floors that a trained model has to beat, on the same rows.

Logistic regressions of scikit-learn on TF-IDF of titles, colour histograms and histograms of oriented gradients, all of
them together, and the two of pictures together; and, of attributes, what the tag alone tells (`prior`). The penalty is
chosen on the validation split; metrics are the task's own, on the test split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config.scoring import ClusteringConfig
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.metrics.binary import binary_metrics
from mbsd.scoring.also import Joined, read_also
from mbsd.scoring.floor_answers import write_floor_answers
from mbsd.scoring.floor_features import FEATURES, Features, Int64, Shown, together
from mbsd.scoring.prior import tag_log_odds
from mbsd.scoring.seen_categories import SeenCategories, with_categories
from mbsd.tasks.classification import class_metrics
from mbsd.tasks.clustering import cluster_metrics, group
from mbsd.tasks.probe import LEAST, fitted, log_probabilities, right

INVERSE_PENALTIES = (1.0, 10.0)
Logits = dict[str, NDArray[np.float64]]  # floor -> [n] of yes or no, or [n, C] of C classes, of the n test rows
TOGETHER = {"all": ("tfidf", "colours", "hog"), "hog_colours": ("colours", "hog")}
WEIGHTS = (0.0, 0.25, 0.5, 1.0)  # of a kind of features, where all are asked together


@dataclass(frozen=True)
class Rows:
    """A split's rows of a table: which item each is of (as a row of the features), and its label."""

    of_item: Int64
    labels: Int64
    attributes: NDArray[Any]
    values: NDArray[Any]

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        """Some of them."""
        return Rows(self.of_item[chosen], self.labels[chosen], self.attributes[chosen], self.values[chosen])

    def followed_by(self, more: Rows) -> Rows:
        """These and further ones."""
        return Rows(
            np.concatenate([self.of_item, more.of_item]),
            np.concatenate([self.labels, more.labels]),
            np.concatenate([self.attributes, more.attributes]),
            np.concatenate([self.values, more.values]),
        )


def floors(catalog: Catalog, table: Table, also: tuple[Path, Catalog] | None = None) -> dict[str, Any]:
    """The test metrics of each floor: {"tfidf": {...}, "colours": …, …}; see `scored_floors`."""
    return scored_floors(catalog, table, also)[0]


def scored_floors(
    catalog: Catalog, table: Table, also: tuple[Path, Catalog] | None = None
) -> tuple[dict[str, Any], Logits]:
    """The test metrics of each floor, {"tfidf": {...}, "colours": …, "hog": …, "all": …, "hog_colours": …}, and its
    logits of the test rows.

    For attributes: the five of (tag, item), over all rows and by attribute, and "prior", which knows the tag alone. For
    categories: accuracy and macro-F1, and NMI, ARI and purity of k-means on the same features.

    Args:
        catalog: whose items the table names.
        table: of attributes or categories.
        also: a table and its catalogue, whose training rows are learned from too: of the same kind (see `also`), or
            of categories where `table` is of attributes (see `seen_categories`).

    Raises:
        UserError: a table of another kind, or an empty split.
    """
    if table.kind not in ("attributes", "categories"):
        raise UserError(f"table {table.path}: holds {table.kind}; floors are of attributes or categories")
    rows_of = {split: table.rows(split) for split in ("train", "validation", "test")}
    for split, rows in rows_of.items():
        if len(rows) == 0:
            raise UserError(f"table {table.path}: its {split} split is empty; use a table with rows of that split")
    items, more, seen = np.unique(table.column("item")), None, None
    shown: Shown = catalog
    if also is not None:
        shown = Joined(catalog, also[1])
        if table.kind == "attributes" and Table(*also).kind == "categories":
            seen = SeenCategories.read(*also, catalog)
            items = np.union1d(items, seen.items)
        else:
            more = read_also(*also, table, catalog)
            items = np.union1d(items, more.items)
    splits = {split: _rows(table, rows, items) for split, rows in rows_of.items()}
    if more is not None:
        splits["train"] = splits["train"].followed_by(_as_rows(more.texts, more.items, more.labels, items))
    train = items[np.unique(splits["train"].of_item)]
    features = {name: of_items(shown, items, train) for name, of_items in FEATURES.items()}
    if seen is not None:
        features = with_categories(features, items, seen)
    if table.kind == "categories":
        return _classes(features, splits)
    metrics, logits = _tags(features, splits)
    logits["prior"] = tag_log_odds(table)
    return {**metrics, "prior": _by_attribute(logits["prior"], splits["test"])}, logits


def write_floors(
    catalog: Catalog,
    table_file: Path,
    out: Path,
    answers: Path | None = None,
    also: tuple[Path, Catalog] | None = None,
) -> None:
    """Print the floors of a table and write them to `out` (JSON), and what they answered to `answers` (Parquet)."""
    table = Table(table_file, catalog)
    # The matrices are small: on a machine that others use too, a second thread of BLAS mostly waits and burns its core.
    with threadpool_limits(1):
        scored, logits = scored_floors(catalog, table, also)
        found = {"majority": majority(table), **scored}
    for name, metrics in found.items():
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        print(f"{name}: " + "  ".join(f"{key} {value:.4f}" for key, value in numbers.items()))
    if answers is not None:
        write_floor_answers(logits, table, answers)
    learned = {} if also is None else {"also": str(also[0])}
    replace_text(out, json.dumps({"table": str(table_file), **learned, "floors": found}, indent=1) + "\n")


def majority(table: Table) -> dict[str, float]:
    """Test accuracy of always predicting the training rows' commonest label."""
    labels = table.column("label")
    commonest = np.bincount(labels[table.rows("train")]).argmax()
    return {"accuracy": float(np.mean(labels[table.rows("test")] == commonest))}


def _rows(table: Table, rows: Int64, items: Int64) -> Rows:
    texts = [table.column("text")[row] for row in rows] if table.kind == "attributes" else [""] * len(rows)
    return _as_rows(texts, table.column("item")[rows], table.column("label")[rows], items)


def _as_rows(texts: list[str], of_rows: Int64, labels: Int64, items: Int64) -> Rows:
    names, _, values = zip(*(text.partition(":") for text in texts), strict=True)
    return Rows(np.searchsorted(items, of_rows), labels, np.array(names), np.array(values))


def _classes(features: Mapping[str, Features], splits: dict[str, Rows]) -> tuple[dict[str, Any], Logits]:
    """A model of the classes on each kind of features; those of TOGETHER are weighted sums of their log-probabilities.

    The weights are those of WEIGHTS that are right most often on the validation rows.
    """
    train, held_out = splits["train"], {split: splits[split] for split in ("validation", "test")}
    num_classes = 1 + max(int(rows.labels.max()) for rows in splits.values())

    predicted: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, of_items in features.items():
        models = [fitted(of_items[train.of_item], train.labels, c) for c in INVERSE_PENALTIES]
        each = [
            {split: log_probabilities(model, of_items[rows.of_item], num_classes) for split, rows in held_out.items()}
            for model in models
        ]
        predicted[name] = max(each, key=lambda found: right(found["validation"], held_out["validation"].labels))

    def combined(used: Sequence[str], weights: tuple[float, ...], split: str) -> NDArray[np.float64]:
        weighted = [w * predicted[name][split] for w, name in zip(weights, used, strict=True)]
        return np.asarray(np.sum(weighted, axis=0))

    test = held_out["test"]
    logits, seen = {name: found["test"] for name, found in predicted.items()}, dict(features)
    for name, used in TOGETHER.items():

        def judged(weights: tuple[float, ...], used: Sequence[str] = used) -> float:
            return right(combined(used, weights, "validation"), held_out["validation"].labels)

        weights = max(product(WEIGHTS, repeat=len(used)), key=judged)
        logits[name] = combined(used, weights, "test")
        seen[name] = together(*(features[one] for one in used))
    metrics = {
        name: {**class_metrics(logits[name], test.labels), "clustering": _clusters(seen[name], test)} for name in logits
    }
    return metrics, logits


def _clusters(features: Features, rows: Rows) -> dict[str, float]:
    clusters = group(features[rows.of_item], len(np.unique(rows.labels)), ClusteringConfig())
    return cluster_metrics(clusters, rows.labels)


def _tags(features: Mapping[str, Features], splits: dict[str, Rows]) -> tuple[dict[str, Any], Logits]:
    """On each kind of features a model of the values of each attribute; then one of (tag, item) on its answers.

    A tag's logit is made of the log-probability of its value and of how common the value is (those of TOGETHER: of the
    log-probabilities of several); weights and threshold are fitted on the validation rows.
    """
    heard = {name: _heard(of_items, splits) for name, of_items in features.items()}
    prior = {split: _prior(splits, split) for split in ("validation", "test")}
    result, logits = {}, Logits()
    for name, used in {**{name: (name,) for name in features}, **TOGETHER}.items():
        columns = {split: np.stack([*(heard[one][split] for one in used), prior[split]], axis=1) for split in prior}
        judge = LogisticRegression().fit(columns["validation"], splits["validation"].labels)
        logits[name] = judge.decision_function(columns["test"])
        result[name] = _by_attribute(logits[name], splits["test"])
    return result, logits


def _by_attribute(logits: NDArray[np.float64], test: Rows) -> dict[str, Any]:
    """The five metrics over all rows, and of each attribute's."""
    by_name = {
        str(attribute): binary_metrics(logits[chosen], test.labels[chosen])
        for attribute in np.unique(test.attributes)
        if (chosen := test.attributes == attribute).any()
    }
    return {**binary_metrics(logits, test.labels), "attribute": by_name}


def _heard(features: Features, splits: dict[str, Rows]) -> dict[str, NDArray[np.float64]]:
    """The log-probability of each validation and test row's own value."""
    heard = {split: np.full(len(splits[split].labels), LEAST) for split in ("validation", "test")}
    for name in np.unique(splits["train"].attributes):
        learned, values, labels = _values(splits["train"], name)
        if len(values) < 2:
            continue
        of_name = {split: splits[split].where(splits[split].attributes == name) for split in heard}
        true = of_name["validation"].labels == 1
        answers = []
        for c in INVERSE_PENALTIES:
            model = fitted(features[learned.of_item], labels, c)
            predicted = {split: _predicted(model, features, rows, values) for split, rows in of_name.items()}
            answers.append((float(predicted["validation"][true].mean()) if true.any() else 0.0, predicted))
        _, predicted = max(answers, key=lambda answer: answer[0])
        for split, found in predicted.items():
            heard[split][splits[split].attributes == name] = found
    return heard


def _values(train: Rows, name: str) -> tuple[Rows, NDArray[Any], Int64]:
    """The rows that tell an attribute's values, the values, and which of them each row has."""
    of_name = train.where(train.attributes == name)
    learned = of_name.where(of_name.labels == 1)
    if len(np.unique(learned.values)) < 2:  # a tag that holds or not: what does not have it has no value
        learned = replace(of_name, values=np.where(of_name.labels == 1, of_name.values, ""))
    values, labels = np.unique(learned.values, return_inverse=True)
    return learned, values, labels


def _prior(splits: dict[str, Rows], split: str) -> NDArray[np.float64]:
    """How common each row's value is among the training rows of its attribute, as a logarithm."""
    rows = splits[split]
    prior = np.full(len(rows.labels), LEAST)
    for name in np.unique(rows.attributes):
        _, values, labels = _values(splits["train"], name)
        if len(values):
            share = np.log(np.bincount(labels) / len(labels))
            at = rows.attributes == name
            place = np.searchsorted(values, rows.values[at]).clip(max=len(values) - 1)
            prior[at] = np.where(values[place] == rows.values[at], share[place], LEAST)
    return prior


def _predicted(model: LogisticRegression, features: Features, rows: Rows, values: NDArray[Any]) -> NDArray[np.float64]:
    """Each row's log-probability of its own value; a rare attribute may be in no row of a split."""
    if len(rows.labels) == 0:
        return np.zeros(0)
    log_probability = model.predict_log_proba(features[rows.of_item])
    place = np.searchsorted(values, rows.values).clip(max=len(values) - 1)
    own = log_probability[np.arange(len(place)), place]
    found: NDArray[np.float64] = np.where(values[place] == rows.values, own, LEAST).clip(min=LEAST)
    return found
