"""Learning curves of fine-tunings: validation by samples seen and minutes, how steep they end, and their charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from mbsd.io.charts import BLUE, GREEN, ORANGE, OTHER, SERIES, styled_figure, svg_uri
from mbsd.io.files import read_own_json
from mbsd.tools.report.curves import Curve, read_curves
from mbsd.tools.studies.trial_report.inputs import AGAIN, VIEWS

COLOURS = {"full": BLUE, "text": ORANGE, "image": GREEN}
OTHERS = [colour for colour in SERIES if colour not in COLOURS.values()]
WIDTH, HEIGHT = 4.6, 3.2  # inches of a chart: two stand side by side on a screen, one fills a phone


@dataclass(frozen=True)
class RunCurves:
    """What a run logged.

    Attributes:
        batch: samples of a step.
        curves: name -> (step, value), as in metrics.jsonl.
        minutes: of training, without validating and saving; None: the run was too short to log its speed.
        rate: samples a second over the whole run; None as for `minutes`.
        data_wait: share of the time that steps waited for data; None as for `minutes`.
        device: as the run's environment.json has it.
    """

    batch: int
    curves: Mapping[str, Curve]
    minutes: float | None
    rate: float | None
    data_wait: float | None
    device: str

    @property
    def samples(self) -> int:
        """Seen in all."""
        return self.batch * max((curve[-1][0] for curve in self.curves.values()), default=0)

    def validated(self, metric: str) -> list[tuple[float, float]]:
        """(samples seen, value) of a validation metric."""
        return [(step * self.batch, value) for step, value in self.curves.get(f"validation/{metric}", []) if step > 0]

    def at_end(self, name: str, part: float = 0.0) -> float | None:
        """The mean of a curve over the last `part` of its steps, at least its last value; None: there is no such curve.

        A logged training loss is that of a few steps, and jumps with them.
        """
        if name not in self.curves:
            return None
        last = self.curves[name][-1][0]
        return float(np.mean([value for step, value in self.curves[name] if step >= (1 - part) * last]))


def shown_minutes(minutes: float) -> str:
    """Minutes as the page has them: 0.9, 2.5, 26."""
    return f"{minutes:.1f}" if minutes < 10 else f"{minutes:,.0f}"


@dataclass(frozen=True)
class Slope:
    """A straight line through validations over log2(samples), by least squares.

    Attributes:
        value: rise for each doubling of the samples.
        error: standard error of `value`.
        first, last: samples at the ends of the part that is fitted.
        points: validations in it.
    """

    value: float
    error: float
    first: float
    last: float
    points: int


def read_run(run: Path) -> RunCurves:
    """The curves of a run's folder."""
    curves = read_curves(run)
    settings = read_own_json(run / "ds_config.json", AGAIN)
    environment = read_own_json(run / "environment.json", AGAIN)
    batch, speed = int(settings["train_batch_size"]), dict(curves.get("samples_per_s", []))
    seconds, waited, before = 0.0, 0.0, 0
    waits = dict(curves.get("data_wait", []))
    for step, rate in speed.items():
        if rate > 0:
            of_steps = (step - before) * batch / rate
            seconds, waited = seconds + of_steps, waited + of_steps * waits.get(step, 0.0)
        before = step
    known = seconds > 0
    return RunCurves(
        batch, curves, seconds / 60 if known else None, before * batch / seconds if known else None,
        waited / seconds if known else None, environment["ranks"][0]["device"] or "cpu",
    )  # fmt: skip


def slope_at_end(points: Sequence[tuple[float, float]], part: float, least: int) -> Slope | None:
    """How steep a curve ends: fitted to the points from `part` of the last one's samples on; None: fewer than `least`.

    Args:
        points: (samples, value), by rising samples.
        least: of points, 3 or more: two have no error.
    """
    chosen = [(samples, value) for samples, value in points if samples >= part * points[-1][0]]
    if len(chosen) < least:
        return None
    x, y = (np.array(column) for column in zip(*chosen, strict=True))
    x = np.log2(x)
    centred = x - x.mean()
    value = float(centred @ y / (centred @ centred))
    left = y - y.mean() - value * centred
    error = math.sqrt(float(left @ left) / (len(x) - 2) / float(centred @ centred))
    return Slope(value, error, chosen[0][0], chosen[-1][0], len(chosen))


def draw_loss(run: RunCurves) -> str:
    """Training and held-out loss by samples seen, as SVG in a data URI."""
    with styled_figure(WIDTH, HEIGHT) as figure:
        axes = figure.subplots()
        for name, label, colour in (("loss", "training", BLUE), ("validation/loss", "held out", ORANGE)):
            points = [(step * run.batch, value) for step, value in run.curves.get(name, []) if step > 0]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=".", markersize=3)
        axes.set_ylabel("loss")
        _finish(axes, run)
        return svg_uri(figure)


def draw_metric(runs: Mapping[str, RunCurves], metric: str, shown: str, floors: Mapping[str, float]) -> str:
    """A validation metric by samples seen, as SVG in a data URI.

    Args:
        runs: model -> its run; each view of the first has a line, of the others the first view alone.
        floors: view -> the best floor on the test rows, a dashed line.
        shown: the metric as shown.
    """
    with styled_figure(WIDTH, HEIGHT) as figure:
        axes = figure.subplots()
        for number, (model, run) in enumerate(runs.items()):
            for view in floors if number == 0 else list(floors)[:1]:
                points = run.validated(f"{metric}_{view}")
                if points:
                    colour = COLOURS[view] if number == 0 else OTHERS[(number - 1) % len(OTHERS)]
                    label = VIEWS[view] if number == 0 else model
                    axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=".", markersize=4)
        for view, value in floors.items():
            axes.axhline(value, color=COLOURS[view], linestyle="--", linewidth=1)
        axes.plot([], [], color=OTHER, linestyle="--", linewidth=1, label="best floor, test")
        axes.set_ylabel(f"{shown}, held out")
        _finish(axes, next(iter(runs.values())))
        return svg_uri(figure)


def _finish(axes: Axes, run: RunCurves) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_thousands)
    axes.set_xlabel("samples seen")
    if run.rate is not None:
        each = 60 * run.rate

        def minutes_of(samples: Any) -> Any:
            return samples / each

        def samples_of(minutes: Any) -> Any:
            return minutes * each

        above = axes.secondary_xaxis("top", functions=(minutes_of, samples_of))
        above.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        above.xaxis.set_minor_locator(NullLocator())
        above.xaxis.set_major_formatter(lambda minutes, _: f"{minutes:g}" if minutes >= 1 else f"{minutes:.2g}")
        above.set_xlabel("minutes of training")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def _thousands(samples: float, _: float) -> str:
    return f"{samples:,.0f}"
