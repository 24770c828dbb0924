"""What the rules read of a comparison, and what a rule says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mbsd.tools.studies.trial_report.classes import ByClass
from mbsd.tools.studies.trial_report.curves import RunCurves, Slope, slope_at_end
from mbsd.tools.studies.trial_report.inputs import Compared
from mbsd.tools.studies.trial_report.margins import METRICS, Margin

PART, POINTS = 0.25, 4  # of the curve that the slope is fitted to: from a quarter of the samples on; least validations
RISE = 0.01  # for a doubling of samples (or labels) that counts as still learning
ERRORS = 2.0  # standard errors that a rise has to exceed


@dataclass(frozen=True)
class Evidence:
    """What a rule found in one comparison.

    Attributes:
        holds: None: it cannot be judged, and `found` says why.
        advice: what follows from it, with its numbers; "" where it does not hold.
    """

    where: str
    found: str
    holds: bool | None
    advice: str = ""


@dataclass(frozen=True)
class Rule:
    """A rule and what it found everywhere."""

    name: str
    text: str
    evidence: Sequence[Evidence]

    @property
    def holds(self) -> bool | None:
        """Somewhere; None: it could be judged nowhere."""
        judged = [one.holds for one in self.evidence if one.holds is not None]
        return any(judged) if judged else None


@dataclass(frozen=True)
class Findings:
    """What the rules read of one comparison.

    Attributes:
        margins: (view, metric) -> the main model over its best floor.
        run: curves of the main model's first run.
        classes: of the first view.
        fewer: the same models and test rows with the fewest labels (`fewest_labels`); None: it is not asked here.
    """

    compared: Compared
    margins: Mapping[tuple[str, str], Margin]
    run: RunCurves
    classes: ByClass
    resamples: int
    fewer: Compared | None = None

    @property
    def where(self) -> str:
        """The comparison's title."""
        return self.compared.given.title

    @property
    def metric(self) -> str:
        """The one that decides."""
        return METRICS[self.compared.given.task][-1]

    @property
    def view(self) -> str:
        """The first."""
        return self.compared.given.views[0]

    @property
    def margin(self) -> Margin:
        """Of the metric that decides, in the first view."""
        return self.margins[self.view, self.metric]

    def slope(self) -> Slope | None:
        """How steep the validation of `metric` ends."""
        return slope_at_end(self.run.validated(f"{self.metric}_{self.view}"), PART, POINTS)


RuleText = tuple[str, str, Callable[[Findings], Iterator[Evidence]]]  # what to do, the rule in words, what judges it


def fewest_labels(most: Compared, every: Sequence[Compared]) -> Compared | None:
    """Of the comparisons that differ from `most` in their share of the labels alone, the one with the fewest.

    None where there is none, or one with more than `most`: the question what more labels bring is asked once.
    """
    alike = [
        one
        for one in every
        if (one.given.task, one.given.catalog, one.main) == (most.given.task, most.given.catalog, most.main)
        and one.names == most.names
        and np.array_equal(one.items, most.items)
        and np.array_equal(one.label, most.label)
    ]
    least, largest = (pick(alike, key=lambda one: one.given.labels) for pick in (min, max))
    return least if least.given.labels < most.given.labels == largest.given.labels else None


def rising(slope: Slope) -> bool:
    """Rises by more than RISE a doubling, and by more than its error explains."""
    return slope.value > RISE and slope.value > ERRORS * slope.error


def too_short(it: Findings) -> Evidence:
    """Of a rule that needs more of the curve than there is."""
    found = f"the run is too short to tell: {len(it.run.validated(f'{it.metric}_{it.view}'))} validations"
    return Evidence(it.where, found, None)


def interval(margin: Margin) -> str:
    """A difference with its interval, in words."""
    if margin.low is None or margin.high is None:
        return f"difference {margin.value:+.3f}"
    return f"difference {margin.value:+.3f} [{margin.low:+.3f}, {margin.high:+.3f}]"
