"""What the screen shows: lines above a progress bar, blocks of facts, and tables as Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

WIDTH = 400  # characters of a line of Markdown; narrower, names and numbers would be cut


def say(text: str) -> None:
    """Print a line to stderr, above the progress bar if there is one; any thread may call it."""
    tqdm.write(text, file=sys.stderr)


def say_block(title: str, facts: Mapping[str, str]) -> None:
    """Print a title and one line for each fact, at once, so that no other process prints in between."""
    width = max(map(len, facts))
    say("\n".join([title, *(f"  {name:<{width}}  {fact}" for name, fact in facts.items())]))


def print_json(value: Any) -> None:
    """Print JSON to stdout: letters as they are where its encoding has all of them, else as JSON's own \\u escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1)
    print(text)


def quiet_libraries() -> None:
    """Leave the screen to the run: transformers prints errors alone, and no progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def markdown_of(table: Table, width: int = WIDTH) -> str:
    """A rich table as lines of Markdown of at most `width` characters; its box is then Markdown's."""
    table.box = rich.box.MARKDOWN
    page = Console(width=width, color_system=None)
    with page.capture() as captured:
        page.print(table)
    return "".join(f"{line.strip()}\n" for line in captured.get().splitlines() if line.strip())
