"""The charts of the mining report, each an SVG as a data URI, so that the page needs no other file."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from mbsd.io.charts import OTHER, STYLE, svg_uri

COLOURS = {"purchase": "#2f6db5", "same-category": "#e08a2c", "rewrite": "#b5483c"}
LABELS = {"1": ("positives", "#2f6db5"), "0": ("negatives", "#e08a2c")}
MAX_BINS = 40


def chart_splits(splits: Mapping[str, Mapping[str, int]]) -> str:
    """Return bars of each split's rows by source (see `report.describe_pairs`), as a data URI."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.1 + 0.4 * len(splits)), layout="constrained")
        axes = figure.subplots()
        sources = list(dict.fromkeys([*COLOURS, *(source for rows in splits.values() for source in rows)]))
        left = np.zeros(len(splits))
        for source in sources:
            rows = np.array([of_source.get(source, 0) for of_source in splits.values()], dtype=np.float64)
            if rows.any():
                axes.barh(list(splits), rows, 0.62, left=left, color=COLOURS.get(source, OTHER), label=source)
            left += rows
        axes.invert_yaxis()
        axes.set_xlabel("pairs")
        _thousands(axes, "x")
        figure.legend(ncols=len(sources), frameon=False, loc="outside upper right")
        return svg_uri(figure)


def chart_lengths(lengths: Mapping[str, Mapping[str, int]], what: str) -> str:
    """Return the distributions of a length among positives and among negatives, in one chart, as a data URI.

    Args:
        lengths: label ("0", "1") -> length -> rows.
        what: the length's name and unit, for the axis.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 2.7), layout="constrained")
        axes = figure.subplots()
        edges = _edges(lengths)
        for label, (name, colour) in LABELS.items():
            counts = lengths.get(label, {})
            if counts:
                values = np.minimum(np.array([int(value) for value in counts]), edges[-1] - 1)
                share, _ = np.histogram(values, edges, weights=np.array(list(counts.values())) / sum(counts.values()))
                axes.stairs(100 * share, edges - 0.5, fill=True, alpha=0.3, color=colour)
                axes.stairs(100 * share, edges - 0.5, color=colour, linewidth=1.6, label=name)
        axes.set_xlabel(what)
        axes.set_ylabel("% of them")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.legend(frameon=False)
        return svg_uri(figure)


def chart_pairs_per_item(counts: Mapping[str, int]) -> str:
    """Return bars of how many items have 1, 2, 3-4, 5-8, … pairs, as a data URI."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 2.7), layout="constrained")
        axes = figure.subplots()
        # Powers of two: the items with the most pairs have thousands of times the median.
        bins = np.ceil(np.log2([int(value) for value in counts])).astype(int)
        items = np.bincount(bins, weights=list(counts.values()))
        names = [f"{2 ** (n - 1) + 1}–{2**n}" if n > 1 else str(2**n) for n in range(len(items))]
        axes.bar(names, items, 0.8, color=OTHER)
        axes.set_xlabel("pairs of an item")
        axes.set_ylabel("items")
        axes.tick_params("x", labelrotation=0 if len(names) < 7 else 35)
        _thousands(axes, "y")
        return svg_uri(figure)


def _edges(lengths: Mapping[str, Mapping[str, int]]) -> NDArray[np.int64]:
    """Return the edges of at most `MAX_BINS` bins of whole numbers; the last also counts the longest thousandth."""
    counts = np.zeros(1 + max(int(value) for of_label in lengths.values() for value in of_label), dtype=np.int64)
    for of_label in lengths.values():
        for value, rows in of_label.items():
            counts[int(value)] += rows
    longest = int(np.searchsorted(np.cumsum(counts), 0.999 * counts.sum()))
    shortest = int(np.flatnonzero(counts)[0])
    width = -(-(longest - shortest + 1) // MAX_BINS)
    return np.arange(shortest, longest + 1 + width, width)


def _thousands(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
