"""A run's curves from its metrics.jsonl, as SVG in a data URI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mbsd.io.charts import BLUE, ORANGE, styled_figure, svg_uri

Curve = list[tuple[int, float]]


def read_curves(run: Path) -> dict[str, Curve]:
    """The curves in a run folder's metrics.jsonl: name -> (step, value), by rising step; empty without such a file.

    Of a step that was trained twice, as before and after a resume, the later value is taken.
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
    """Draw the loss, in training and held out, and beside it those of the held-out `metrics` that the run has.

    Returns:
        SVG in a data URI.
    """
    shown = [name for name in metrics if f"validation/{name}" in curves]
    with styled_figure(8.4, 2.5) as figure:
        left, right = figure.subplots(1, 2)
        for name, label, colour in (("loss", "training", BLUE), ("validation/loss", "held out", ORANGE)):
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
