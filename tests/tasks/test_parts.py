"""The parts of a task by themselves: losses, weights, missing modalities, pairs, intervals, clusters, recall."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import precision_score, recall_score

from mbsd.catalog.tables import Table
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import FinetuneConfig, RunConfig
from mbsd.config.scoring import ClusteringConfig
from mbsd.config.stages import TaskConfig
from mbsd.data.inputs import Inputs, open_catalog
from mbsd.data.samples import Chosen, Sample, WithMissing
from mbsd.data.text import build_tokenizer, load_tokenizer
from mbsd.metrics.binary import binary_metrics
from mbsd.model.heads import MbsdForAlignment, ViewsOutput
from mbsd.objectives.labels import binary_loss, class_loss
from mbsd.scoring.intervals import intervals
from mbsd.tasks.classification import CLASSIFICATION, class_metrics, known_classes
from mbsd.tasks.clustering import cluster_metrics, group
from mbsd.tasks.registry import TASKS
from mbsd.tasks.sensitive import found_or_not, precision_at_recall
from mbsd.tasks.stage import class_weights, task_stage
from tests.model.reference import MIXED, hand_batch, random_samples, randomise, tiny_config
from tests.tasks.market import Market


def test_weighted_losses_against_float64_by_hand() -> None:
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(0, 4, (3, 7)), rng.integers(0, 2, 7), np.array([0.5, 3.0])
    p = 1 / (1 + np.exp(-logits))
    expected = -(weights[labels] * np.log(np.where(labels == 1, p, 1 - p))).mean()
    given = torch.from_numpy(logits).float(), torch.from_numpy(labels).float(), torch.from_numpy(weights).float()
    assert float(binary_loss(*given)) == pytest.approx(expected, rel=1e-5)
    assert float(binary_loss(*given[:2], torch.ones(2))) == pytest.approx(float(binary_loss(*given[:2])), rel=1e-6)

    logits, labels, weights = rng.normal(0, 4, (2, 7, 5)), rng.integers(0, 5, 7), rng.random(5) + 0.1
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, np.broadcast_to(labels[None, :, None], (2, 7, 1)), 2)[..., 0]
    given = torch.from_numpy(logits).float(), torch.from_numpy(labels), torch.from_numpy(weights).float()
    assert float(class_loss(*given)) == pytest.approx(-(weights[labels] * chosen).mean(), rel=1e-5)
    assert float(class_loss(*given[:2])) == pytest.approx(-chosen.mean(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_over_two_halves_is_the_whole(smoothing: float) -> None:
    """What the engine averages over ranks and micro-steps is the global batch's loss, weights or not."""
    logits, labels, weights = torch.randn(2, 8, 3), torch.randint(0, 3, (8,)), torch.tensor([0.2, 1.0, 4.0])
    halves = [class_loss(logits[:, part], labels[part], weights, smoothing) for part in (slice(0, 4), slice(4, 8))]
    assert float(sum(halves) / 2) == pytest.approx(float(class_loss(logits, labels, weights, smoothing)), rel=1e-6)


@pytest.mark.parametrize("weights", [None, (0.5, 3.0, 0.2, 1.0, 2.0)])
def test_smoothed_labels_against_float64_by_hand(weights: tuple[float, ...] | None) -> None:
    """The cross-entropy of the smoothed answer, each class's share times its weight; two classes are yes and no."""
    rng, share = np.random.default_rng(1), 0.3
    for classes in (5, 2):
        logits, labels = rng.normal(0, 4, (2, 7, classes)), rng.integers(0, classes, 7)
        if classes == 2:
            logits[..., 0] = 0  # a yes/no logit is that of yes beside one of 0
        weight_C = np.ones(classes) if weights is None else np.array(weights[:classes])
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        answer_BC = (1 - share) * np.eye(classes)[labels] + share / classes
        expected = -(answer_BC * weight_C * log_p).sum(-1).mean()
        given = torch.from_numpy(weight_C) if weights is not None else None
        exact = class_loss(torch.from_numpy(logits), torch.from_numpy(labels), given, share)
        assert float(exact) == pytest.approx(expected, rel=1e-12)
        if classes == 2:
            yes = torch.from_numpy(logits[..., 1]).requires_grad_()
            loss = binary_loss(yes, torch.from_numpy(labels).float(), given, share)
            assert loss.item() == pytest.approx(expected, rel=1e-12)
            loss.backward()  # certain that it is right is punished too: the loss is least at p = 1 - share / 2
            p, w_1, w_0 = (
                1 / (1 + np.exp(-logits[..., 1])),
                answer_BC[:, 1] * weight_C[1],
                answer_BC[:, 0] * weight_C[0],
            )
            assert yes.grad is not None
            np.testing.assert_allclose(yes.grad.numpy(), (p * w_0 - (1 - p) * w_1) / yes.numel(), rtol=1e-9)


@pytest.mark.parametrize(("name", "kind"), [("classification", "categories"), ("attributes", "attributes")])
def test_a_task_smooths_its_labels(name: Any, kind: str, market: Market, tmp_path: Path) -> None:
    """The settings reach the loss of its stage."""
    build_tokenizer(["red cotton shirt"], 100, tmp_path / "words")
    words = load_tokenizer(str(tmp_path / "words"))
    model = ModelConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    logits, labels = torch.randn(1, 6, 4), torch.tensor([0, 1, 1, 0, 1, 1])
    loss: Any = class_loss
    if name == "attributes":
        logits, labels, loss = logits[..., 0], labels.float(), binary_loss
    for share in (0.0, 0.2):
        task = TaskConfig(name=name, label_smoothing=share, class_weights="sqrt")
        data = DataConfig(str(market.catalog), table=str(market.table(kind)), image_size=64)
        config = FinetuneConfig(RunConfig("r", max_steps=1), data, model, task=task)
        inputs = Inputs(*open_catalog(data, kind), words)  # type: ignore[arg-type]
        objective: Any = task_stage(config).objective(config, inputs)
        weights = class_weights(inputs.labels, TASKS[name].labels(inputs.labels, task), task)
        found = objective.losses(ViewsOutput(logits, torch.zeros(1, 6, 32)), labels)["loss"]
        assert float(found) == float(loss(logits, labels, weights, share))
        assert (float(found) == float(loss(logits, labels, weights))) == (share == 0)


def test_class_weights_keep_the_mean_at_one(market: Market) -> None:
    table = Table(market.table("categories"))
    labels = CLASSIFICATION.labels(table, TaskConfig())
    of_row = table.column("label")[table.rows("train")]
    for given in ("balanced", "sqrt", (1.0, 2.0, 3.0, 4.0)):
        weights = class_weights(table, labels, TaskConfig(name="classification", class_weights=given))
        assert weights is not None
        assert float(weights[of_row].mean()) == pytest.approx(1.0, rel=1e-5)
        sums = torch.bincount(torch.from_numpy(of_row), weights[of_row].double())
        if given == "balanced":
            assert torch.allclose(sums, sums.mean().expand(4))
        elif given == "sqrt":  # a class of four times the rows weighs twice as much in total
            counts = torch.bincount(torch.from_numpy(of_row)).double()
            assert torch.allclose(sums / sums[0], (counts / counts[0]).sqrt())
        else:
            assert torch.allclose(weights / weights[0], torch.tensor(given))
    assert class_weights(table, labels, TaskConfig(name="classification")) is None


def test_labels_by_name(market: Market) -> None:
    table = Table(market.table("categories"))
    known = known_classes(table, ("warm natural", "hats", "cold fine"))
    of = {name: int(known.of[label]) for label, name in enumerate(table.class_names)}
    assert of == {"cold fine": 2, "cold natural": -1, "warm fine": -1, "warm natural": 0}
    found = found_or_not(table, "warm fine")
    assert [int(found.of[table.class_names.index(name)]) for name in ("warm fine", "cold fine")] == [1, 0]


@dataclass(frozen=True)
class Pairs:
    """Alignment-like samples that are all there."""

    count: int = 4000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(index, label=1, other=index + 1)


@pytest.mark.parametrize("modality", ["title", "image", "either"])
def test_missing_at_a_rate(modality: str) -> None:
    """The share is the rate, sets grow with it, the items of a pair and the seeds differ, the order is no matter."""

    def drawn(rate: float, seed: int = 0, which: str = "hidden") -> list[frozenset[str]]:
        samples = WithMissing(Pairs(), modality, rate, seed)
        return [getattr(samples[n], which) for n in range(len(samples))]

    low, high = drawn(0.3), drawn(0.7)
    for rate, found in ((0.3, low), (0.7, high)):
        assert np.mean([bool(hidden) for hidden in found]) == pytest.approx(rate, abs=0.03)
    assert all(a == b for a, b in zip(low, high, strict=True) if a)
    assert drawn(0.3) == low and drawn(0.3, seed=1) != low and drawn(0.3, which="other_hidden") != low
    assert all(drawn(1.0)) and not any(drawn(0.0))
    kinds = {name: sum(name in hidden for hidden in high) for name in ("title", "image")}
    assert all(len(hidden) <= 1 for hidden in high)
    if modality == "either":
        assert kinds["title"] / kinds["image"] == pytest.approx(1.0, abs=0.1)
    else:
        assert kinds[modality] and sum(kinds.values()) == kinds[modality]
    few = Chosen(WithMissing(Pairs(), modality, 0.3, 0), np.array([7, 3]))
    assert [few[0].hidden, few[1].hidden] == [low[7], low[3]] and few[0].item == 7


def test_what_is_hidden_is_not_shown(market: Market, tmp_path: Any) -> None:
    from mbsd.catalog.reader import Catalog
    from mbsd.config.data import DataConfig
    from mbsd.data.batch_builder import BatchBuilder
    from mbsd.data.decode_dali import make_decoder
    from mbsd.data.spec import BatchSpec
    from mbsd.data.text import build_tokenizer

    catalog = Catalog(market.catalog)
    words = build_tokenizer(catalog.table()["title"].to_pylist(), 600, tmp_path)
    data = DataConfig(catalog="", image_size=32)
    spec = BatchSpec(("full",), None, patches_per_image=16)
    builder = BatchBuilder(catalog, words, data, spec, make_decoder("torchvision", 32))
    shown = [Sample(4, other=5), Sample(4, other=5, hidden=frozenset({"title"}), other_hidden=frozenset({"image"}))]
    batch = builder.build(shown, np.arange(2), np.zeros(2, dtype=np.int64))
    text = [int(n) for n in np.diff(batch.views.cu_seqlens)]
    assert batch.images.shape[0] == 3
    title = [len(words.tokenize(catalog.title(item))) for item in (4, 5)]
    assert text == [title[0] + 2 + 16, 2 + 16, title[1] + 2 + 16, title[1] + 2]


@torch.no_grad()
def test_the_papers_pair_head_is_a_sum() -> None:
    """f(s) + g(t): (a, a) and (b, b) together score as (a, b) and (b, a) do; the features that compare do not."""
    samples = random_samples(MIXED[:2], 0)
    excess = {}
    for head in ("concat", "compare"):
        config = tiny_config(pair_head=head)
        model = MbsdForAlignment(config).eval()
        randomise(model, 1)

        def of(first: int, second: int, model: MbsdForAlignment = model, config: Any = config) -> float:
            return float(model(hand_batch([samples[first], samples[second]], ("full",), config)).logits[0, 0])

        excess[head] = abs(of(0, 0) + of(1, 1) - of(0, 1) - of(1, 0))
    assert excess["concat"] < 1e-4 < 1e-2 < excess["compare"]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Accuracy of a coin of 0.8, 100 tables of 60 rows: about 95 % of the intervals hold 0.8."""
    rng = np.random.default_rng(3)

    def accuracy(scores: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
        return {"accuracy": float((scores == labels).mean())}

    held = 0
    for seed in range(100):
        right = rng.random(60) < 0.8
        low, high = intervals(accuracy, right.astype(int), np.ones(60, dtype=np.int64), 100, seed)["accuracy"]
        held += low <= 0.8 <= high
    assert 0.87 <= held / 100 <= 1.0


def test_intervals_are_seeded_and_leave_out_what_is_not_defined() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    scores = rng.normal(size=80) + labels
    first = intervals(binary_metrics, scores, labels, 100, seed=1)
    assert set(first) == {"accuracy", "precision", "recall", "f1", "roc_auc"}
    assert first == intervals(binary_metrics, scores, labels, 100, seed=1)
    assert first != intervals(binary_metrics, scores, labels, 100, seed=2)
    rare = np.zeros(80, dtype=np.int64)
    rare[0] = 1
    assert "roc_auc" not in intervals(binary_metrics, scores, rare, 100, seed=1)


def test_precision_at_recall_is_what_its_threshold_gives() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(120) < 0.2).astype(np.int64)
    logits = rng.normal(size=120) + 1.5 * labels
    found = precision_at_recall(logits, labels, (0.5, 0.9, 1.0))
    for wanted, of in found.items():
        flagged = 1 / (1 + np.exp(-logits)) >= of["threshold"] - 1e-12
        assert precision_score(labels, flagged) == pytest.approx(of["precision"], abs=1e-9)
        assert recall_score(labels, flagged) == pytest.approx(of["recall"], abs=1e-9)
        assert of["recall"] >= float(wanted)
        better = [
            precision_score(labels, logits >= t) for t in logits if recall_score(labels, logits >= t) >= float(wanted)
        ]
        assert of["precision"] == pytest.approx(max(better), abs=1e-9)
    assert precision_at_recall(logits, np.zeros(120, dtype=np.int64), (0.5,)) == {}


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_clusters_that_are_plain(method: Any) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    # Directions count, lengths do not.
    vectors = (np.eye(3, 8)[labels] + rng.normal(0, 0.05, (120, 8))) * rng.uniform(0.1, 9, (120, 1))
    clusters = group(vectors, 3, ClusteringConfig(method=method))
    metrics = cluster_metrics(clusters, labels)
    assert metrics["purity"] > 0.95 and metrics["nmi"] > 0.85 and metrics["ari"] > 0.85
    chance = cluster_metrics(rng.integers(0, 3, 120), labels)
    assert chance["purity"] < 0.6 and abs(chance["ari"]) < 0.1
    assert cluster_metrics(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))["purity"] == 0.75


def test_class_metrics_by_hand() -> None:
    logits = np.eye(3)[[0, 1, 1, 2]]
    metrics = class_metrics(logits, np.array([0, 0, 1, 2]))
    assert metrics == {"accuracy": 0.75, "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3)}
