"""The training loop, read top to bottom."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from mbsd.training.checkpoints import Checkpoints
from mbsd.training.divergence import refuse_broken_weights
from mbsd.training.engine import set_micro_steps
from mbsd.training.feed import Feed
from mbsd.training.preempt import Stop
from mbsd.training.run import Run
from mbsd.training.run_log import RunLog
from mbsd.training.state import TrainState


class Trainer:
    """Trains from `state` to its last step; every rank runs it with its own micro-batches of the same order.

    Validations, saves and checks are collective. A save is written behind the steps that follow. Losses are read from
    the device every `run.log_every` steps and before a save only; in the other steps nothing of ours waits for it, and
    `engine.step` does in a few places that docs/gpu.md names.
    """

    def __init__(
        self, run: Run, engine: Any, feed: Feed, state: TrainState, checkpoints: Checkpoints, log: RunLog
    ) -> None:
        self.run, self.engine, self.feed = run, engine, feed
        self.state, self.checkpoints, self.log = state, checkpoints, log
        self._steps = feed.steps()

    def train(self) -> Stop | None:
        """Train to the end, or until a signal asks to stop.

        Returns:
            None at the end; a Stop where a signal asked for one: the step is saved, its validation is left out (and
            made up for on resume, where it chooses the best checkpoint).

        Raises:
            DivergedError: a loss or weight is NaN or infinite, or fp16 skips step after step; this step is not saved.
        """
        self.engine.train()
        if self.state.owes_validation(self.run.config.run.validate_every):
            self.validate()
            self.save()
        while not self.state.finished:
            self.state.step += 1
            self.train_step()
            step, last = self.state.step, self.state.at_last_step
            stop = self.run.stop_requested(step, last=last)
            due = self.run.due(step, last=last, stopping=stop is not None, chooses=self.state.chooses)
            if due.losses:
                self.log.read(step)
            if due.log:
                self.log.write(step, self.feed.damaged.check(), self.checkpoints.mirror_failures)
                self.checkpoints.check()
            if due.validate and self.validate():
                due = dataclasses.replace(due, save=True)
            if due.save:
                self.save()
            if stop is not None:
                return stop
        return None

    def train_step(self) -> None:
        """Forward and backward of each micro-batch; DeepSpeed steps at the last of them alone."""
        self._beat("waiting for data")
        self.log.begin_step()
        batches = self.log.timed(lambda: next(self._steps))
        self._beat("training")
        set_micro_steps(self.engine, len(batches))
        contexts = self.engine.module.contexts(batches)
        for batch, context in zip(batches, contexts, strict=True):
            losses = self.engine(batch, context)
            self.engine.backward(losses["loss"])
            self.engine.step()
            self.log.count(batch, losses)
        self.state.average.update()
        self.log.advance(self.state.step)

    def validate(self) -> bool:
        """Validate, log and draw; whether the step is to be saved: it is the best so far, or the run ends here."""
        self._beat("validation")
        step, module = self.state.step, self.engine.module
        self.engine.eval()
        with self.state.average.applied():
            held_out = module.validate(self.feed.validation_batches())
            self.log.validation(step, held_out)
            if self.run.world.is_first:
                self.show(module)
        self.engine.train()
        self.log.restart_clock()
        return self.state.takes(held_out.metrics)

    def show(self, objective: Any) -> None:
        """Draw what the model makes of a few held-out samples; their vectors at the last step alone."""
        board, step, few = self.log.board, self.state.step, self.feed.held_out
        with torch.no_grad():
            objective.show(board, step, few)
            if self.state.at_last_step:
                few.show_vectors(board, step, objective.vectors)

    def save(self) -> None:
        """Copy the state to host memory, to be written behind the steps that follow."""
        self._beat("saving")
        refuse_broken_weights(self.engine, self.state.step, self.run.config.run)
        self.checkpoints.save()
        self.log.restart_clock()

    def _beat(self, doing: str) -> None:
        self.run.watchdog.beat(f"step {self.state.step}: {doing}")
