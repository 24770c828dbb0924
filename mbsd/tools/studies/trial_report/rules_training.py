"""Rules about the training itself: longer, larger, more regular, elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from mbsd.tools.studies.trial_report.curves import shown_minutes
from mbsd.tools.studies.trial_report.findings import (
    ERRORS,
    PART,
    POINTS,
    RISE,
    Evidence,
    Findings,
    RuleText,
    rising,
    too_short,
)
from mbsd.tools.studies.trial_report.inputs import VIEWS
from mbsd.tools.studies.trial_report.margins import SHOWN

END = 0.1  # of the steps, whose training loss is averaged
OVERFIT = 1.5  # held-out loss over training loss
CLOSE = 1.1  # the same, below which a model does not even fit its training rows
SLOW_MINUTES = 30.0  # of a doubling
CPUS = ("cpu", "x86_64", "aarch64", "arm64")  # as runs name them
WAIT = 0.2  # share of time spent waiting for data


def longer(it: Findings) -> Iterator[Evidence]:
    """Does validation still rise?"""
    slope = it.slope()
    if slope is None:
        yield too_short(it)
        return
    found = (
        f"{SHOWN[it.metric]} ({VIEWS[it.view]}) changed by {slope.value:+.3f} ± {slope.error:.3f} a doubling, from "
        f"{slope.first:,.0f} to {slope.last:,.0f} samples ({slope.points} validations)"
    )
    advice = f"Twice the samples bring about {slope.value:+.3f} if the slope holds"
    if it.run.minutes is not None:
        advice += f", for {shown_minutes(it.run.minutes)} more minutes of this fine-tuning"
    if rising(slope) and it.margin.value < 0:
        doublings = -it.margin.value / slope.value
        advice += (
            f"; {doublings:.1f} doublings ({2**doublings:,.1f} times the samples) would reach "
            f"the floor, {it.margin.floor:.3f}"
        )
    yield Evidence(it.where, found, rising(slope), advice if rising(slope) else "")


def _losses(it: Findings) -> tuple[float, float] | None:
    """(held out, training) at the end."""
    held_out, training = it.run.at_end("validation/loss"), it.run.at_end("loss", END)
    return None if held_out is None or training is None or training <= 0 else (held_out, training)


def _fit(it: Findings, low: float, high: float, advice: str) -> Iterator[Evidence]:
    """Holds where validation has stopped rising, and held-out over training loss lies between low and high."""
    slope, losses = it.slope(), _losses(it)
    if slope is None or losses is None:
        yield too_short(it)
        return
    ratio = losses[0] / losses[1]
    holds = not rising(slope) and low <= ratio < high
    still = "still rises" if rising(slope) else "has stopped rising"
    found = f"loss {losses[0]:.3f} held out, {losses[1]:.3f} in training ({ratio:.2f} times); validation {still}"
    yield Evidence(it.where, found, holds, advice if holds else "")


def larger(it: Findings) -> Iterator[Evidence]:
    """Is the training loss itself high?"""
    yield from _fit(it, 0.0, CLOSE, "Twice the width, or a patch of half the side, before more epochs")


def regularise(it: Findings) -> Iterator[Evidence]:
    """Is the held-out loss far above that of training?"""
    rows = len(it.compared.table.rows("train"))
    advice = f"Averaged weights, crops and dropout, or more than the {rows:,} training rows, before a larger model"
    yield from _fit(it, OVERFIT, float("inf"), advice)


def gpu(it: Findings) -> Iterator[Evidence]:
    """Would more training take long here?"""
    run = it.run
    if run.minutes is None or run.rate is None or run.data_wait is None:
        yield too_short(it)
        return
    more = any(one.holds for rule in (longer, larger) for one in rule(it))
    holds = run.device in CPUS and more and run.minutes > SLOW_MINUTES and run.data_wait < WAIT
    found = (
        f"{run.rate:,.0f} samples a second on {run.device}, {shown_minutes(run.minutes)} minutes, {run.data_wait:.0%} "
        f"waiting; more training or a larger model is {'' if more else 'not '}advised"
    )
    advice = "The same commands run on a GPU; the compute of the model is what takes the time here"
    yield Evidence(it.where, found, holds, advice if holds else "")


def workers(it: Findings) -> Iterator[Evidence]:
    """Does the model wait for data?"""
    wait, minutes = it.run.data_wait, it.run.minutes
    if wait is None or minutes is None:
        yield too_short(it)
        return
    holds = wait >= WAIT
    advice = f"{wait:.0%} of {shown_minutes(minutes)} minutes would be saved at most"
    yield Evidence(it.where, f"{wait:.1%} of the time", holds, advice if holds else "")


RULES: tuple[RuleText, ...] = (
    (
        "Train longer",
        f"Validation still rises by more than {RISE} for a doubling of samples, and by more than {ERRORS:g} "
        f"standard errors: a line through the validations of the last {1 - PART:.0%} of the samples, at least "
        f"{POINTS}, over the logarithm of the samples. A learning rate that falls to 0 flattens the end, so the "
        "rise of a longer run can be larger.",
        longer,
    ),
    (
        "A larger model, or smaller patches",
        f"Validation has stopped rising (by the rule above) and the held-out loss is below {CLOSE:g} times the "
        "training loss: the model does not even fit the rows that it is trained on.",
        larger,
    ),
    (
        "More regularisation, or more labels",
        f"Validation has stopped rising and the held-out loss is above {OVERFIT:g} times the training loss: the "
        "model learns its training rows by heart.",
        regularise,
    ),
    (
        "A GPU",
        f"Twice the samples, or a larger model, is advised above, and twice the samples would take more than "
        f"{SLOW_MINUTES:g} minutes on this CPU, of which less than {WAIT:.0%} are spent waiting for data.",
        gpu,
    ),
    (
        "More workers, or pictures on a faster disk",
        f"Steps wait for data for {WAIT:.0%} of the time or more: data.num_workers sets the processes that read "
        "and decode.",
        workers,
    ),
)
