"""The pages that users read, cut into what the tests ask about: blocks of code, code in a line, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from mbsd.cli.grid import app as grid_app
from mbsd.cli.main import app as mbsd_app
from mbsd.cli.submit import app as submit_app
from tests.ranks import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS = {name: typer.main.get_command(app) for name, app in
            (("mbsd", mbsd_app), ("grid", grid_app), ("submit", submit_app))}  # fmt: skip


class Shown(NamedTuple):
    """A command as a page shows it."""

    page: str
    words: list[str]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def launcher(self) -> int | None:
        """Which of the words is `launchers/X.py`."""
        return next((n for n, word in enumerate(self.words) if re.fullmatch(r"launchers/\w+\.py", word)), None)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def in_line(page: Path) -> list[str]:
    """Code between single backticks, outside blocks and comments."""
    prose = re.sub(r"```.*?```|<!--.*?-->", "", text_of(page), flags=re.DOTALL)
    return [" ".join(code.split()).replace("\\|", "|") for code in re.findall(r"`([^`]+)`", prose)]


def commands() -> Iterator[Shown]:
    """Of the blocks of all pages, without comments and environment variables."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    del words[0]
                if words:
                    yield Shown(name_of(page), words)


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands below a command line program, by their full names."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for below, one in command.commands.items():
        yield from leaves(one, f"{name} {below}")


def options(command: Any) -> set[str]:
    """Of one command, `--help` among them."""
    return {"--help"}.union(*(parameter.opts + parameter.secondary_opts for parameter in command.params))
