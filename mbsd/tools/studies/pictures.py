"""The studies' pictures, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mbsd.io.charts import INK, OTHER, STYLE

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
                spread = values.std(1, ddof=1) if values.shape[1] > 1 else None
                axes.errorbar(
                    shares, values.mean(1), spread, color=colour, marker="o", markersize=4, capsize=3,
                    label=name if (what, where) == (removed[0], shown[0]) else None,
                )  # fmt: skip
                axes.plot(shares, values, ".", color=colour, alpha=0.35, markersize=4)
            axes.set_title(wheres[where], fontsize=10)
            axes.set_xlabel(f"{what} removed, % of the test rows")
            axes.set_ylabel("ROC-AUC, %" if what == removed[0] else "")
        figure.legend(ncols=min(3, len(COLOURS)), frameon=False, loc="outside upper center")
        figure.savefig(path, dpi=DPI)


def draw_rows(path: Path, rows: Mapping[str, Sequence[float]], label: str) -> None:
    """A line for each row, the first on top: every cell as a dot, mean and standard deviation.

    Args:
        rows: name -> values between 0 and 1.
        label: of the axis.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.9 + 0.45 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, of_row in enumerate(rows.values()):
            values = 100 * np.array(of_row)
            axes.plot(values, np.full(len(values), place), ".", color=OTHER, alpha=0.5)
            deviation = float(values.std(ddof=1)) if len(values) > 1 else None
            axes.errorbar(values.mean(), place, xerr=deviation, color=COLOURS[0], marker="o", capsize=4)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
        figure.savefig(path, dpi=DPI)


def draw_heat_map(
    path: Path,
    values: Mapping[tuple[int, float], float | None],
    best: tuple[int, float],
    title: str,
    higher_is_better: bool,
) -> None:
    """Batch sizes down, learning rates across; the best cell is framed, darker is better.

    Args:
        values: (batch size, learning rate) -> value; None: it was no number.
    """
    batch_sizes, rates = (sorted({key[k] for key in values}) for k in (0, 1))
    grid = np.array(
        [[np.nan if (value := values[int(b), r]) is None else value for r in rates] for b in batch_sizes], dtype=float
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 1.1 * len(rates), 1.6 + 0.7 * len(batch_sizes)), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(grid, cmap="Blues" if higher_is_better else "Blues_r", aspect="auto")
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
        for row, column in np.ndindex(*grid.shape):
            value = float(grid[row, column])
            dark = bool(value > middle) == higher_is_better
            text = "no number" if np.isnan(value) else f"{value:.4f}"
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else INK)
        corner = (rates.index(best[1]) - 0.5, batch_sizes.index(best[0]) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=3, clip_on=False))
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_yticks(range(len(batch_sizes)), [f"{size:g}" for size in batch_sizes])
        axes.set_xlabel("learning rate")
        axes.set_ylabel("batch size")
        axes.set_title(title, fontsize=10)
        figure.colorbar(shown, ax=axes)
        figure.savefig(path, dpi=DPI)
