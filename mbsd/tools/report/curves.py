"""A run's curves from its metrics.jsonl, as SVG in a data URI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mbsd.io.charts import STYLE, svg_uri

TRAINING, HELD_OUT = "#2f6db5", "#e08a2c"
Curve = list[tuple[int, float]]


def read_curves(run: Path) -> dict[str, Curve]:
    """Name -> (step, value) in rising order of steps; a step that was done twice (a resumed run) counts once, the last.

    Empty where the run has written none.
    """
    file = run / "metrics.jsonl"
    curves: dict[str, dict[int, float]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    curves.setdefault(name, {})[values["step"]] = value
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def draw_curves(curves: Mapping[str, Curve], metrics: Sequence[str]) -> str:
    """The loss, in training and held out, and beside it the held-out metrics that the run has of `metrics`."""
    shown = [name for name in metrics if f"validation/{name}" in curves]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, label, colour in (("loss", "training", TRAINING), ("validation/loss", "held out", HELD_OUT)):
            if name in curves:
                left.plot(*zip(*curves[name], strict=True), color=colour, label=label, marker=".", markersize=3)
        left.set_ylabel("loss")
        for name in shown:
            right.plot(*zip(*curves[f"validation/{name}"], strict=True), label=name, marker=".", markersize=4)
        right.set_ylabel("held out")
        for axes in (left, right):
            axes.set_xlabel("step")
            if axes.lines:
                axes.legend(frameon=False)
        return svg_uri(figure)
