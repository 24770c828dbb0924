"""Whether a run still learns: losses and weights that are no numbers, and fp16 steps that are all skipped, end it.

A few skipped steps are how dynamic loss scaling finds its scale; many in a row are a run that is lost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from mbsd.config.run import RunConfig
from mbsd.errors import UserError


class DivergedError(UserError):
    """The run has diverged; raised on every rank. Checkpoints saved before are good."""


class SkippedSteps:
    """Counts the steps in a row that DeepSpeed skipped for their overflow, and ends the run at run.max_skipped_steps.

    DeepSpeed knows on the host whether it skipped, and the same on every rank: nothing here waits for the device.
    """

    def __init__(self, engine: Any, run: RunConfig) -> None:
        self.engine, self.run = engine, run
        self._seen, self.in_a_row = int(engine.skipped_steps), 0

    def check(self, step: int) -> None:
        """Call it after each step.

        Raises:
            DivergedError: so many in a row were skipped; the weights are those of the last step that was not.
        """
        skipped = int(self.engine.skipped_steps)
        self.in_a_row = self.in_a_row + 1 if skipped > self._seen else 0
        self._seen = skipped
        if self.in_a_row >= self.run.max_skipped_steps:
            raise DivergedError(
                f"step {step}: {self.in_a_row} steps in a row were skipped (run.max_skipped_steps) because gradients "
                f"overflow at a loss scale of {loss_scale(self.engine):g}: the learning rate is too high or a batch "
                f"broken; {_what_to_do(self.run)}",
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


def refuse_divergence(
    values: dict[str, float], state: dict[str, float], step: int, steps_since_log: int, run: RunConfig
) -> None:
    """End the run on every rank if a mean loss is NaN or infinite: the means over ranks are equal on all of them."""
    broken = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        found = ", ".join(broken + [f"{name}={value:.4g}" for name, value in state.items()])
        raise DivergedError(
            f"step {step}: the mean over steps {step - steps_since_log + 1}-{step} is {found}; {_what_to_do(run)}",
            shared=True,
        )


def refuse_broken_weights(engine: Any, step: int, run: RunConfig) -> None:
    """The loss of a step is that of the weights before it: its own update may have broken them."""
    names = [name for name, _ in engine.module.named_parameters()]
    finite = torch.stack([p.detach().isfinite().all() for p in engine.module.parameters()]).float()
    dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    broken = [name for name, whole in zip(names, finite.tolist(), strict=True) if not whole]
    if broken:
        raise DivergedError(
            f"step {step}: {len(broken)} of {len(names)} weights hold values that are no numbers, {broken[0]} among "
            f"them; {_what_to_do(run)}",
            shared=True,
        )


def _what_to_do(run: RunConfig) -> str:
    return (
        f"the run ends without another checkpoint; {run.dir}/metrics.jsonl shows in grad_norm when it began; lower "
        "optimizer.params.lr, warm up for longer or set gradient_clipping in a new run.dir "
        f"(run.init_from={run.dir} starts from this run's newest checkpoint)"
    )
