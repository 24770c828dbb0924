"""What a pipeline's commands left, with checksums: what a later start takes over is compared with them first.

`OUT/settings/outputs.json`: command -> file below its result -> size and SHA-256. Recorded when a command has ended
well. Files are read as a whole: results of a pipeline are tables, scores and a small shop. A catalogue may be large:
its index is compared with its own checksums and its shards with their sizes, for each picture has a checksum that
whoever reads it compares. Of a training run the newest checkpoint is compared with its manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mbsd.catalog.layout import CATALOG_FILE
from mbsd.catalog.reader import Catalog
from mbsd.checkpoint import store
from mbsd.config.run_files import DONE
from mbsd.errors import UserError
from mbsd.io.files import difference, facts_of, read_own_json, replace_text
from mbsd.tools.studies.commands import Command

Facts = dict[str, dict[str, Any]]


class Outputs:
    """The results of a pipeline's commands.

    Args:
        file: of the checksums.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def record(self, command: Command) -> None:
        """Record what a command that has ended well has left."""
        if command.done.name == DONE:  # its checkpoints have manifests
            return
        everything = self._read()
        everything[command.name] = dict(_facts(command.done))
        replace_text(self._file, json.dumps(everything, indent=1) + "\n")

    def damage(self, command: Command) -> str:
        """What of a command's result is not as the command left it, in words; "" where nothing is.

        A result of which nothing was recorded, as by an older version, is taken as it is.
        """
        if command.done.name == DONE:
            return _damaged_run(command.done.parent)
        root = _root(command.done)
        for name, facts in self._read().get(command.name, {}).items():
            path = root / name if name else root
            wrong = difference(path, facts) if "sha256" in facts else _wrong_size(path, facts)
            if wrong:
                return f"{path}: {wrong}"
        return _damaged_catalogue(root) if (root / CATALOG_FILE).exists() else ""

    def remove(self, command: Command) -> None:
        """Take a damaged result away, so that the command makes it again; a folder stays as NAME.damaged.

        Of a training run only DONE goes: started again, it resumes from its newest whole checkpoint.
        """
        root = command.done if command.done.name == DONE else _root(command.done)
        if not root.is_dir():
            root.unlink()
            return
        aside = root.with_name(f"{root.name}.damaged")
        if aside.exists():
            shutil.rmtree(aside)
        root.rename(aside)

    def _read(self) -> dict[str, Facts]:
        if not self._file.exists():
            return {}
        found: dict[str, Facts] = read_own_json(self._file, "remove it: results are then taken as they are")
        return found


def _root(done: Path) -> Path:
    """The result that `done` stands for: a catalogue is its folder."""
    return done.parent if done.name == CATALOG_FILE else done


def _facts(done: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    root = _root(done)
    if not root.is_dir():
        yield "", facts_of(root)
        return
    has_checksums = (root / CATALOG_FILE).exists()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(root))
            yield name, {"bytes": path.stat().st_size} if has_checksums and name != CATALOG_FILE else facts_of(path)


def _wrong_size(path: Path, facts: dict[str, Any]) -> str:
    size = path.stat().st_size if path.exists() else None
    return "" if size == facts["bytes"] else f"{'missing' if size is None else f'{size} bytes'}, not {facts['bytes']}"


def _damaged_catalogue(folder: Path) -> str:
    try:
        Catalog(folder).require_whole_index()
    except UserError as error:
        return str(error)
    return ""


def _damaged_run(run: Path) -> str:
    newest = next(iter(store.folders(run / "checkpoints")), None)
    wrong = store.broken_files(newest, checksums=True, below="model/") if newest is not None else []
    return f"{newest}: {wrong[0]}" if wrong else ""
