"""A budget in minutes -> steps of each run: arithmetic on measured speeds, without running anything."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from mbsd.tools.studies.trial.commands import VALIDATED, VALIDATIONS
from mbsd.tools.studies.trial.recipe import LABELS_POWER, LEAST_TRAINING, RESERVE, CatalogFacts, Kind, Recipe
from mbsd.tools.studies.trial.settings import TASKS, Run, Trial, runs_of

FEWEST_STEPS = 20
LONGEST = 1e7  # seconds


@dataclass(frozen=True)
class Speeds:
    """What was measured, in seconds, with as many runs beside each other as the trial has.

    Attributes:
        start: of a launcher, until its first step.
        step: of each kind of run.
        row: of scoring one row in all views.
    """

    start: float
    step: dict[str, float]
    row: float


@dataclass(frozen=True)
class Lengths:
    """Steps of each kind of run, and how many more one from scratch has in place of its stage 1."""

    steps: dict[str, int]
    instead: dict[str, int]

    def of(self, run: Run) -> int:
        """Steps of a run: with fewer labels fewer; and in place of stage 1 as many as take its time."""
        steps = max(1, round(self.steps[run.kind] * float(run.share**LABELS_POWER)))
        return steps + (self.instead[run.kind] if run.start == "scratch" else 0)


@dataclass(frozen=True)
class Work:
    """Something that takes a core for some seconds, after others."""

    name: str
    seconds: float
    after: tuple[str, ...]


def left_for_training(budget: float, spent: float) -> float:
    """Seconds that training and scores may take when so many of the budget are spent."""
    return max(budget - spent, LEAST_TRAINING * budget)


def lengths_within(
    trial: Trial, facts: CatalogFacts, recipe: Recipe, speeds: Speeds, seconds: float, jobs: int
) -> tuple[Lengths, float]:
    """The most steps with which all runs and scores end within so many seconds, and the seconds that they take.

    Runs share the time by `recipe.SHARES`; none gets more than its `most_epochs`. Where even the fewest steps take
    longer, it is these.

    Args:
        jobs: commands that run at the same time.
    """

    def ends(training_seconds: float) -> tuple[Lengths, float]:
        lengths = _lengths(trial, facts, recipe, speeds, training_seconds)
        return lengths, makespan(works(trial, facts, speeds, lengths), jobs)

    low, high, left = 0.0, LONGEST, seconds * (1 - RESERVE)
    found = ends(high)
    if found[1] <= left:
        return found  # as many epochs as are worth it
    found = ends(low)
    while high - low > 1:
        middle = (low + high) / 2
        tried = ends(middle)
        if tried[1] <= left:
            low, found = middle, tried
        else:
            high = middle
    return found


def _lengths(trial: Trial, facts: CatalogFacts, recipe: Recipe, speeds: Speeds, seconds: float) -> Lengths:
    """Of a chain (stage 1, then one run a task) that trains for so many seconds."""
    kinds: list[Kind] = [kind for kind in recipe.runs if kind in TASKS or "pretrained" in trial.starts]
    total = sum(recipe.runs[kind].share for kind in kinds)
    steps: dict[str, int] = {}
    for kind in kinds:
        run = recipe.runs[kind]
        most = run.most_epochs * facts.rows[kind] / run.batch_size
        steps[kind] = max(FEWEST_STEPS, int(min(seconds * run.share / total / speeds.step[kind], most)))
    return given_lengths(trial, steps, speeds)


def given_lengths(trial: Trial, steps: dict[str, int], speeds: Speeds | None) -> Lengths:
    """These steps, or those that the trial names; and where times are to be equal, those that replace stage 1."""
    asked = {kind: trial.finetune_steps if kind in TASKS else trial.pretrain_steps for kind in steps}
    steps = {kind: asked[kind] or number for kind, number in steps.items()}
    instead = dict.fromkeys(TASKS, 0)
    if trial.equal_time:
        assert speeds is not None, "measured where times are to be equal"
        stage1 = steps["stage1"] * speeds.step["stage1"]
        # Attributes start from the run on categories, which has this time already.
        instead["classification"] = round(stage1 / speeds.step["classification"])
    return Lengths(steps, {str(kind): number for kind, number in instead.items()})


def works(trial: Trial, facts: CatalogFacts, speeds: Speeds, lengths: Lengths) -> list[Work]:
    """All training runs and scorings of a trial, with the seconds that each takes."""
    found = []
    for run in runs_of(trial):
        before = run.before
        scored = min(VALIDATED, facts.test_rows[run.kind]) * VALIDATIONS
        seconds = speeds.start + lengths.of(run) * speeds.step[run.kind] + scored * speeds.row
        found.append(Work(run.name, seconds, (before.name,) if before is not None else ()))
        scored = facts.test_rows[run.kind if run.kind in TASKS else "classification"]  # of stage 1: clusters
        found.append(Work(f"{run.name}_scores", speeds.start + scored * speeds.row, (run.name,)))
    return found


def makespan(works: Sequence[Work], jobs: int) -> float:
    """Seconds until all is done, `jobs` at a time, the first that is ready first, as `Runner` does."""
    order = TopologicalSorter({work.name: work.after for work in works})
    order.prepare()
    number: Mapping[str, int] = {work.name: index for index, work in enumerate(works)}
    ready: list[int] = []
    live: list[tuple[float, int]] = []  # ends at, which
    now = 0.0
    while order.is_active():
        for name in order.get_ready():
            heapq.heappush(ready, number[name])
        while ready and len(live) < jobs:
            index = heapq.heappop(ready)
            heapq.heappush(live, (now + works[index].seconds, index))
        now, index = heapq.heappop(live)
        order.done(works[index].name)
    return now
