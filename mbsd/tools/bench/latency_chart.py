"""The picture of `mbsd bench latency`, as Fig. 8 has it: the image side at the left, whole models at the right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, StrMethodFormatter

from mbsd.io.charts import STYLE

MBSDSTYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 1, 1, 1, 1, 1)))
COLOURS = ("#e08a2c", "#3c9a5f", "#8a5fb5", "#b5483c", "#7a6a58", "#d36fa8", "#2aa5a0", "#8a8f98")
TITLES = {"image": "image side", "whole": "whole model"}


def draw_latency(result: Mapping[str, Any], path: Path) -> None:
    """Write the numbers of `measure_latency` as a picture; the ending of `path` says which kind."""
    batches = sorted({cell["batch"] for cell in result["cells"]})
    ours = [name for name in result["models"] if name.startswith("mbsd")]
    others = [name for name in result["models"] if name not in ours]
    look: dict[str, dict[str, Any]] = {
        name: {"color": "#2f6db5", "linestyle": MBSDSTYLES[n % len(MBSDSTYLES)], "linewidth": 2.0}
        for n, name in enumerate(ours)
    } | {name: {"color": COLOURS[n % len(COLOURS)], "linewidth": 1.4} for n, name in enumerate(others)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
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
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.grid(axis="y", color="#e6e8ec", linewidth=0.6)
            axes.set_xlabel("samples of a batch")
            axes.set_title(TITLES[part], fontsize=10)
            axes.set_ylabel("ms of a step; shaded up to its 95th percentile" if part == "image" else "")
        figure.legend(named.values(), named.keys(), ncols=5, frameon=False, loc="outside lower center")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
