"""Tasks on frozen vectors through evaluate.py: the same on any ranks, by another way too, and mistakes in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table, write_table
from mbsd.inference import Encoder
from tests.ranks import launch, refused
from tests.tasks.market import POSITIVE, Market, evaluate_arguments
from tests.untrained import save_untrained

# Task -> kind of its table, settings, metrics.
JUDGED: dict[str, tuple[str, list[str], set[str]]] = {
    "zero_shot": ("categories", ["--names.templates=['{}','a {}']"], {"accuracy", "macro_f1", "mean_recall"}),
    "neighbours": ("categories", [], {f"{name}_k{k}" for name in ("accuracy", "macro_f1") for k in (1, 5, 20)}),
    "probe": ("categories", ["--missing.rates=[0.5]"], {"accuracy", "macro_f1"}),
    "clustering": ("categories", [], {"nmi", "ari", "purity"}),
    "sensitive": (
        "categories",
        [f"--positive={POSITIVE}"],
        {"accuracy", "precision", "recall", "f1", "roc_auc", "average_precision"},
    ),
    "attributes": ("attributes", [], {"roc_auc", "average_precision"}),
    "matching": (
        "alignment",
        ["--missing.rates=[0.5]"],
        {"accuracy", "precision", "recall", "f1", "roc_auc", "average_precision"},
    ),
}
COMPARE = ("zero_shot", "sensitive", "attributes")


@pytest.fixture(scope="module")
def models(market: Market, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of the contrastive stage and one of stage 2, which nobody has trained."""
    return save_untrained(Catalog(market.catalog), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def found(
    market: Market, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """What evaluate.py wrote of a task on some ranks."""
    folder, done = tmp_path_factory.mktemp("found"), {}

    def measure(task: str, ranks: int) -> Path:
        if (task, ranks) not in done:
            kind, more, _ = JUDGED[task]
            # The same name in another folder: the JSON names neither.
            out = folder / str(ranks) / f"{task}.json"
            words = evaluate_arguments(
                market, kind, models["contrastive"], out, f"--task={task}", "--micro_batch=16", *more
            )
            launch(ranks, words, folder / f"{task}{ranks}", launcher="evaluate")
            done[task, ranks] = out
        return done[task, ranks]

    return measure


@pytest.mark.distributed
@pytest.mark.parametrize("task", JUDGED)
def test_two_ranks_write_what_one_writes(task: str, found: Callable[[str, int], Path]) -> None:
    one, two = found(task, 1), found(task, 2)
    assert one.read_bytes() == two.read_bytes()
    report = json.loads(one.read_text(encoding="utf-8"))
    views = {"text", "image", "mean"} | (set() if task in COMPARE else {"full"})
    assert set(report["views"]) == views and report["vector"] == "contrastive"
    for view in report["views"].values():
        assert set(view["all"]) == JUDGED[task][2] >= set(view["interval"])
        assert all(0 <= value <= 1 or name in ("ari",) for name, value in view["all"].items())
    if "--missing.rates=[0.5]" in JUDGED[task][1]:
        assert len(report["missing"]) == 2  # of mean and full


@pytest.fixture(scope="module")
def by_hand(market: Market, models: dict[str, Path]) -> Any:
    """Vectors of all items and of texts, from Python."""
    catalog, encoder = Catalog(market.catalog), Encoder.load(models["contrastive"])
    titles, images = ([of(item) for item in range(len(catalog))] for of in (catalog.title, catalog.image))
    return encoder, {view: encoder.encode(titles, images, view=view) for view in ("text", "image", "mean")}


@pytest.mark.distributed
def test_vectors_from_python_give_the_same(found: Callable[[str, int], Path], market: Market, by_hand: Any) -> None:
    encoder, vectors = by_hand
    table = Table(market.table("categories"))
    items, labels = table.column("item"), table.column("label")
    of = {split: table.rows(split) for split in ("train", "validation", "test")}
    truth, names = labels[of["test"]], table.class_names
    said = sum(encoder.encode([text.format(name) for name in names], view="text") for text in ("{}", "a {}"))
    for view, all_nE in vectors.items():
        parts = {split: (all_nE[items[rows]], labels[rows]) for split, rows in of.items()}
        report = {task: json.loads(found(task, 1).read_text(encoding="utf-8"))["views"][view] for task in JUDGED}
        scores = parts["test"][0] @ (said / np.linalg.norm(said, axis=1, keepdims=True)).T
        assert report["zero_shot"]["all"]["accuracy"] == pytest.approx(np.mean(scores.argmax(1) == truth), abs=0.011)
        nearest = KNeighborsClassifier(1).fit(*parts["train"]).score(*parts["test"])
        assert report["neighbours"]["all"]["accuracy_k1"] == pytest.approx(nearest, abs=0.011)
        tried = {
            c: LogisticRegression(C=c, max_iter=100, tol=1e-3).fit(*parts["train"]) for c in (0.1, 1, 10, 100, 1000)
        }
        chosen = report["probe"]["penalty"]
        held_out = {c: model.score(*parts["validation"]) for c, model in tried.items()}
        assert held_out[chosen] > max(held_out.values()) - 0.02
        assert report["probe"]["all"]["accuracy"] == pytest.approx(tried[chosen].score(*parts["test"]), abs=0.02)
        positive = names.index(POSITIVE)
        lead = scores[:, positive] - np.delete(scores, positive, axis=1).max(1)
        if view == "text":
            plain = encoder.encode(names, view="text")
            scores = parts["test"][0] @ plain.T
            lead = scores[:, positive] - np.delete(scores, positive, axis=1).max(1)
            average = average_precision_score(truth == positive, lead)
            assert report["sensitive"]["all"]["average_precision"] == pytest.approx(average, abs=0.02)


@pytest.mark.distributed
def test_pairs_and_tags_from_python_give_the_same(
    found: Callable[[str, int], Path], market: Market, by_hand: Any
) -> None:
    encoder, vectors = by_hand
    pairs, tags = Table(market.table("alignment")), Table(market.table("attributes"))
    rows = pairs.rows("test")
    report = json.loads(found("matching", 1).read_text(encoding="utf-8"))["views"]
    for view, all_nE in vectors.items():
        cosines = (all_nE[pairs.column("item_a")[rows]] * all_nE[pairs.column("item_b")[rows]]).sum(1)
        truth = pairs.column("label")[rows]
        assert report[view]["all"]["roc_auc"] == pytest.approx(roc_auc_score(truth, cosines), abs=1e-3)
        taken = cosines > report[view]["threshold"]
        assert report[view]["all"]["accuracy"] == pytest.approx(np.mean(taken == truth), abs=0.011)
    rows = tags.rows("test")
    report = json.loads(found("attributes", 1).read_text(encoding="utf-8"))["views"]["mean"]
    of_tags = encoder.encode([tags.column("text")[row].replace(":", " ") for row in rows], view="text")
    cosines = (of_tags * vectors["mean"][tags.column("item")[rows]]).sum(1)
    expected = roc_auc_score(tags.column("label")[rows], cosines)
    assert report["all"]["roc_auc"] == pytest.approx(expected, abs=1e-3)
    assert set(report["attribute"]) == {"tone", "fabric"} and set(report["where"]) == {"image", "title"}


@pytest.mark.distributed
@pytest.mark.parametrize("case", ["kind", "unseen", "no_head", "positive", "names", "one_label"])
def test_mistakes(case: str, market: Market, models: dict[str, Path], tmp_path: Path) -> None:
    catalog, table = Catalog(market.catalog), tmp_path / "table.parquet"
    task, kind, model, more = "zero_shot", "categories", models["contrastive"], []
    given = pq.read_table(market.table("categories")).to_pydict()
    test = Table(market.table("categories")).rows("test")

    def write(kind: Any, columns: dict[str, Any]) -> None:
        write_table(kind, pa.table(columns), catalog, table)

    write(kind, given)
    if case == "kind":
        task, named = "matching", [str(table), "holds categories", "expected alignment"]
    elif case == "unseen":
        given["category"][test[3]], given["label"][test[3]] = "a hat", len(set(given["category"]))
        write(kind, given)
        task, named = "neighbours", [f"row {test[3] + 1}", "'a hat'", "test", "train"]
    elif case == "no_head":
        model, named = models["matching"], [str(models["matching"]), "no contrastive vectors"]
    elif case == "positive":
        task, named = "sensitive", ["positive is not set"]
    elif case == "names":
        given["category"] = [f"{name.split()[0]} > {name.split()[1]}" for name in given["category"]]
        write(kind, given)
        named = ["both shown as", "names.show=path"]
    else:
        task, kind = "matching", "alignment"
        given = pq.read_table(market.table(kind)).to_pydict()
        given["label"] = [
            0 if split == "validation" else label
            for label, split in zip(*map(given.get, ("label", "split")), strict=True)
        ]
        write(kind, given)
        named = [str(table), "validation", "threshold"]
    words = evaluate_arguments(market, kind, model, tmp_path / "out.json", f"--task={task}", *more)
    line = refused(2, [*words, "--data.table", table], tmp_path / "log", launcher="evaluate")
    assert all(name in line for name in named), line
    assert not (tmp_path / "out.json").exists()
