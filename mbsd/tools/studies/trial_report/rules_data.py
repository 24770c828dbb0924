"""Rules about the data: rare classes, number of labels, missing titles and pictures, size of the test split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mbsd.tools.studies.trial_report.findings import RISE, Evidence, Findings, RuleText, interval
from mbsd.tools.studies.trial_report.margins import SHOWN, difference

FEW_ITEMS, FEW_CLASSES, FEW_LOSS = 10, 0.1, 0.1  # training items; share of classes; F1 below the others
NAMED = 5  # of the rarest classes
MISSING = 0.05  # share of test items without a title, or without a picture


def rare(it: Findings) -> Iterator[Evidence]:
    """Are rare classes worse?"""
    if it.compared.is_binary:
        return
    known = [line for line in it.classes.lines if line.model is not None]
    rarest = sorted((line for line in known if line.train < FEW_ITEMS), key=lambda line: line.train)
    few = [line.model for line in rarest if line.model is not None]
    others = [line.model for line in known if line.model is not None and line.train >= FEW_ITEMS]
    if not few or not others:
        size = "no class has" if not few else "all classes have"
        yield Evidence(it.where, f"{size} fewer than {FEW_ITEMS} training items", None if few else False)
        return
    share, loss = len(few) / len(known), float(np.mean(others) - np.mean(few))
    holds = share >= FEW_CLASSES and loss >= FEW_LOSS
    found = (
        f"{len(few)} of {len(known)} classes in test ({share:.0%}); mean F1 {np.mean(few):.3f}, of the others "
        f"{np.mean(others):.3f}"
    )
    names = ", ".join(f"{line.name} ({line.train})" for line in rarest[:NAMED])
    advice = f"Label items of the rarest first: {names}; as good as the others, they add {share * loss:.3f} of macro-F1"
    yield Evidence(it.where, found, holds, advice if holds else "")


def labels(it: Findings) -> Iterator[Evidence]:
    """What do more labels bring?"""
    if it.fewer is None:
        return
    less, more = it.fewer.given.labels, it.compared.given.labels
    ours, theirs = (each.models[each.main][it.view] for each in (it.compared, it.fewer))
    found = difference(it.compared, (it.view, it.metric, it.fewer.given.title), ours, theirs, it.resamples)
    rise = found.value / np.log2(more / less)
    holds = rise > RISE and found.verdict == "above"
    text = f"{SHOWN[it.metric]} {found.floor:.3f} with {less:.0%} and {found.model:.3f} with {more:.0%} of the labels"
    advice = f"Twice as many labels bring about {rise:+.3f} if the slope holds"
    yield Evidence(it.where, f"{text}: {rise:+.3f} a doubling", holds, advice if holds else "")


def missing(it: Findings) -> Iterator[Evidence]:
    """How much is lost where a title or a picture is missing?"""
    has_title, has_image = it.compared.catalog.shown()
    answers = it.compared.models[it.compared.main][it.view]
    right = np.mean([run.answer == it.compared.label for run in answers], axis=0)
    for what, has in (("title", has_title[it.compared.items]), ("picture", has_image[it.compared.items])):
        share = float(np.mean(~has))
        found = f"{share:.1%} of the test rows have no {what}"
        holds = share >= MISSING
        advice = ""
        if holds and has.any():
            found += f"; accuracy {right[~has].mean():.3f} there, {right[has].mean():.3f} on the others"
            advice = (
                f"Add the {what}: as good as the others, these rows add "
                f"{share * (right[has].mean() - right[~has].mean()):+.3f} of accuracy"
            )
        elif holds:
            advice = f"Add the {what}: not one test row has it"
        yield Evidence(it.where, found, holds, advice)
    damaged = it.compared.evaluations[0].get("corrupt_images", 0)
    if damaged:
        yield Evidence(
            it.where, f"{damaged} pictures are damaged", True, "Build the catalogue again from whole pictures"
        )


def undecided(it: Findings) -> Iterator[Evidence]:
    """Is the test split large enough to tell?"""
    margin, rows = it.margin, len(it.compared.rows)
    found = f"{SHOWN[it.metric]} {interval(margin)} on {rows:,} test rows, {len(margin.each)} seeds"
    holds = margin.verdict == "even"
    advice = ""
    if holds and margin.low is not None and margin.high is not None and margin.value:
        half = (margin.high - margin.low) / 2
        advice = f"About {rows * (half / margin.value) ** 2:,.0f} test rows would tell a difference of this size"
    yield Evidence(it.where, found, holds, advice)


RULES: tuple[RuleText, ...] = (
    (
        "Labels of rare classes",
        f"{FEW_CLASSES:.0%} of the classes or more have fewer than {FEW_ITEMS} training items, and their mean F1 "
        f"is {FEW_LOSS} or more below that of the others.",
        rare,
    ),
    (
        "More labels",
        f"Trained with a share of the labels and with more of them, the test metric rises by more than {RISE} for "
        "a doubling of labels, with an interval above 0.",
        labels,
    ),
    ("Complete titles and pictures", f"{MISSING:.0%} of the test items or more have no title, or no picture.", missing),
    (
        "More test items, or more seeds",
        "The interval of model less best floor contains 0: this trial cannot tell which is better.",
        undecided,
    ),
)
