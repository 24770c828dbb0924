"""One catalogue and one trained run a task, for all tests of tasks, evaluation, vectors and inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ranks import launch
from tests.tasks.market import DRAWN, POSITIVE, Market, build_market, finetune_arguments

# Task -> kind of table, steps, the task whose weights it starts from, settings.
RUNS: dict[str, tuple[str, int, str, list[object]]] = {
    "classification": (
        "categories",
        120,
        "",
        ["--task.name=classification", "--run.validate_every=40", "--data.num_workers=1", *DRAWN],
    ),
    "attributes": ("attributes", 50, "classification", ["--task.class_weights=balanced"]),
    "sensitive": ("categories", 30, "classification", ["--task.name=sensitive", f"--task.positive={POSITIVE}"]),
    "alignment": ("alignment", 30, "classification", ["--task.name=alignment"]),
}


@dataclass(frozen=True)
class Trained:
    """A run a task, and where its table is."""

    market: Market
    runs: dict[str, Path]

    def kind(self, task: str) -> str:
        return "categories" if task == "clustering" else RUNS[task][0]

    def model(self, task: str) -> Path:
        return self.runs["classification" if task == "clustering" else task]


@pytest.fixture(scope="package")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    return build_market(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="package")
def trained(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every task through its launcher, on two ranks."""
    folder = tmp_path_factory.mktemp("trained")
    runs: dict[str, Path] = {}
    for task, (kind, steps, source, settings) in RUNS.items():
        start = [f"--run.init_from={runs[source]}"] if source else []
        arguments = finetune_arguments(market, kind, folder / task, steps, *settings, *start)
        launch(2, arguments, folder / f"{task}_log", launcher="finetune")
        runs[task] = folder / task
    return Trained(market, runs)
