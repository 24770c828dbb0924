"""`mbsd checkpoint list` and `verify`: what a run or its mirror has, and whether it is what was written."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from mbsd.checkpoint import store
from mbsd.checkpoint.best import result, validated
from mbsd.checkpoint.mirror import Mirror
from mbsd.errors import UserError
from mbsd.io.remote import RemoteError


def list_checkpoints(run: str) -> None:
    """Print a table, newest first; the best checkpoint of a fine-tuning is marked.

    Args:
        run: its folder, or the URL of its mirror.

    Raises:
        UserError: there is none.
    """
    if "://" in run:
        _list_mirror(Mirror(run))
        return
    table = Table("step", "age", "size", "ranks", "validation", "complete")
    root = store.root_of(run)
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


def verify_checkpoints(run: str) -> None:
    """Read all files of all checkpoints and print a line for each checkpoint.

    Args:
        run: its folder, or the URL of its mirror.

    Raises:
        UserError: there is none, or a file is not as it was written; the message names all such files.
    """
    bad = []
    if "://" in run:
        mirror = Mirror(run)
        found = {f"{mirror}/{store.name_of(step)}": _wrong(mirror, step, checksums=True) for step in _steps(mirror)}
    else:
        folders = store.folders(store.root_of(run))
        found = {str(folder): store.broken_files(folder, checksums=True) for folder in folders}
    for folder, wrong in found.items():
        print(f"{folder}: {'; '.join(wrong) if wrong else 'every file is as it was written'}")
        bad += [f"{folder}/{name}" for name in wrong]
    if bad:
        raise UserError(
            f"{bad[0]}" + (f" (and {len(bad) - 1} more, see above)" if len(bad) > 1 else "") + "; a run resumes from "
            "the newest checkpoint without such a file; remove the folder, or bring the file back"
        )


def _list_mirror(mirror: Mirror) -> None:
    table = Table("step", "size", "ranks", "complete")
    for step in _steps(mirror):
        wrong, size, ranks = _wrong(mirror, step), "?", "?"
        if not wrong:
            manifest = mirror.manifest(step)
            size, ranks = f"{manifest.size / 1e6:,.1f} MB", str(manifest.world_size)
        table.add_row(str(step), size, ranks, f"no: {wrong[0]}" if wrong else "yes")
    Console(soft_wrap=True).print(table)


def _steps(mirror: Mirror) -> list[int]:
    try:
        steps = list(mirror.steps())
    except RemoteError as error:
        raise UserError(f"{mirror}: cannot be read ({error})") from None
    if not steps:
        raise UserError(f"{mirror}: holds no checkpoint; name the URL that run.mirror had")
    return steps


def _wrong(mirror: Mirror, step: int, *, checksums: bool = False) -> list[str]:
    """What keeps a step there from being as it was written, in words."""
    try:
        manifest = mirror.manifest(step)
        return mirror.wrong_sizes(manifest) or (mirror.wrong_checksums(manifest) if checksums else [])
    except (store.BrokenError, RemoteError) as error:
        return [str(error)]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
