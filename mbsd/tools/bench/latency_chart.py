"""The chart of `mbsd bench latency`, laid out as Fig. 8: the image side on the left, whole models on the right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from mbsd.io.charts import BLUE, GRID, SERIES, format_thousands, save_figure, styled_figure
from mbsd.tools.bench.latency import TITLES

MBSD_STYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 1, 1, 1, 1, 1)))
OTHERS = (*SERIES[1:], "#d36fa8")  # colours of the baselines; blue is MBSD's alone


def draw_latency(result: Mapping[str, Any], path: Path) -> None:
    """Draw the numbers of `measure_latency`; the ending of `path` chooses the format (.png, .svg)."""
    batches = sorted({cell["batch"] for cell in result["cells"]})
    ours = [name for name in result["models"] if name.startswith("mbsd")]
    others = [name for name in result["models"] if name not in ours]
    look: dict[str, dict[str, Any]] = {
        name: {"color": BLUE, "linestyle": MBSD_STYLES[n % len(MBSD_STYLES)], "linewidth": 2.0}
        for n, name in enumerate(ours)
    } | {name: {"color": OTHERS[n % len(OTHERS)], "linewidth": 1.4} for n, name in enumerate(others)}
    with styled_figure(9.0, 4.2) as figure:
        named = {}
        for axes, part in zip(figure.subplots(1, 2, sharey=True), TITLES, strict=True):
            for name, style in look.items():
                cells = [cell for cell in result["cells"] if (cell["model"], cell["part"]) == (name, part)]
                if cells:
                    means = [cell["mean_ms"] for cell in cells]
                    sizes = [cell["batch"] for cell in cells]
                    (named[name],) = axes.plot(sizes, means, marker="o", markersize=3, **style)
                    axes.fill_between(sizes, means, [c["p95_ms"] for c in cells], color=style["color"], alpha=0.12)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(FixedLocator(batches))
            axes.xaxis.set_major_formatter(FixedFormatter([str(batch) for batch in batches]))
            axes.xaxis.set_minor_locator(NullLocator())
            format_thousands(axes.yaxis)
            axes.grid(axis="y", **GRID)
            axes.set_xlabel("samples of a batch")
            axes.set_title(TITLES[part], fontsize=10)
            axes.set_ylabel("ms of a step; shaded up to its 95th percentile" if part == "image" else "")
        figure.legend(named.values(), named.keys(), ncols=5, frameon=False, loc="outside lower center")
        save_figure(figure, path)
