"""Settings of the studies that pre-train: `launchers/ablation.py` and `launchers/missing.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mbsd.errors import UserError
from mbsd.studies.commands import LaunchConfig
from mbsd.studies.shop import ShopConfig

Row = Literal[1, 2, 3, 4, 5, 6, 7, 8]


@dataclass(frozen=True)
class StageConfig:
    """One kind of run of a study: the files that a user would name, and what is changed in them."""

    config: str
    """YAML of the launcher."""
    deepspeed_config: str
    """DeepSpeed's JSON."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted settings over the YAML's, say {run.max_steps: 60}."""


@dataclass(frozen=True)
class StudyConfig:
    """Rows of Table 6, each over seeds and a grid of fine-tunings."""

    out: str
    """Folder of everything the study makes. An unfinished study in it is gone on with."""
    stage1: StageConfig
    stage2: StageConfig
    finetune: StageConfig
    """Attribute prediction. Its data section is the evaluation's too."""
    rows: tuple[Row, ...]
    """Of Table 6: 1 MBSD; 2 w/o pre-training; 3 w/o preliminary pre-training; 4 w/o continue pre-training; 5 w/o
    continue pre-training and mini CNN; 6 w/o L_QT, L_QV, L_KL and L_RS; 7 w/o L_KL and L_RS; 8 w/o adaptive weight."""
    seeds: tuple[int, ...] = (0,)
    """Each is run.seed of a whole chain, pre-training too."""
    batch_sizes: tuple[int, ...] | None = None
    """train_batch_size of fine-tuning; default: what its JSON says."""
    learning_rates: tuple[float, ...] | None = None
    """Of fine-tuning; default: what its JSON says."""
    constant_weight: float = 1.0
    """Of row 8, in place of w_i (sdmi.weight)."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Dotted settings of `launchers/evaluate.py`, say {bootstrap: 0}."""
    shop: ShopConfig | None = None
    """A synthetic shop is drawn below `out`, in place of the catalogue and tables that the YAML files name."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def check(self) -> None:
        """Raise UserError where the settings cannot be meant."""
        self.launch.check()
        for name, values in (
            ("rows", self.rows), ("seeds", self.seeds), ("batch_sizes", self.batch_sizes),
            ("learning_rates", self.learning_rates),
        ):  # fmt: skip
            check_choices(name, values)


@dataclass(frozen=True)
class AblationConfig(StudyConfig):
    """`launchers/ablation.py`: Table 6."""

    rows: tuple[Row, ...] = (1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class MissingStudyConfig(StudyConfig):
    """`launchers/missing.py`: Fig. 7, rows of Table 6 with titles or pictures taken from the test items."""

    rows: tuple[Row, ...] = (6, 1)
    """Which are compared, as in Table 6; the last one less the first is tabulated too."""
    rates: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Shares of the test rows that lose their title (or picture). All of them is the view image (or text)."""

    def check(self) -> None:
        """See StudyConfig; and every rate is a share."""
        super().check()
        check_choices("rates", self.rates)
        if not all(0 < rate < 1 for rate in self.rates):
            raise UserError(f"rates={list(self.rates)}: expected numbers between 0 and 1; 0 and 1 are always there")


def check_choices(name: str, values: tuple[Any, ...] | None) -> None:
    """Raise UserError where a list of values is empty, has one twice, or one that makes no sense."""
    if values is None:
        return
    least = 0 if name == "seeds" else 1 if name == "batch_sizes" else None
    wrong = [value for value in values if (value < least if least is not None else value <= 0)]
    if not values or len(set(values)) < len(values) or wrong:
        expected = "above 0" if least is None else f"of {least} or more"
        raise UserError(f"{name}={list(values)}: expected one or more different numbers {expected}")
