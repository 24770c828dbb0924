"""The batch of each step by its position, against a walk from step to step; and what is no schedule."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from mbsd.config.batch_plan import BatchPlan, Place, plan_batches
from mbsd.config.deepspeed import BatchSizes
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.errors import UserError
from tests.settings import write_ds_config


def walk(plan: BatchPlan, first: int, count: int) -> list[Place]:
    """The places of `count` micro-batches, one step after the other."""
    found: list[Place] = []
    while len(found) < count:
        (sizes,) = [sizes for position, sizes in plan.phases if position <= first][-1:]
        found += [Place(first, micro_step, sizes) for micro_step in range(sizes.accumulation)]
        first += sizes.global_batch
    return found[:count]


@pytest.mark.parametrize("seed", range(20))
def test_places_are_those_of_a_walk(seed: int) -> None:
    rng = random.Random(seed)
    world, micro = rng.choice([1, 2, 3]), rng.choice([1, 4])
    steps = sorted(rng.sample(range(1, 12), rng.choice([1, 2, 3])))
    last = BatchSizes(steps[-1] * micro * world, micro, steps[-1])
    shares = [0.0, *sorted(rng.sample([n / 20 for n in range(1, 20)], len(steps) - 1))]
    schedule = [(share, number * micro * world) for share, number in zip(shares, steps, strict=True)]
    samples = rng.choice([37, 500, 1234.5])
    plan = plan_batches(schedule, last, world, samples=samples, steps=None)
    # From where a step of the run begins, as from where it was resumed.
    for skipped in (0, 3, 11):
        first = plan.samples_after(skipped)
        assert [plan.place(first, number) for number in range(80)] == walk(plan, first, 80)
    begins = [place.position for place in walk(plan, 0, 2000) if place.micro_step == 0]
    assert [plan.samples_after(step) for step in range(len(begins))] == begins
    assert plan.steps_for(samples) == next(n for n, position in enumerate(begins) if position >= samples)
    for share, batch in schedule:
        position = next(p for p in begins if p >= round(share * samples))
        assert plan.place(position, 0).sizes.global_batch >= batch  # switched at the first step that may
    assert plan.phases[0][0] == 0 and plan.changes == (len(steps) > 1)


def test_a_constant_plan_is_what_there_was() -> None:
    plan = plan_batches(None, BatchSizes(24, 4, 3), 2, samples=None, steps=7)
    assert plan == BatchPlan.constant(BatchSizes(24, 4, 3)) and not plan.changes and plan.identity == 24
    for number in (0, 1, 2, 3, 100):
        step, micro_step = divmod(number, 3)
        assert plan.place(5, number) == Place(5 + 24 * step, micro_step, BatchSizes(24, 4, 3))
    for epochs, samples in ((1, 1000), (0.3, 77), (2.5, 999)):
        assert plan.steps_for(epochs * samples) == math.ceil(epochs * samples / 24)


def test_steps_and_samples_name_the_same_run() -> None:
    """Of a run whose number of steps is given, shares are of the samples that these steps see."""
    schedule, last = [(0.0, 8), (0.25, 16), (0.5, 32)], BatchSizes(32, 4, 4)
    plan = plan_batches(schedule, last, 2, samples=None, steps=64)
    samples = plan.samples_after(64)
    assert plan.steps_for(samples) == 64
    assert [position / samples for position, _ in plan.phases] == pytest.approx([0, 0.25, 0.5], abs=0.02)
    assert plan.identity == [[0, 8], [plan.phases[1][0], 16], [plan.phases[2][0], 32]]
    # Whatever the ranks: they are no part of it.
    alone = plan_batches(schedule, BatchSizes(32, 8, 4), 1, samples=None, steps=64)
    assert alone.identity == plan.identity


def test_what_is_no_schedule_is_refused(tmp_path: Path) -> None:
    last = BatchSizes(32, 4, 4)
    with pytest.raises(UserError, match="its last batch is 16, but train_batch_size=32"):
        plan_batches([(0.0, 8), (0.5, 16)], last, 2, samples=100, steps=None)
    with pytest.raises(UserError, match="batch of 12 is no multiple of train_micro_batch_size_per_gpu=4 x 2 ranks"):
        plan_batches([(0.0, 12), (0.5, 32)], last, 2, samples=100, steps=None)
    with pytest.raises(UserError, match="batch of 4 is no multiple"):
        plan_batches([(0.0, 4), (0.5, 32)], last, 2, samples=100, steps=None)
    for text, said in (
        ("[[0.1,8],[0.5,32]]", "expected shares that begin at 0 and rise"),
        ("[[0,8],[0.5,16],[0.5,32]]", "expected shares that begin at 0 and rise"),
        ("[[0,8],[1,32]]", "all below 1"),
        ("[]", "begin at 0"),
        ("[[0,1],[0.5,32]]", "batches of 2 samples or more"),
    ):
        words = ["--deepspeed_config", str(write_ds_config(tmp_path)), "--run.dir=r", "--run.max_steps=1",
                 "--data.catalog=c", "--stage=contrastive", f"--contrastive.batch_schedule={text}"]  # fmt: skip
        with pytest.raises(UserError, match=said):
            parse(PretrainConfig, words)
