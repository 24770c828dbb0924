"""Settings of the studies that pre-train: `launchers/ablation.py` and `launchers/missing.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbsd.config.deepspeed import DeepSpeedConfig, read_deepspeed
from mbsd.config.parse import expand
from mbsd.config.paths import PathText
from mbsd.config.ranges import at_least, check_ranges
from mbsd.config.scoring import View
from mbsd.errors import UserError
from mbsd.tools.studies.commands import LaunchConfig
from mbsd.tools.studies.shop import ShopConfig

ROWS = range(1, 9)


@dataclass(frozen=True)
class StageConfig:
    """One kind of run of a study: the files that a user would name, and the settings that differ from them."""

    config: PathText
    """YAML of the launcher."""
    deepspeed_config: PathText
    """DeepSpeed's JSON."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted settings that override the YAML's, such as {run.max_steps: 60}."""

    def deepspeed(self) -> DeepSpeedConfig:
        """What the JSON says.

        Raises:
            UserError: it cannot be read, or asks for what this project does not do.
        """
        found = read_deepspeed(Path(self.deepspeed_config))
        found.check()
        return found


@dataclass(frozen=True)
class TablesConfig:
    """A catalogue of your own and its tables."""

    catalog: PathText
    """Folder written by `mbsd catalog build`."""
    pairs: PathText
    """Of stage 2: by `mbsd pairs mine`, or `mbsd pairs derive` without a log."""
    attributes: PathText
    """Of fine-tuning and evaluation: by `mbsd tables derive attributes`, for one."""


@dataclass(frozen=True)
class StudyConfig:
    """Rows of Table 6, each over seeds and a grid of fine-tunings."""

    out: PathText
    """Folder of everything the study makes. An unfinished study in it is resumed."""
    stage1: StageConfig
    stage2: StageConfig
    finetune: StageConfig
    """Attribute prediction. Its data section is the evaluation's too."""
    rows: str | int = "1-8"
    """Of Table 6, such as 1,3-5: 1 MBSD; 2 w/o pre-training; 3 w/o preliminary pre-training; 4 w/o continue
    pre-training; 5 w/o continue pre-training and mini CNN; 6 w/o L_QT, L_QV, L_KL and L_RS; 7 w/o L_KL and L_RS;
    8 w/o adaptive weight of L_KL and L_RS."""
    seeds: str | int = 0
    """Such as 0-2: each is run.seed of a whole chain, pre-training too."""
    batch_sizes: tuple[int, ...] | None = None
    """train_batch_size of fine-tuning; default: that of its JSON."""
    learning_rates: tuple[float, ...] | None = None
    """Of fine-tuning; default: that of its JSON."""
    constant_weight: float = 1.0
    """Of row 8, in place of w_i (sdmi.weight)."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Dotted settings of `launchers/evaluate.py`, such as {bootstrap: 0}."""
    shop: ShopConfig | None = None
    """A synthetic shop is drawn below `out`, in place of the catalogue and tables that the YAML files name."""
    tables: TablesConfig | None = None
    """A catalogue of your own and its tables, in place of those that the YAML files name."""
    withheld: bool = False
    """Whether ROC-AUC is also told of attributes alone that no query of the pair table named: those that
    `mbsd pairs derive --withhold` left out of them."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def check(self) -> None:
        """Raise UserError for a row, seed, rate or launch that makes no sense."""
        self.launch.check()
        expand(str(self.seeds), "seeds")
        if wrong := set(self.chosen_rows) - set(ROWS):
            raise UserError(f"rows {self.rows}: Table 6 has rows 1 to 8, and no {min(wrong)}")
        check_grid(self.batch_sizes, self.learning_rates)
        if self.shop is not None and self.tables is not None:
            raise UserError("shop and tables are both set: a study has a synthetic shop or a catalogue of your own")
        if self.shop is not None and self.withheld:
            raise UserError(
                "withheld=true: the queries of a synthetic shop's log name every attribute; set tables in place of "
                "shop, with pairs made by `mbsd pairs derive --withhold ATTRIBUTE`"
            )

    @property
    def chosen_rows(self) -> tuple[int, ...]:
        """Of Table 6, in rising order."""
        return expand(str(self.rows), "rows")

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """One chain of runs for each, in rising order."""
        return expand(str(self.seeds), "seeds")


@dataclass(frozen=True)
class AblationConfig(StudyConfig):
    """`launchers/ablation.py`: Table 6."""

    views: tuple[View, ...] = ("full",)
    """Of the test rows; each has a table."""
    bootstrap: int = at_least(0, default=0)
    """Resamples of the test items for an interval of the first row's ROC-AUC less each other one's, pair by pair; 0: no
    differences are told."""

    def check(self) -> None:
        """See StudyConfig; and there are views, each once."""
        super().check()
        if not self.views or len(set(self.views)) < len(self.views):
            raise UserError(f"views={list(self.views)}: expected one or more of full, text and image, each once")
        check_ranges(self)


@dataclass(frozen=True)
class MissingStudyConfig(StudyConfig):
    """`launchers/missing.py`: Fig. 7, rows of Table 6 with titles or pictures taken from the test items."""

    rows: str | int = "1,6"
    """Which are compared, numbered as in Table 6: 1 with SDMI, 6 without it, 7 its losses without distillation. The
    first of them less each other one is tabulated too."""
    rates: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Shares of the test rows that lose their title (or picture). All of them is the view image (or text)."""

    def check(self) -> None:
        """See StudyConfig; and every rate is a share."""
        super().check()
        if not all(0 < rate < 1 for rate in self.rates) or len(set(self.rates)) < len(self.rates):
            raise UserError(
                f"rates={list(self.rates)}: expected different numbers between 0 and 1, which are there anyway"
            )


def check_grid(batch_sizes: tuple[int, ...] | None, learning_rates: tuple[float, ...] | None) -> None:
    """Raise UserError where a side of a grid is empty, has a value twice, or one that is not above 0."""
    sides: tuple[tuple[str, tuple[float, ...] | None], ...]
    sides = (("batch sizes", batch_sizes), ("learning rates", learning_rates))
    for name, values in sides:
        if values is not None and (not values or len(set(values)) < len(values) or min(values) <= 0):
            raise UserError(f"{name} {list(values)}: expected one or more different numbers above 0")
