"""How the project's charts look, in reports, studies and measurements: colours, style, figures and their files."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

INK, OTHER = "#3d434c", "#8a8f98"  # of text, and of what no series colour stands for
BLUE, ORANGE, RED, GREEN, PURPLE = "#2f6db5", "#e08a2c", "#b5483c", "#3d8f6b", "#7b5ea7"
SERIES = (BLUE, ORANGE, RED, GREEN, PURPLE, OTHER, "#c2a83e", "#4aa3b8")  # in this order, for any number of lines
GRID: dict[str, Any] = {"color": "#e6e8ec", "linewidth": 0.6}
DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "svg.fonttype": "none",  # the browser has fonts for names in any script
    "svg.hashsalt": "mbsd",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b8bdc6",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many inches; draw and save it inside the block, where the project's style holds."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def format_thousands(axis: Axis) -> None:
    """Label an axis with whole numbers such as 12,000."""
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure to `path`, whose ending chooses the format (.png, .svg); missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def svg_uri(figure: Figure) -> str:
    """The figure as SVG in a data URI, so that a page needs no other file."""
    svg = io.BytesIO()
    # Without a date the same table gives the same bytes.
    figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()
