"""`gpu.md`: every claim of the docs about GPUs with its figure, or with the reason why there is none."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from mbsd.io.console import markdown_of

WIDTH = 900  # characters of a line: the longest reason and the longest command beside it
NOT_MEASURED = "not measured"


def as_markdown(tree: dict[str, Any]) -> str:
    """The report of what gpu.json holds."""
    gpu = tree["gpu"]
    capability = ".".join(map(str, gpu["capability"]))
    lines = [
        f"# {gpu['name']}",
        "",
        f"Compute capability {capability}, {gpu['memory'] / (1 << 30):.0f} GiB; torch {tree['torch']}, CUDA "
        f"{tree['cuda']}; model of the runs and benches: {tree['model']}. "
        f"{sum(tree['seconds'].values()):.0f} s in all.",
        "",
        "",
    ]
    claims = _table("claim", "page", "figure", "how", "remark")
    for figure in tree["figures"].values():
        claims.add_row(figure["claim"], figure["page"], _shown(figure), figure["how"], figure["reason"])
    commands = _table("command", "s", "exit code")
    for name, found in tree["commands"].items():
        commands.add_row(
            name, f"{found['seconds']}", "killed" if found["exit_code"] is None else f"{found['exit_code']}"
        )
    return "\n".join(lines) + markdown_of(claims, WIDTH) + "\n" + markdown_of(commands)


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _shown(figure: dict[str, Any]) -> str:
    value, unit = figure["value"], figure["unit"]
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}".strip()
