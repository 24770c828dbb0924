"""The launches of a comparison: of each model and seed the pre-training, then a fine-tuning and scores a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mbsd.config.paths import tree_with_home
from mbsd.config.run import BaseConfig
from mbsd.io.settings_text import read_yaml
from mbsd.tools.studies.compare.settings import CompareConfig, ComparedModel, ComparedTables
from mbsd.tools.studies.launches import Launch, Launcher, evaluation, training
from mbsd.tools.studies.settings import StageConfig
from mbsd.tools.studies.settings_files import changed

# A checkpoint brings them: a run that starts from one does not name them again.
OF_WEIGHTS = (
    "backbone", "image_weights", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "patchify", "patchify_blocks", "patchify_strides", "patchify_channels", "image_cls",
    "initializer_range", "position_range", "resnet_blocks",
)  # fmt: skip
SCORES = "test"

# (model's key, number of its stage, from 1) -> optimizer steps.
Steps = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Trained:
    """One fine-tuning of a model; its scores lie in the run's folder.

    Attributes:
        pretrained: the runs of its pre-training, in order.
    """

    model: ComparedModel
    task: str
    seed: int
    folder: Path
    pretrained: tuple[Path, ...]

    @property
    def scores(self) -> Path:
        """The JSON of its evaluation."""
        return self.folder / f"{SCORES}.json"


def plan(config: CompareConfig, tables: ComparedTables, steps: Steps) -> tuple[list[Launch], list[Trained]]:
    """All launches, those that others start from first, and the fine-tunings.

    Args:
        steps: of the stages whose length is not as their files say.

    Raises:
        UserError: a file cannot be read.
    """
    launches: list[Launch] = []
    cells: list[Trained] = []
    for seed in config.chosen_seeds:
        for model in config.chosen_models:
            folder = f"seed-{seed}/{model.key}"
            before = list(pretraining(config, tables, model, (folder, {"run.seed": seed}), steps))
            launches += before
            runs = tuple(Path(config.out) / launch.name for launch in before)
            for task, table in tables.of_tasks():
                files: StageConfig | None = getattr(config.tasks, task)
                if files is not None:
                    cell = Trained(model, task, seed, Path(config.out) / folder / task, runs)
                    cells.append(cell)
                    launches += _task(config, tables.catalog, table, files, cell)
    return launches, cells


def pretraining(
    config: CompareConfig, tables: ComparedTables, model: ComparedModel, runs: tuple[str, dict[str, Any]], steps: Steps
) -> Iterator[Launch]:
    """The stages of one chain, each started from the one before it.

    Args:
        runs: the folder of its runs below the study's, and dotted settings of them all.
        steps: as for `plan`.
    """
    folder, settings = runs
    tested = [path for _, path in tables.of_tasks()]
    start: str | None = None
    for number, stage in enumerate(model.pretrain, 1):
        more: dict[str, Any] = {"data.table": tables.pairs} if stage.table else {"data.held_out": tested}
        if (model.key, number) in steps:
            more |= {"run.max_steps": steps[model.key, number], "run.epochs": None}
        tree = changed(_tree(config, model, stage, tables.catalog, start), {**more, **settings})
        name = f"{folder}/pretrain-{number}"
        yield _training(config, name, "pretrain", (tree, stage), start)
        start = name


def _task(config: CompareConfig, catalog: str, table: str, files: StageConfig, cell: Trained) -> Iterator[Launch]:
    """A fine-tuning and its evaluation."""
    name, out = str(cell.folder.relative_to(config.out)), Path(config.out)
    start = str(cell.pretrained[-1].relative_to(out)) if cell.pretrained else None
    given = {"task.name": cell.task, "task.views": [cell.model.view], "data.table": table, "run.seed": cell.seed}
    tree = changed(_tree(config, cell.model, files, catalog, start), {**given, **cell.model.finetune})
    yield _training(config, name, "finetune", (tree, files), start)
    asked = {"model": str(cell.folder), "data": tree.get("data", {}), "views": [cell.model.view], "bootstrap": 0}
    yield replace(evaluation(f"{name}/{SCORES}", cell.scores, changed(asked, config.evaluate)), after=(name,))


def _tree(
    config: CompareConfig, model: ComparedModel, files: StageConfig, catalog: str, start: str | None
) -> dict[str, Any]:
    """The settings of a run that starts from the run `start`; its section model is not the file's, but the study's."""
    tree = changed(read_yaml(Path(files.config)), {**files.settings, "data.catalog": catalog})
    sizes = {name: value for name, value in {**config.model, **model.model}.items() if value is not None}
    if start is not None:
        sizes = {name: value for name, value in sizes.items() if name not in OF_WEIGHTS}
    source = str(Path(config.out) / start) if start is not None else None
    whole = changed(tree, {"model": {"architecture": model.architecture, **sizes}, "run.init_from": source})
    return tree_with_home(whole, BaseConfig)


def _training(
    config: CompareConfig, name: str, launcher: Launcher, given: tuple[dict[str, Any], StageConfig], start: str | None
) -> Launch:
    tree, files = given
    run = training(name, launcher, Path(config.out) / name, tree, files.deepspeed().tree)
    return replace(run, after=(start,) if start is not None else ())
