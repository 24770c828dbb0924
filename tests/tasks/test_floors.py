"""Every task, trained through its launcher on two ranks, beats what needs no picture; any number of ranks agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, normalized_mutual_info_score, roc_auc_score

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from tests.ranks import launch
from tests.tasks.conftest import Trained
from tests.tasks.market import POSITIVE, evaluate_arguments

TASKS = ("attributes", "alignment", "classification", "sensitive", "clustering")
RANKS = (1, 2, 3)


@pytest.fixture(scope="module")
def scores(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    """(task, ranks) -> what evaluate.py wrote of the test split."""
    folder, found = tmp_path_factory.mktemp("scores"), {}
    for task in TASKS:
        for ranks in RANKS:
            out = folder / f"{task}{ranks}.json"
            more = ["--task=clustering"] if task == "clustering" else ["--missing.rates=[0.5]"]
            arguments = evaluate_arguments(
                trained.market, trained.kind(task), trained.model(task), out, "--micro_batch=16", *more
            )
            launch(ranks, arguments, folder / f"{task}{ranks}", launcher="evaluate")
            found[task, ranks] = json.loads(out.read_text())
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("task", TASKS)
def test_any_number_of_ranks_finds_the_same(task: str, scores: dict[tuple[str, int], dict[str, Any]]) -> None:
    samples = scores[task, 1]["samples"]
    assert samples % 2 and samples % 3
    expected = dict(_numbers(scores[task, 1]))
    assert len(expected) > 20
    for ranks in RANKS[1:]:
        assert dict(_numbers(scores[task, ranks])) == pytest.approx(expected, abs=1e-6)


def _numbers(tree: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(tree, dict):
        return [pair for name, value in tree.items() for pair in _numbers(value, f"{prefix}/{name}")]
    if isinstance(tree, list):
        return [pair for n, value in enumerate(tree) for pair in _numbers(value, f"{prefix}/{n}")]
    return [(prefix, float(tree))] if isinstance(tree, int | float) else []


class Words:
    """Train and test split of a table as TF-IDF of its texts."""

    def __init__(self, trained: Trained, task: str) -> None:
        catalog = Catalog(trained.market.catalog)
        table = Table(trained.market.table(trained.kind(task)), catalog)
        rows = {split: table.rows(split) for split in ("train", "test")}
        self.labels = {split: table.column("label")[rows[split]] for split in rows}
        if task == "sensitive":
            positive = table.class_names.index(POSITIVE)
            self.labels = {split: (labels == positive).astype(int) for split, labels in self.labels.items()}
        vectorizer = TfidfVectorizer().fit(catalog.table()["title"].to_pylist())
        self.of = {}
        for split, chosen in rows.items():
            if task == "alignment":
                a, b = (
                    vectorizer.transform([catalog.title(item) for item in table.column(name)[chosen]])
                    for name in ("item_a", "item_b")
                )
                self.of[split] = scipy.sparse.hstack([a, b, abs(a - b), a.multiply(b)]).tocsr()
                continue
            titles = vectorizer.transform([catalog.title(item) for item in table.column("item")[chosen]])
            if task == "attributes":
                tags = np.array([table.column("text")[row] for row in chosen])
                # The strongest form: each tag has weights of its own for every word.
                own = [
                    scipy.sparse.diags((tags == tag).astype(float)) @ titles for tag in ("tone:warm", "fabric:natural")
                ]
                titles = scipy.sparse.hstack(own).tocsr()
            self.of[split] = titles

    def fitted(self) -> LogisticRegression:
        return LogisticRegression(max_iter=1000, C=10.0).fit(self.of["train"], self.labels["train"])


@pytest.mark.distributed
@pytest.mark.parametrize("task", ["attributes", "alignment", "sensitive"])
def test_yes_or_no_beats_its_floors(task: str, trained: Trained, scores: dict[tuple[str, int], dict[str, Any]]) -> None:
    words = Words(trained, task)
    floor = words.fitted().decision_function(words.of["test"])
    found, labels = scores[task, 2]["views"]["full"]["all"], words.labels["test"]
    majority = max(labels.mean(), 1 - labels.mean())
    assert found["accuracy"] > majority + 0.02
    assert found["roc_auc"] > roc_auc_score(labels, floor) + 0.05
    if task == "sensitive":
        assert found["average_precision"] > average_precision_score(labels, floor) + 0.1
        at = scores[task, 2]["views"]["full"]["precision_at_recall"]["0.8"]
        assert at["recall"] >= 0.8 and at["precision"] > labels.mean() + 0.2 and 0 < at["threshold"] < 1


@pytest.mark.distributed
def test_classes_beat_their_floors(trained: Trained, scores: dict[tuple[str, int], dict[str, Any]]) -> None:
    words = Words(trained, "classification")
    floor = words.fitted().predict(words.of["test"])
    found, labels = scores["classification", 2]["views"]["full"]["all"], words.labels["test"]
    assert found["accuracy"] > np.bincount(labels).max() / len(labels) + 0.2
    assert found["accuracy"] > (floor == labels).mean() + 0.1
    assert found["macro_f1"] > f1_score(labels, floor, average="macro") + 0.1


@pytest.mark.distributed
def test_clusters_beat_their_floors(trained: Trained, scores: dict[tuple[str, int], dict[str, Any]]) -> None:
    words = Words(trained, "clustering")
    labels = words.labels["test"]
    floor = KMeans(4, n_init=10, random_state=0).fit_predict(words.of["test"])
    found = scores["clustering", 2]["views"]["full"]
    assert found["all"]["purity"] > np.bincount(labels).max() / len(labels) + 0.15
    assert found["all"]["nmi"] > normalized_mutual_info_score(labels, floor) + 0.2
    assert found["clusters"] == 4 and found["in_none"] == 0


@pytest.mark.distributed
def test_each_modality_alone_knows_its_own_half(scores: dict[tuple[str, int], dict[str, Any]]) -> None:
    """The tone is only seen and the fabric only said; of what half of the samples lost, the model knows in between."""
    result = scores["attributes", 1]
    auc = {
        view: {where: of["roc_auc"] for where, of in found["where"].items()} for view, found in result["views"].items()
    }
    assert auc["full"]["image"] > 0.9 and auc["full"]["title"] > 0.9
    assert auc["image"]["image"] > 0.8 > auc["image"]["title"]
    assert auc["text"]["title"] > 0.8 > auc["text"]["image"]
    whole = result["views"]["full"]
    half = result["missing"]["either missing at 0.5"]
    assert half["all"]["roc_auc"] < whole["all"]["roc_auc"] - 0.02
    for name, (low, high) in whole["interval"].items():
        assert low <= whole["all"][name] <= high


@pytest.mark.distributed
def test_the_settings_of_the_head_travel_with_the_weights(trained: Trained) -> None:
    config = json.loads((_best(trained.runs["sensitive"]) / "model" / "config.json").read_text())
    assert config["task"] == "sensitive" and config["id2label"] == {"0": f"not {POSITIVE}", "1": POSITIVE}


def _best(run: Path) -> Path:
    from mbsd.checkpoint.resume import result

    found = result(run / "checkpoints")
    assert found is not None
    return found
