"""fp16's skipped steps: a few are how dynamic loss scaling finds its scale, many in a row are a run that is lost."""

from __future__ import annotations

from typing import Any

from mbsd.errors import UserError


class SkippedSteps:
    """Counts the steps in a row that DeepSpeed skipped because a gradient overflowed, and ends the run at `limit`.

    DeepSpeed knows on the host whether it skipped, and the same on every rank: nothing here waits for the device.
    """

    def __init__(self, engine: Any, limit: int) -> None:
        self.engine, self.limit = engine, limit
        self._seen, self.in_a_row = int(engine.skipped_steps), 0

    def check(self, step: int) -> None:
        """Call it after each step.

        Raises:
            UserError: `limit` steps in a row were skipped; the weights are those of the last step that was not.
        """
        skipped = int(self.engine.skipped_steps)
        self.in_a_row = self.in_a_row + 1 if skipped > self._seen else 0
        self._seen = skipped
        if self.in_a_row >= self.limit:
            raise UserError(
                f"step {step}: {self.in_a_row} steps in a row were skipped because gradients overflowed (loss scale "
                f"{loss_scale(self.engine):g}, run.max_skipped_steps={self.limit}); the last checkpoint stands. Look "
                "at loss and grad_norm before the first one: lower the learning rate or lengthen the warm-up, look for "
                "a broken batch, or train in bf16",
                shared=True,
            )


def loss_scale(engine: Any) -> float:
    """The factor that fp16 losses are multiplied by now; `engine.loss_scale()` is the JSON's, 0 for a dynamic one."""
    return float(engine.optimizer.loss_scale)


def leave_overflows_to_us(engine: Any) -> None:
    """Without this DeepSpeed ends the run with a traceback as soon as an overflow finds the scale at its minimum."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False
