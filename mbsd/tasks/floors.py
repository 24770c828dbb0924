"""What simple models reach on a task's table: the floors that a trained model has to beat, on the same rows.

Logistic regressions of scikit-learn on TF-IDF of titles, colour histograms, histograms of oriented gradients, and all
of them. Their penalty is chosen on the validation split; metrics are the task's own, on the test split.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config_scoring import ClusteringConfig
from mbsd.errors import UserError
from mbsd.metrics.binary import binary_metrics
from mbsd.tasks.classification import class_metrics
from mbsd.tasks.clustering import cluster_metrics, group
from mbsd.tasks.floor_features import FEATURES, Features, Int64, together

INVERSE_PENALTIES = (1.0, 10.0, 100.0)
MAX_ITERATIONS = 100
LEAST = -20.0  # log-probability of a value that was never seen in training


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


def floors(catalog: Catalog, table: Table) -> dict[str, Any]:
    """The test metrics of each floor: {"tfidf": {...}, "colours": ..., "hog": ..., "all": ...}.

    For attributes: the five of (tag, item), over all rows and by attribute. For categories: accuracy and macro-F1, and
    NMI, ARI and purity of k-means on the same features.

    Raises:
        UserError: a table of another kind, or an empty split.
    """
    if table.kind not in ("attributes", "categories"):
        raise UserError(f"table {table.path}: holds {table.kind}; floors are of attributes or categories")
    splits = {}
    items = np.unique(table.column("item"))
    for split in ("train", "validation", "test"):
        rows = table.rows(split)
        if len(rows) == 0:
            raise UserError(f"table {table.path}: its {split} split is empty; use a table with rows of that split")
        splits[split] = _rows(table, rows, items)
    train = items[np.unique(splits["train"].of_item)]
    features = {name: of_items(catalog, items, train) for name, of_items in FEATURES.items()}
    features["all"] = together(*features.values())
    measure = _tags if table.kind == "attributes" else _classes
    return {name: measure(of_items, splits) for name, of_items in features.items()}


def write_floors(catalog: Catalog, table_file: Path, out: Path) -> None:
    """Print the floors of a table and write them to `out` (JSON)."""
    table = Table(table_file, catalog)
    found = {"majority": majority(table), **floors(catalog, table)}
    for name, metrics in found.items():
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        print(f"{name}: " + "  ".join(f"{key} {value:.4f}" for key, value in numbers.items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"table": str(table_file), "floors": found}, indent=1) + "\n", encoding="utf-8")


def majority(table: Table) -> dict[str, float]:
    """Test accuracy of always saying the training rows' commonest label."""
    labels = table.column("label")
    commonest = np.bincount(labels[table.rows("train")]).argmax()
    return {"accuracy": float(np.mean(labels[table.rows("test")] == commonest))}


def _rows(table: Table, rows: Int64, items: Int64) -> Rows:
    texts = [table.column("text")[row] for row in rows] if table.kind == "attributes" else [""] * len(rows)
    names, _, values = zip(*(text.partition(":") for text in texts), strict=True)
    of_item = np.searchsorted(items, table.column("item")[rows])
    return Rows(of_item, table.column("label")[rows], np.array(names), np.array(values))


def _classes(features: Features, splits: dict[str, Rows]) -> dict[str, Any]:
    train, validation, test = splits["train"], splits["validation"], splits["test"]
    num_classes = 1 + max(int(rows.labels.max()) for rows in splits.values())

    def logits(model: LogisticRegression, rows: Rows) -> NDArray[np.float64]:
        found = np.full((len(rows.labels), num_classes), LEAST)
        found[:, model.classes_] = model.predict_log_proba(features[rows.of_item])
        return found

    models = [_fitted(features[train.of_item], train.labels, c) for c in INVERSE_PENALTIES]
    best = max(models, key=lambda model: class_metrics(logits(model, validation), validation.labels)["accuracy"])
    vectors = features[test.of_item]
    vectors = vectors.toarray() if hasattr(vectors, "toarray") else vectors
    clusters = group(vectors, len(np.unique(test.labels)), ClusteringConfig())
    return {
        **class_metrics(logits(best, test), test.labels),
        "clustering": cluster_metrics(clusters, test.labels),
        "inverse_penalty": float(best.C),
    }


def _tags(features: Features, splits: dict[str, Rows]) -> dict[str, Any]:
    """A model of the values of each attribute, from the rows whose tag holds; then one of (tag, item) on its answers.

    A tag's logit is the log-probability of its value, less how common the value is: both weights and the threshold are
    fitted on the validation rows.
    """
    scores = {split: np.full((len(rows.labels), 2), LEAST) for split, rows in splits.items()}
    chosen = {}
    for name in np.unique(splits["train"].attributes):
        of_name = {split: rows.where(rows.attributes == name) for split, rows in splits.items()}
        train = of_name["train"]
        learned = train.where(train.labels == 1)
        if len(np.unique(learned.values)) < 2:  # a tag that holds or not: what does not have it has no value
            learned = replace(train, values=np.where(train.labels == 1, train.values, ""))
        values, labels = np.unique(learned.values, return_inverse=True)
        if len(values) < 2:
            continue
        prior = np.log(np.bincount(labels) / len(labels))
        answers = []
        for c in INVERSE_PENALTIES:
            model = _fitted(features[learned.of_item], labels, c)
            said = {split: _said(model, features, rows, values) for split, rows in of_name.items() if split != "train"}
            true = of_name["validation"].labels == 1
            answers.append((float(said["validation"][true].mean()), c, said))
        _, c, said = max(answers, key=lambda answer: answer[:2])
        chosen[str(name)] = c
        for split, found in said.items():
            place = np.searchsorted(values, of_name[split].values).clip(max=len(values) - 1)
            known = values[place] == of_name[split].values
            at = splits[split].attributes == name
            scores[split][at] = np.stack([found, np.where(known, prior[place], LEAST)], axis=1)
    judge = LogisticRegression().fit(scores["validation"], splits["validation"].labels)
    logits, test = judge.decision_function(scores["test"]), splits["test"]
    by_name = {
        str(name): binary_metrics(logits[test.attributes == name], test.labels[test.attributes == name])
        for name in np.unique(test.attributes)
    }
    return {**binary_metrics(logits, test.labels), "attribute": by_name, "inverse_penalty": chosen}


def _said(model: LogisticRegression, features: Features, rows: Rows, values: NDArray[Any]) -> NDArray[np.float64]:
    """Each row's log-probability of its own value."""
    log_probability = model.predict_log_proba(features[rows.of_item])
    place = np.searchsorted(values, rows.values).clip(max=len(values) - 1)
    own = log_probability[np.arange(len(place)), place]
    found: NDArray[np.float64] = np.where(values[place] == rows.values, own, LEAST).clip(min=LEAST)
    return found


def _fitted(features: Features, labels: Int64, inverse_penalty: float) -> LogisticRegression:
    with warnings.catch_warnings():
        # A floor that has not quite settled is judged on validation rows as every other is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS).fit(features, labels)
