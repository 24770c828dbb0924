"""Tables of the screen as Markdown."""

from __future__ import annotations

import rich.box
from rich.console import Console
from rich.table import Table

WIDTH = 400  # characters of a line; narrower, names and numbers would be cut


def markdown_of(table: Table) -> str:
    """A rich table as lines of Markdown; its box is then Markdown's."""
    table.box = rich.box.MARKDOWN
    page = Console(width=WIDTH, color_system=None)
    with page.capture() as captured:
        page.print(table)
    return "".join(f"{line.strip()}\n" for line in captured.get().splitlines() if line.strip())
