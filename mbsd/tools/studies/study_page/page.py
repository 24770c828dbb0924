"""One HTML file with a study's tables and pictures, so that it can be sent and needs no server.

Tables are those that the screen shows (rich); rows that are the paper's are in a colour of their own, here as there.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table
from rich.text import Text

from mbsd.io.files import replace_text

TEMPLATE = "page.html.j2"
PAPER = "dark_orange3"  # style of a row with the paper's numbers
KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        tables: each with a line about it.
        picture: PNG or SVG; None: there is none.
    """

    title: str
    tables: tuple[tuple[str, Table], ...]
    picture: Path | None = None


def new_table(*headings: str) -> Table:
    """A table whose numbers are never cut: the first column is to the left, the others to the right."""
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if number else "left", no_wrap=True)
    return table


def add_row(table: Table, *cells: str, of_paper: bool = False) -> None:
    """Add a row of ours, or of the paper's."""
    table.add_row(*map(Text, cells), style=PAPER if of_paper else None)


def write_study_page(out: Path, title: str, told: str, sections: Sequence[Section]) -> None:
    """Write the HTML file.

    Args:
        told: a line about all of it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shown = [
        {"title": section.title, "tables": [(text, *_lines(table)) for text, table in section.tables],
         "picture": _uri(section.picture) if section.picture is not None else None}
        for section in sections
    ]  # fmt: skip
    replace_text(out, environment.get_template(TEMPLATE).render(title=title, told=told, sections=shown))


def _lines(table: Table) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    """Headings, and for each row whether it is the paper's, and its cells."""
    cells = [[_plain(cell) for cell in column.cells] for column in table.columns]
    rows = [
        (row.style == PAPER, list(of_row)) for row, of_row in zip(table.rows, zip(*cells, strict=True), strict=True)
    ]
    return [_plain(column.header) for column in table.columns], rows


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _uri(picture: Path) -> str:
    return f"data:{KINDS[picture.suffix]};base64,{base64.b64encode(picture.read_bytes()).decode()}"
