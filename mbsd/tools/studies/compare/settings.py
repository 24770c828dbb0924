"""Settings of `launchers/compare.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from mbsd.config.parse import expand
from mbsd.config.paths import PathText
from mbsd.config.ranges import at_least, check_ranges
from mbsd.config.scoring import View
from mbsd.errors import UserError
from mbsd.tools.studies.commands import LaunchConfig
from mbsd.tools.studies.settings import StageConfig
from mbsd.tools.studies.shop import ShopConfig

# Task -> the table of `tables` that it reads.
TABLE_OF = {"attributes": "attributes", "alignment": "alignment", "classification": "categories"}


@dataclass(frozen=True)
class PretrainStage(StageConfig):
    """One stage of a model's pre-training, started from the stage before it."""

    table: Literal["pairs"] | None = None
    """Of `tables`, where the stage reads one. A stage without one reads the catalogue, without the items on which the
    tasks are validated and tested."""
    share: float = 1.0
    """Of the model's pre-training time, relative to its other stages."""


@dataclass(frozen=True)
class ComparedModel:
    """One of the models that are compared."""

    name: str
    """As the tables show it."""
    architecture: str
    """model.architecture of all its runs."""
    view: View = "full"
    """What the tasks show it: text of a text model, image of a visual one."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the section model that are its own, on top of the study's; null removes one of these."""
    pretrain: tuple[PretrainStage, ...] = ()
    """In order; without one, the tasks start from drawn weights, or from model.backbone."""
    finetune: dict[str, Any] = field(default_factory=dict)
    """Dotted settings of all its fine-tunings, such as {optim.image: 2.0}."""

    @property
    def key(self) -> str:
        """In the names of folders."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class ComparedTasks:
    """How each task is fine-tuned; one that is left out, or has no table, has no table of results."""

    attributes: StageConfig | None = None
    """Table 1."""
    alignment: StageConfig | None = None
    """Table 4."""
    classification: StageConfig | None = None
    """Table 5."""


@dataclass(frozen=True)
class ComparedTables:
    """A catalogue and its task tables. The test rows are the same for all models."""

    catalog: PathText
    """Folder written by `mbsd catalog build`."""
    attributes: PathText | None = None
    """By `mbsd tables derive attributes` or `mbsd tables build attributes`."""
    alignment: PathText | None = None
    """By `mbsd tables build alignment`, or `mbsd tables derive alignment` of a catalogue with twins."""
    categories: PathText | None = None
    """By `mbsd tables derive categories` or `mbsd tables build categories`."""
    pairs: PathText | None = None
    """Of pre-training stages that read pairs: by `mbsd pairs mine`, or `mbsd pairs derive` without a log."""

    def of_tasks(self) -> Iterator[tuple[str, str]]:
        """(task, its table) of those that there are."""
        for task, name in TABLE_OF.items():
            if (path := getattr(self, name)) is not None:
                yield task, path


@dataclass(frozen=True)
class CompareConfig:
    """`launchers/compare.py`: Tables 1, 4 and 5, each model pre-trained and fine-tuned by the same launchers."""

    out: PathText
    """Folder of everything the study makes. An unfinished study in it is resumed."""
    models: tuple[ComparedModel, ...]
    """The models, in the tables' order."""
    tasks: ComparedTasks
    """Fine-tunings. Their data sections are the evaluations' too."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the section model that all models have, in pre-training and fine-tuning: their common sizes."""
    seeds: str | int = 0
    """Such as 0-2: each is run.seed of a whole chain, pre-training too."""
    minutes: float | None = None
    """Of pre-training, the same for every model and seed, by the speed of each stage as it is measured first, without
    validating and saving. Default: as long as the YAML files of the stages say."""
    measure_steps: int = at_least(4, default=40)
    """Of a measurement of a stage's speed."""
    only: str | None = None
    """Names of the models that are run, by commas; default: all. The others can be added later."""
    tables: ComparedTables | None = None
    """A catalogue of your own and its tables; this or shop."""
    shop: ShopConfig | None = None
    """A synthetic shop that is drawn below `out`. It has no table of alignment."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Dotted settings of `launchers/evaluate.py`, such as {micro_batch: 256}."""
    bootstrap: int = at_least(0, default=1000)
    """Resamples of the test items for an interval of each pair of models; 0: no differences are told."""
    latency_steps: int = at_least(1, default=50)
    """Timed forwards of one row, of each model; the models take turns."""
    jobs: int = at_least(1, default=1)
    """Launches that run at the same time at most; they share the cores."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def check(self) -> None:
        """Raise UserError where the settings contradict each other."""
        check_ranges(self)
        self.launch.check()
        expand(str(self.seeds), "seeds")
        if (self.tables is None) == (self.shop is None):
            given = "neither is set" if self.tables is None else "both are set"
            raise UserError(f"tables and shop: {given}; set exactly one of them")
        if self.minutes is not None and self.minutes <= 0:
            raise UserError(f"minutes={self.minutes}: expected more than 0, or leave it out")
        keys = [model.key for model in self.models]
        if not all(keys) or len(set(keys)) < len(keys):
            raise UserError(
                f"models {[model.name for model in self.models]}: expected one or more names, each with letters or "
                "digits and none like another"
            )
        if unknown := [name for name in self._only if name not in [model.name for model in self.models]]:
            raise UserError(f"only={self.only}: {unknown[0]} is none of {[model.name for model in self.models]}")
        if any(stage.share <= 0 for model in self.models for stage in model.pretrain):
            raise UserError("models: a share of pre-training is 0 or less; expected more, or leave the stage out")
        if self.tables is not None:
            for model in self.chosen_models:
                if self.tables.pairs is None and any(stage.table for stage in model.pretrain):
                    raise UserError(f"models: a stage of {model.name} reads tables.pairs, which is not set; set it")
            if not any(getattr(self.tasks, task) for task, _ in self.tables.of_tasks()):
                raise UserError("tasks and tables have no task in common: nothing would be fine-tuned")

    @property
    def _only(self) -> list[str]:
        return [name.strip() for name in self.only.split(",")] if self.only is not None else []

    @property
    def chosen_models(self) -> tuple[ComparedModel, ...]:
        """Those that are run, in the tables' order."""
        return tuple(model for model in self.models if self.only is None or model.name in self._only)

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """One chain of runs of each model for each, in rising order."""
        return expand(str(self.seeds), "seeds")
