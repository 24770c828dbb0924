"""The commit protocol of a run's checkpoints; it knows files, not torch.

A checkpoint is written into a hidden folder, its files are listed with their sizes in `manifest.json`, one rename
publishes it, and `latest` is then replaced atomically. `latest` is only a hint: the newest folder whose files are all
there, at their sizes, wins. A run killed at any moment finds the last complete checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


def name_of(step: int) -> str:
    """The folder of a step."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a folder."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None, folder
    return int(match[1])


def open_for_writing(root: Path, step: int) -> Path:
    """An empty hidden folder for the checkpoint of `step`; what an interrupted save left there is removed."""
    folder = root / f".{name_of(step)}.writing"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def commit(writing: Path) -> Path:
    """Publish a written folder under its final name; returns that. One process calls it, after all have written."""
    files = {str(p.relative_to(writing)): p.stat().st_size for p in sorted(writing.rglob("*")) if p.is_file()}
    for name in files:
        _sync(writing / name)
    _write(writing / MANIFEST, json.dumps({"files": files}, indent=1))
    final = writing.parent / writing.name.removeprefix(".").removesuffix(".writing")
    if final.exists():
        shutil.rmtree(final)
    writing.rename(final)
    _sync(writing.parent)
    hint = writing.parent / ".latest.writing"
    _write(hint, final.name)
    hint.replace(writing.parent / "latest")
    return final


def broken_files(folder: Path) -> list[str]:
    """What keeps a checkpoint from being complete, in words; empty where it is complete."""
    try:
        files: dict[str, int] = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{MANIFEST}: {error}"]
    found = {name: (folder / name).stat().st_size if (folder / name).is_file() else None for name in files}
    return [
        f"{name}: {'missing' if found[name] is None else f'{found[name]} bytes'}, expected {size} bytes"
        for name, size in files.items()
        if found[name] != size
    ]


def newest(root: Path) -> Path | None:
    """The newest complete checkpoint below `root`, if there is one."""
    folders = [p for p in root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)] if root.is_dir() else []
    for folder in sorted(folders, key=step_of, reverse=True):
        if not broken_files(folder):
            return folder
    return None


def prune(root: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints; never the last one."""
    folders = sorted((p for p in root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), key=step_of)
    for folder in folders[: -max(1, keep_last)]:
        shutil.rmtree(folder)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
