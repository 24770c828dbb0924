"""The studies' pictures, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mbsd.catalog.mining_charts import STYLE

COLOURS = ("#2f6db5", "#e08a2c", "#b5483c", "#3d8f6b", "#7b5ea7", "#8a8f98", "#c2a83e", "#4aa3b8")
DPI = 150


def draw_missing(
    path: Path,
    curves: Mapping[tuple[str, str], Mapping[str, Mapping[float, Sequence[float]]]],
    wheres: Mapping[str, str],
) -> None:
    """Curves of ROC-AUC over the missing share, a panel for each (what is removed, which attributes).

    Args:
        curves: (removed, where) -> model -> rate -> a value for each cell; mean and standard deviation are drawn.
        wheres: where -> in words.
    """
    removed, shown = (list(dict.fromkeys(key[k] for key in curves)) for k in (0, 1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(removed), 0.6 + 3.1 * len(shown)), layout="constrained")
        panels = figure.subplots(len(shown), len(removed), squeeze=False, sharey="row")
        for (what, where), models in curves.items():
            axes = panels[shown.index(where), removed.index(what)]
            for index, (name, of_rate) in enumerate(models.items()):
                rates, colour = sorted(of_rate), COLOURS[index % len(COLOURS)]
                values = 100 * np.array([of_rate[rate] for rate in rates])
                shares = 100 * np.array(rates) + 0.6 * (index - (len(models) - 1) / 2)  # bars beside each other
                deviation = values.std(1, ddof=1) if values.shape[1] > 1 else None
                axes.errorbar(
                    shares, values.mean(1), deviation, color=colour, marker="o", markersize=4, capsize=3,
                    label=name if (what, where) == (removed[0], shown[0]) else None,
                )  # fmt: skip
                axes.plot(shares, values, ".", color=colour, alpha=0.35, markersize=4)
            axes.set_title(wheres[where], fontsize=10)
            axes.set_xlabel(f"{what} removed, % of the test rows")
            axes.set_ylabel("ROC-AUC, %" if what == removed[0] else "")
        figure.legend(ncols=min(3, len(COLOURS)), frameon=False, loc="outside upper center")
        figure.savefig(path, dpi=DPI)
