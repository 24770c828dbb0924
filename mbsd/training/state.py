"""Where a run is: all that a loop moves on, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mbsd.config.run import LAST
from mbsd.data.loader import TrainLoader
from mbsd.errors import UserError
from mbsd.training.average import WeightAverage
from mbsd.training.early_stopping import EarlyStopping


@dataclass
class TrainState:
    """Where a run is. Saved and restored by `Checkpoints` alone.

    Attributes:
        total_steps: of the run.
        loader: where the data are.
        average: of the weights; it lies in the optimizer's state, and is saved and restored there.
        early_stopping: which validation was the best; None: the run chooses none.
        step: the last step that is done.
    """

    total_steps: int
    loader: TrainLoader
    average: WeightAverage
    early_stopping: EarlyStopping | None = None
    step: int = 0

    @property
    def at_last_step(self) -> bool:
        """Whether no step follows this one."""
        return self.step >= self.total_steps

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train: all steps are done, or patience is exhausted."""
        return self.at_last_step or (self.early_stopping is not None and self.early_stopping.exhausted)

    @property
    def chooses(self) -> bool:
        """Whether validations choose the best checkpoint."""
        return self.early_stopping is not None

    def owes_validation(self, validate_every: int) -> bool:
        """Whether a signal came before the validation of this step, which chooses the best checkpoint."""
        return self.early_stopping is not None and self.early_stopping.owes(self.step, validate_every)

    def takes(self, metrics: Mapping[str, float]) -> bool:
        """Take in the validation of this step; whether the step is to be saved for it."""
        chooser = self.early_stopping
        return chooser is not None and (chooser.take(self.step, metrics) or chooser.exhausted)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON."""
        chooser = self.early_stopping
        return {
            "step": self.step,
            "loader": self.loader.state_dict(),
            "selection": chooser.state_dict() if chooser is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, own: bool) -> None:
        """Put a state back.

        Args:
            own: it is of this run; early stopping is restored only when a run resumes itself.

        Raises:
            UserError: the data order or the metric is another one.
        """
        self.step = state["step"]
        self.loader.load_state_dict(state["loader"])
        selection = state.get("selection")
        if not own or selection is None:
            return
        if self.early_stopping is None:
            raise UserError(
                f"best.metric={LAST}: the run's checkpoints were compared by {selection['metric']}; set it back, or "
                "choose another run.dir"
            )
        self.early_stopping.load_state_dict(selection)
