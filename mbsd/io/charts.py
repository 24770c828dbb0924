"""How the project's charts look, in reports, studies and measurements."""

from __future__ import annotations

import base64
import io
from typing import Any

from matplotlib.figure import Figure

INK, OTHER = "#3d434c", "#8a8f98"
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


def svg_uri(figure: Figure) -> str:
    """The figure as SVG in a data URI, so that a page needs no other file."""
    svg = io.BytesIO()
    # Without a date the same table gives the same bytes.
    figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()
