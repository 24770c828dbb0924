"""What a run logs: losses, speed, what the optimizer did, validations; to metrics.jsonl, TensorBoard and the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mbsd.batch import Batch
from mbsd.data.mixture import AnyOrder
from mbsd.metrics import trust_ratios
from mbsd.metrics.board import MIRROR_FAILURES, Board, Charts
from mbsd.metrics.throughput import Throughput
from mbsd.metrics.writer import MetricsWriter
from mbsd.model.config import BackboneConfig
from mbsd.optim.groups import learning_rates
from mbsd.stages.stage import Losses, Validation
from mbsd.training.divergence import SkippedSteps, refuse_divergence
from mbsd.training.engine import lamb_of, training_state
from mbsd.training.profile import profiled
from mbsd.training.run import Run, Schedule
from mbsd.training.run_folder import run_settings

R = TypeVar("R")


class RunLog:
    """Counts between two logs on the host and sums losses on the device; a context manager around the steps.

    Args:
        charts: of the stage.
        order: of the samples.
        start_step: the last step that was done before.
    """

    def __init__(
        self, run: Run, schedule: Schedule, engine: Any, charts: Charts, order: AnyOrder, start_step: int
    ) -> None:
        self.run, self.schedule, self.engine = run, schedule, engine
        model: BackboneConfig = engine.module.model.config
        self._throughput = Throughput(model, run.world.size, run.world.device)
        self._totals: Losses = {}  # sums since the last log, on the device
        self._steps = self._micro_steps = 0  # since the last log
        self._skipped, self._lamb = SkippedSteps(engine, run.config.run), lamb_of(engine)
        self._unnamed = self._lamb  # until its unused parameters have been named
        self._read: tuple[dict[str, float], dict[str, float]] = {}, {}
        self._mirror_failures = 0  # as they were logged
        self._rates: dict[str, float] = {}  # of the step that is being done
        self._stack = ExitStack()
        self._charts, self._order, self._start_step = charts, order, start_step

    def __enter__(self) -> RunLog:
        """Open the files; what an earlier start logged behind `start_step` is taken back."""
        run = self.run
        self._writer = self._stack.enter_context(
            MetricsWriter(
                run.folder,
                start_step=self._start_step,
                total_steps=self.schedule.total_steps,
                enabled=run.world.is_first,
                settings=run_settings(run.config, self.schedule.deepspeed, self.schedule.total_steps),
                charts=self._charts,
            )
        )
        self._traced = self._stack.enter_context(profiled(run.config.run.profile, run.folder, run.world.rank))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files; what was logged stays."""
        self._stack.__exit__(kind, error, trace)

    @property
    def board(self) -> Board:
        """TensorBoard's files, on rank 0."""
        return self._writer.board

    def begin_step(self) -> None:
        """Note the learning rates that the step uses: at its end DeepSpeed sets those of the next one."""
        self._rates = learning_rates(self.engine.optimizer.param_groups)

    def timed(self, wait_for_data: Callable[[], R]) -> R:
        """Call it; its time counts as waiting for data."""
        began = time.perf_counter()
        found = wait_for_data()
        self._throughput.wait(time.perf_counter() - began)
        return found

    def count(self, batch: Batch, losses: Losses) -> None:
        """Add a micro-batch that was trained on; nothing waits for the device."""
        self._throughput.count(batch)
        self._micro_steps += 1
        for name, value in losses.items():
            self._totals[name] = self._totals.get(name, 0.0) + value.detach()

    def advance(self, step: int) -> None:
        """A step is done: advance the profiler and the bar, and count steps that fp16 skipped.

        Raises:
            DivergedError: fp16 has skipped too many steps in a row.
        """
        self._traced()
        self._skipped.check(step)
        self._steps += 1
        self._writer.advance()
        if self._unnamed is not None and self._unnamed.idle:  # its first step; fp16 may have skipped some before
            if self.run.world.is_first and (names := self._unnamed.unused()):
                self.run.print(
                    f"no gradient in step {step}, so these stay as they are until they get one: {', '.join(names)}"
                )
            self._unnamed = None

    def read(self, step: int) -> None:
        """Read the mean losses since the last log: one all-reduce, one copy to the host (collective).

        Raises:
            DivergedError: one of them is NaN or infinite; raised on every rank.
        """
        values = _mean_over_ranks(self._totals, self._micro_steps)
        state = {**self._rates, **training_state(self.engine)}
        refuse_divergence(values, state, step, self._steps, self.run.config.run)
        self._read = values, state

    def write(self, step: int, damaged_pictures: int, mirror_failures: int | None = None) -> None:
        """Log what `read` has read, with speed and progress, and reset the counts.

        Args:
            damaged_pictures: so far.
            mirror_failures: checkpoints so far that could not be copied; None: the run has no mirror.
        """
        samples = self.schedule.batches.samples_after(step)
        progress = {"epoch": samples / self.schedule.num_samples, "samples": float(samples)}
        progress |= {f"epoch_{name}": epochs for name, epochs in self._order.epochs_after(samples).items()}
        if damaged_pictures:
            progress["corrupt_images"] = float(damaged_pictures)
        if mirror_failures is not None:
            progress[MIRROR_FAILURES] = float(mirror_failures)
            self._mirror_failures = mirror_failures
        lamb = self._lamb
        ratios = trust_ratios.summarise(lamb.trust_ratios()) if lamb is not None and self._writer.enabled else {}
        curves = {f"trust_ratio/{name}": ratio for name, ratio in ratios.items()}
        values, state = self._read
        self._writer.log(step, {**progress, **values, **state, **self._throughput.read()}, curves=curves)
        self._totals, self._steps, self._micro_steps = {}, 0, 0

    def mirror(self, step: int, failures: int | None) -> None:
        """Log the mirror's failures once more, where some came after the last step was logged."""
        if failures is not None and failures != self._mirror_failures:
            self._writer.log(step, {MIRROR_FAILURES: float(failures)})

    def validation(self, step: int, held_out: Validation) -> None:
        """Log a validation, with the PR curve of each view where labels are yes or no."""
        self._writer.log(step, held_out.metrics, prefix="validation")
        if held_out.scores is not None:
            self._writer.precision_recall(step, held_out.scores.labels, held_out.scores.probabilities())

    def restart_clock(self) -> None:
        """Leave the time since the last read out of the training speed: it went into validating or saving."""
        self._throughput.read()


def _mean_over_ranks(totals: Mapping[str, torch.Tensor], micro_steps: int) -> dict[str, float]:
    stacked = torch.stack([value.float() for value in totals.values()]) / micro_steps
    dist.all_reduce(stacked)
    return dict(zip(totals, (stacked / dist.get_world_size()).tolist(), strict=True))
