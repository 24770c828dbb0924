"""The files of a source as a user names it: a file, a folder such as Spark and Hive write, or a pattern.

A path that was found is never taken as a pattern again: `[`, `*` and `?` in names are characters like any other.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from mbsd.errors import UserError

COMPRESSED = (".gz", ".bz2", ".zst")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # Hive's and Spark's name of the folder of nulls
# Files of such a table that were replaced or deleted stay in its folder: only its own reader knows which count.
TABLE_FORMATS = {
    "_delta_log": "a Delta table",
    ".hoodie": "a Hudi table",
    "metadata/version-hint.text": "an Iceberg table",
}


@dataclass(frozen=True)
class SourceFile:
    """One file.

    Attributes:
        path: where it is.
        format: such as Parquet.
        name: its path below the folder that was given, or its file name.
    """

    path: str
    format: str
    name: str

    @property
    def partition(self) -> dict[str, str | None]:
        """Column -> value, of the `column=value` folders directly above the file; None is a null."""
        return partition_of(self.path)


@dataclass(frozen=True)
class SourceFiles:
    """All files of a source, in the order of their names; at least one, and all of one format.

    Attributes:
        name: the source as the user gave it, for messages.
        files: the files.
        ignored: names of a folder's other files, which are of no known format.
    """

    name: str
    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...] = ()


def find_files(source: str, formats: Mapping[str, str], otherwise: str = "") -> SourceFiles:
    """Find the files that a path or pattern names.

    Of a folder all files below it are taken whose ending is known, but none whose name, or whose folder's, begins with
    a dot or an underscore: those are other tools' markers and half-written files.

    Args:
        source: a file, a folder or a pattern.
        formats: ending of a name, before that of a compression -> format.
        otherwise: the format of a file with another ending that is named itself; "" = it is an error.

    Raises:
        UserError: there is no such file, or files of several formats.
    """
    known = "a file that ends in " + ", ".join(formats)
    if os.path.isfile(source):
        found = [SourceFile(source, _format(source, formats) or otherwise, os.path.basename(source))]
    elif os.path.isdir(source):
        found = list(_in_folder(source, formats))
    else:
        found = list(_matching(source, formats, otherwise))
    files = [file for file in found if file.format]
    ignored = tuple(file.name for file in found if not file.format)
    if not files:
        if os.path.isfile(source):
            raise UserError(f"{source}: unknown kind of file {Path(source).suffix!r}; expected {known}")
        what = "a folder without" if os.path.isdir(source) else "no such file, nor a folder or pattern with"
        raise UserError(f"{source}: {what} {known}")
    different = sorted({file.format for file in files})
    if len(different) > 1:
        raise UserError(f"{source}: files of different formats ({', '.join(different)}); give a pattern of one of them")
    return SourceFiles(source, tuple(files), ignored)


def partition_of(path: str) -> dict[str, str | None]:
    """Return column -> value of the `column=value` folders directly above a file, as Hive and Spark name them."""
    values: dict[str, str | None] = {}
    for folder in reversed(Path(path).parts[:-1]):
        name, equals, value = folder.partition("=")
        if not (name and equals):
            break
        values.setdefault(unquote(name), None if value == NO_VALUE else unquote(value))
    return values


def _matching(pattern: str, formats: Mapping[str, str], otherwise: str) -> Iterator[SourceFile]:
    """Yield the files that a pattern matches, and those of folders such as `day=1` or Spark's `log.parquet`."""
    fixed = next((n for n, part in enumerate(Path(pattern).parts) if glob.has_magic(part)), 0)
    asks_for_hidden = any(map(_hidden, Path(pattern).parts[fixed:]))
    paths = [
        path
        for path in sorted(glob.glob(pattern, recursive=True))
        if asks_for_hidden or not any(map(_hidden, Path(path).parts[fixed:]))
    ]
    seen: set[str] = set()
    only_folders = not any(map(os.path.isfile, paths))
    for path in paths:
        if os.path.isfile(path):
            found = [SourceFile(path, _format(path, formats) or otherwise, path)]
        elif only_folders or _format(path, formats) or "=" in os.path.basename(path):
            found = [replace(file, name=file.path) for file in _in_folder(path, formats)]
        else:
            found = []
        yield from (file for file in found if file.path not in seen)
        seen |= {file.path for file in found}


def _in_folder(folder: str, formats: Mapping[str, str]) -> Iterator[SourceFile]:
    for marker, what in TABLE_FORMATS.items():
        if os.path.exists(os.path.join(folder, marker)):
            raise UserError(f"{folder}: {what}, whose files hold rows that it no longer has; export it as Parquet")
    seen = set()  # a link to a folder above would never end
    for path, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(path))
        folders[:] = [
            name
            for name in sorted(folders)
            if not _hidden(name) and os.path.realpath(os.path.join(path, name)) not in seen
        ]
        for name in sorted(names):
            if not _hidden(name):
                full = os.path.join(path, name)
                yield SourceFile(full, _format(full, formats), os.path.relpath(full, folder))


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _format(name: str, formats: Mapping[str, str]) -> str:
    path = Path(name.lower())
    return formats.get(Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix, "")
