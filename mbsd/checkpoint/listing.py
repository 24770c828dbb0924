"""`mbsd checkpoint list` and `verify`: what a run has, and whether it is what was written."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbsd.checkpoint import store
from mbsd.checkpoint.best import result, validated
from mbsd.errors import UserError


def list_checkpoints(run: Path) -> None:
    """Print a table, newest first; the best checkpoint of a fine-tuning is marked.

    Raises:
        UserError: the folder holds none.
    """
    table = Table("step", "age", "size", "ranks", "validation", "complete")
    root = store.root_of(str(run))
    best = result(root, checksums=False)
    for folder in store.folders(root):
        age = _age(time.time() - folder.stat().st_mtime)
        wrong = store.broken_files(folder)
        try:
            manifest = store.read_manifest(folder)
            size, ranks = f"{manifest.size / 1e6:,.1f} MB", str(manifest.world_size)
            if manifest.parts > 1:
                ranks += f" (part {manifest.part + 1} of {manifest.parts})"
        except store.BrokenError:
            size = ranks = "?"
        found = validated(folder)
        value = f"{found[0]} {found[1]:.4f}" + (" (best)" if folder == best else "") if found else ""
        table.add_row(str(store.step_of(folder)), age, size, ranks, value, f"no: {wrong[0]}" if wrong else "yes")
    Console(soft_wrap=True).print(table)


def verify_checkpoints(run: Path) -> None:
    """Read all files of all checkpoints and print a line for each checkpoint.

    Raises:
        UserError: the folder holds none, or a file is not as it was written; the message names all such files.
    """
    bad = []
    for folder in store.folders(store.root_of(str(run))):
        wrong = store.broken_files(folder, checksums=True)
        print(f"{folder}: {'; '.join(wrong) if wrong else 'every file is as it was written'}")
        bad += [f"{folder / name}" for name in wrong]
    if bad:
        raise UserError(
            f"{bad[0]}" + (f" (and {len(bad) - 1} more, see above)" if len(bad) > 1 else "") + "; a run resumes from "
            "the newest checkpoint without such a file; remove the folder, or bring the file back"
        )


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
