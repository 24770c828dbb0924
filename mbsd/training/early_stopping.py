"""Which step of a run is the best by a validation metric, and whether waiting for a better one has been long enough.

All of it is in every checkpoint (`run.json`), so that a run that was interrupted decides as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mbsd.config.run import LAST, BaseConfig, BestConfig
from mbsd.errors import UserError
from mbsd.stages.stage import Stage

LOWER_IS_BETTER = ("loss", "loss_image", "loss_text")


@dataclass
class EarlyStopping:
    """The validations so far.

    Attributes:
        metric: its name among the validation's values.
        higher_is_better: or else lower, as of a loss.
        patience: training stops after so many validations in a row without a better value; 0: never.
        best, best_step: the best value, and the first step that reached it (0: none yet).
        seen, value: the last validated step and its value (None: NaN or infinite).
        stale: validations since the best one.
    """

    metric: str
    higher_is_better: bool
    patience: int = 0
    best: float | None = None
    best_step: int = 0
    seen: int = 0
    value: float | None = None
    stale: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether training should stop."""
        return self.patience > 0 and self.stale >= self.patience

    def take(self, step: int, values: Mapping[str, float]) -> bool:
        """Take in the validation of `step`; returns whether it is the best so far. All ranks have the same `values`.

        Raises:
            UserError: the metric is not among them.
        """
        if self.metric not in values:
            raise UserError(
                f"best.metric={self.metric}: the validation of step {step} has no such value; it has "
                f"{', '.join(sorted(values))} (roc_auc and average_precision need rows of both labels)",
                shared=True,
            )
        value = float(values[self.metric])
        better = math.isfinite(value) and (
            self.best is None or (value > self.best if self.higher_is_better else value < self.best)
        )
        self.seen, self.value = step, value if math.isfinite(value) else None
        if better:
            self.best, self.best_step, self.stale = value, step, 0
        else:
            self.stale += 1
        return better

    def owes(self, step: int, every: int) -> bool:
        """Whether the validation of `step` is still to be done: a signal came before it."""
        return step > 0 and every > 0 and step % every == 0 and self.seen < step

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a state back; patience is taken from the settings of now.

        Raises:
            UserError: it is of another metric.
        """
        if state["metric"] != self.metric:
            raise UserError(
                f"best.metric={self.metric}: the run's checkpoints were compared by {state['metric']}; set it back, or "
                "choose another run.dir"
            )
        for name in ("best", "best_step", "seen", "value", "stale"):
            setattr(self, name, state[name])

    def describe(self) -> str:
        """In words."""
        if self.best is None:
            return f"no value of {self.metric} yet"
        return f"best {self.metric} {self.best:.4f} at step {self.best_step}"


def early_stopping_of(config: BaseConfig, stage: Stage) -> EarlyStopping | None:
    """Of a run's settings; None where its stage or they choose no best checkpoint.

    Raises:
        UserError: the stage's validations have no such metric.
    """
    if stage.monitor is None:
        return None
    best = getattr(config, "best", None) or BestConfig()
    if best.metric == LAST:
        return None
    metric, known = best.metric or stage.monitor, stage.charts.held_out
    if metric not in known:
        raise UserError(
            f"best.metric={metric}: validations of this run have {', '.join(known)}; name one of them, or {LAST}",
            shared=True,
        )
    return EarlyStopping(metric, higher_is_better=metric not in LOWER_IS_BETTER, patience=best.patience)
