"""The training loop, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from mbsd.batch import Batch
from mbsd.config import RunConfig
from mbsd.distributed import Place
from mbsd.engine.build import lamb_of, training_state
from mbsd.engine.loss_scale import SkippedSteps
from mbsd.metrics import trust_ratios
from mbsd.metrics.throughput import Throughput
from mbsd.metrics.writer import MetricsWriter


def train(
    engine: Any,
    micro_batches: Iterator[Batch],
    *,
    run: RunConfig,
    place: Place,
    start_step: int,
    total_steps: int,
    samples_in_epoch: int,
    writer: MetricsWriter,
    throughput: Throughput,
    validate: Callable[[], dict[str, float]],
    save: Callable[[int], None],
) -> None:
    """Train from `start_step` to `total_steps`; every rank calls it with its own micro-batches of the same order.

    A step is `gradient_accumulation_steps` micro-batches. `validate` and `save` are collective. Losses are read from
    the device every `run.log_every` steps only: nothing else in a step waits for it.
    """
    accumulation, global_batch = engine.gradient_accumulation_steps(), engine.train_batch_size()
    totals: dict[str, torch.Tensor] = {}  # sums since the last log, on the device
    steps_since_log = 0
    skipped, lamb = SkippedSteps(engine, run.max_skipped_steps), lamb_of(engine)
    engine.train()
    for step in range(start_step + 1, total_steps + 1):
        waiting = time.perf_counter()
        batches = [next(micro_batches) for _ in range(accumulation)]
        throughput.wait(time.perf_counter() - waiting)
        norms = engine.module.norms(batches, place.device)
        for batch in batches:
            losses = engine(batch.to(place.device, non_blocking=True), norms)
            engine.backward(losses["loss"])
            engine.step()
            throughput.count(batch)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach()
        skipped.check(step)
        steps_since_log += 1
        writer.advance()

        if step == start_step + 1 and lamb is not None and (names := lamb.unused()):
            writer.say(f"no gradient in step {step}, left as they are until they get one: {', '.join(names)}")
        if step % run.log_every == 0 or step == total_steps:
            values = _mean_over_ranks(totals, steps_since_log * accumulation)
            progress = {"epoch": step * global_batch / samples_in_epoch, "samples": float(step * global_batch)}
            writer.log(step, {**progress, **values, **training_state(engine), **throughput.read()})
            if lamb is not None:
                writer.curves(step, "trust_ratio", trust_ratios.summarise(lamb.trust_ratios()))
            totals, steps_since_log = {}, 0
        if step == total_steps or (run.validate_every and step % run.validate_every == 0):
            engine.eval()
            writer.log(step, validate(), prefix="validation")
            engine.train()
            throughput.read()  # validation is no training time
        if step == total_steps or step % run.save_every == 0:
            save(step)
            throughput.read()


def _mean_over_ranks(totals: dict[str, torch.Tensor], micro_steps: int) -> dict[str, float]:
    """The mean of each loss over micro-steps and ranks: one all-reduce, one copy to the host."""
    stacked = torch.stack([value.float() for value in totals.values()]) / micro_steps
    dist.all_reduce(stacked)
    return dict(zip(totals, (stacked / dist.get_world_size()).tolist(), strict=True))
