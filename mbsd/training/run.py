"""A run: the process group, the folder, the watchdog and the signals that one training command lives with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbsd.config.batch_plan import BatchPlan, plan_batches
from mbsd.config.deepspeed import BatchSizes, DeepSpeedConfig, precision
from mbsd.config.run import BaseConfig
from mbsd.config.run_files import DONE
from mbsd.io.console import quiet_libraries, say
from mbsd.parallel.devices import rank_facts, refuse_precision
from mbsd.parallel.world import World, on_rank_zero, process_group, same_on_every_rank
from mbsd.training.determinism import prepare_workspace, repeatable
from mbsd.training.preempt import Stop, StopRequests, stop_requests
from mbsd.training.watchdog import Watchdog

MIN_PATIENCE = 600.0  # seconds that ranks wait for each other at least


@dataclass(frozen=True)
class Schedule:
    """How long a run is.

    Attributes:
        num_samples: of the training split.
        total_steps: optimizer steps.
        batches: of each step.
        deepspeed: DeepSpeed's JSON, resolved for these steps.
    """

    num_samples: int
    total_steps: int
    batches: BatchPlan
    deepspeed: dict[str, Any]


@dataclass(frozen=True)
class Due:
    """What follows a step."""

    losses: bool
    """Read the losses from the device: they must be finite before anything is logged, saved or chosen."""
    log: bool
    validate: bool
    save: bool


@dataclass
class Run:
    """One training command on one rank.

    Attributes:
        config, ds_config: what it was asked for.
        world: this process among all ranks.
        finished: the run folder says that nothing is left to do.
    """

    config: BaseConfig
    ds_config: DeepSpeedConfig
    world: World
    watchdog: Watchdog
    stop_requests: StopRequests
    finished: bool
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        """The run folder as a path."""
        self.folder = Path(self.config.run.dir)

    @property
    def sizes(self) -> BatchSizes:
        """Samples of a step (of the last one, where batches grow), and how ranks and micro-steps cut them.

        Raises:
            UserError: DeepSpeed's batch keys contradict each other.
        """
        return self.ds_config.sizes(self.world.size)

    def schedule(self, num_samples: int) -> Schedule:
        """How long the run is with so many training samples.

        Raises:
            UserError: a DeepSpeed JSON that this project does not train with, or a schedule of batches beside it.
        """
        run = self.config.run
        samples = run.epochs * num_samples if run.epochs is not None else None
        batches = plan_batches(
            self.config.batch_schedule, self.sizes, self.world.size, samples=samples, steps=run.max_steps
        )
        total_steps = run.max_steps or max(1, batches.steps_for(samples or 0))
        return Schedule(num_samples, total_steps, batches, self.ds_config.resolved(self.world.size, total_steps))

    def stop_requested(self, step: int, *, last: bool) -> Stop | None:
        """Whether a signal asked any rank to stop: agreed on by all ranks, one step late; collective, once a step."""
        signal = self.stop_requests.poll() if not last else None
        return Stop(step, signal) if signal is not None else None

    def due(self, step: int, *, last: bool, stopping: bool, chooses: bool) -> Due:
        """What follows a step.

        Args:
            last: the step is the run's last.
            stopping: a signal asked for an end: the step is saved and its validation left out.
            chooses: the run chooses its best checkpoint by its validations.
        """
        run = self.config.run
        log = last or stopping or step % run.log_every == 0
        validate = last or (run.validate_every > 0 and step % run.validate_every == 0 and not stopping)
        save = last or stopping or step % run.save_every == 0
        return Due(log or save or (validate and chooses), log, validate, save)

    def print(self, text: str) -> None:
        """Print a line, on rank 0 alone."""
        if self.world.is_first:
            say(text)


@contextmanager
def open_run(config: BaseConfig, ds_config: DeepSpeedConfig) -> Iterator[Run]:
    """Join the process group, watch over this rank and take signals, for the time of a run.

    Raises:
        UserError: a rank's device does not compute in the precision of DeepSpeed's JSON; or run.deterministic is set,
            and what the run does has no deterministic kernel.
    """
    quiet_libraries()
    prepare_workspace(config.run)
    folder = Path(config.run.dir)
    patience = max(MIN_PATIENCE, 2 * config.run.timeout)  # a hanging rank's own watchdog reports more: it ends first
    with (
        process_group(patience) as world,
        Watchdog(folder, world.rank, config.run.timeout) as watchdog,
        stop_requests(patience) as requests,
    ):
        with same_on_every_rank():
            refuse_precision(precision(ds_config.tree), world.precisions, rank_facts(world.device).device)
        finished = on_rank_zero((folder / DONE).exists)
        with repeatable(config.run, world.device):
            yield Run(config, ds_config, world, watchdog, requests, finished)
