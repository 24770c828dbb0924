"""The training loop, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from mbsd.batch import Batch
from mbsd.config.run import RunConfig
from mbsd.io.console import say
from mbsd.metrics import trust_ratios
from mbsd.metrics.throughput import Throughput
from mbsd.metrics.writer import MetricsWriter
from mbsd.parallel.world import World
from mbsd.stages.stage import Validation
from mbsd.training.divergence import SkippedSteps, refuse_broken_weights, refuse_divergence
from mbsd.training.early_stopping import EarlyStopping
from mbsd.training.engine import lamb_of, training_state
from mbsd.training.preempt import Stop, StopRequests
from mbsd.training.watchdog import Watchdog


def train(
    engine: Any,
    micro_batches: Iterator[Batch],
    *,
    run: RunConfig,
    world: World,
    start_step: int,
    total_steps: int,
    samples_in_epoch: int,
    writer: MetricsWriter,
    throughput: Throughput,
    validate: Callable[[], Validation],
    show: Callable[[int, bool], None],
    save: Callable[[int], None],
    check_saves: Callable[[], None],
    check_images: Callable[[], int],
    traced: Callable[[], object],
    stop_requests: StopRequests,
    watchdog: Watchdog,
    selection: EarlyStopping | None = None,
) -> Stop | None:
    """Train from `start_step` to `total_steps`; every rank calls it with its own micro-batches of the same order.

    A step is `gradient_accumulation_steps` micro-batches. `validate`, `save` and the checks are collective; a save is
    written behind the steps that follow, and `check_saves` raises where saves keep failing; `check_images` counts
    damaged pictures and raises where they are too many. `show(step, last)` draws for TensorBoard after a validation, on
    rank 0. `traced` tells the profiler that a step is over. Losses are read from the device every `run.log_every` steps
    and before a save only: nothing else in a step waits for it. With a `selection` each validation that is the best so
    far is saved, and the run ends where it is exhausted.

    Returns:
        None at the end; a Stop where a signal asked for one: the step is saved, its validation is left out (and with
        a `selection` made up for when the run goes on).

    Raises:
        DivergedError: a loss or weight is no number any more, or fp16 skips step after step; this step is not saved.
    """
    accumulation, global_batch = engine.gradient_accumulation_steps(), engine.train_batch_size()
    totals: dict[str, torch.Tensor] = {}  # sums since the last log, on the device
    steps_since_log = 0
    skipped, lamb = SkippedSteps(engine, run), lamb_of(engine)
    unnamed = lamb  # until its unused parameters have been named

    def validated(step: int, last: bool) -> bool:
        """Validate; whether this step is the best so far."""
        watchdog.beat(f"step {step}: validation")
        engine.eval()
        held_out = validate()
        writer.log(step, held_out.metrics, prefix="validation")
        if held_out.scores is not None:
            writer.precision_recall(step, held_out.scores.labels, held_out.scores.probabilities())
        if world.is_first:
            show(step, last)
        engine.train()
        throughput.read()  # validation is no training time
        return selection is not None and selection.take(step, held_out.metrics)

    def saved(step: int) -> None:
        watchdog.beat(f"step {step}: saving")
        refuse_broken_weights(engine, step, run)
        save(step)
        throughput.read()

    engine.train()
    if selection is not None and selection.owes(start_step, run.validate_every):
        validated(start_step, last=False)
        saved(start_step)
    for step in range(start_step + 1, total_steps + 1):
        if selection is not None and selection.exhausted:
            break
        watchdog.beat(f"step {step}: waiting for data")
        waiting = time.perf_counter()
        batches = [next(micro_batches) for _ in range(accumulation)]
        throughput.wait(time.perf_counter() - waiting)
        watchdog.beat(f"step {step}: training")
        norms = engine.module.norms(batches, world.device)
        for batch in batches:
            losses = engine(batch.to(world.device, non_blocking=True), norms)
            engine.backward(losses["loss"])
            engine.step()
            throughput.count(batch)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach()
        traced()
        skipped.check(step)
        steps_since_log += 1
        writer.advance()

        if unnamed is not None and unnamed.idle:  # LAMB has made its first step: fp16 may have skipped some before
            if world.is_first and (names := unnamed.unused()):
                say(f"no gradient in step {step}, so these stay as they are until they get one: {', '.join(names)}")
            unnamed = None
        last = step == total_steps
        stopped_by = stop_requests.poll() if not last else None
        stopping = stopped_by is not None
        log_now = last or stopping or step % run.log_every == 0
        validate_now = last or (run.validate_every > 0 and step % run.validate_every == 0 and not stopping)
        save_now = last or stopping or step % run.save_every == 0
        if log_now or save_now or (validate_now and selection is not None):
            values = _mean_over_ranks(totals, steps_since_log * accumulation)
            state = training_state(engine)
            refuse_divergence(values, state, step, steps_since_log, run)
        if log_now:
            progress = {"epoch": step * global_batch / samples_in_epoch, "samples": float(step * global_batch)}
            if damaged := check_images():
                progress["corrupt_images"] = float(damaged)
            ratios = trust_ratios.summarise(lamb.trust_ratios()) if lamb is not None and world.is_first else {}
            curves = {f"trust_ratio/{name}": ratio for name, ratio in ratios.items()}
            writer.log(step, {**progress, **values, **state, **throughput.read()}, curves=curves)
            totals, steps_since_log = {}, 0
            check_saves()
        if validate_now:
            save_now |= validated(step, last)
            save_now |= selection is not None and selection.exhausted
        if save_now:
            saved(step)
        if stopped_by is not None:
            stop_requests.close()
            return Stop(step, stopped_by)
    stop_requests.close()
    return None


def _mean_over_ranks(totals: dict[str, torch.Tensor], micro_steps: int) -> dict[str, float]:
    """The mean of each loss over micro-steps and ranks: one all-reduce, one copy to the host."""
    stacked = torch.stack([value.float() for value in totals.values()]) / micro_steps
    dist.all_reduce(stacked)
    return dict(zip(totals, (stacked / dist.get_world_size()).tolist(), strict=True))
