"""Settings that are paths: each has the type PathText, and `~` is expanded for all of them in one place."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from mbsd.errors import UserError
from mbsd.io.home import expand_home

PATH = "path"
# A path, or in some settings a name of another kind too, such as a hub's.
PathText = Annotated[str, PATH]


def path_names(settings: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of all paths of a settings dataclass and of those inside it."""
    for name, (is_path, below) in _fields(settings).items():
        if is_path:
            yield f"{prefix}{name}"
        for kind in below:
            yield from path_names(kind, f"{prefix}{name}.")


def section_names(settings: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings dataclasses inside one."""
    for name, (_, below) in _fields(settings).items():
        for kind in below:
            yield f"{prefix}{name}"
            yield from section_names(kind, f"{prefix}{name}.")


def _fields(settings: type) -> dict[str, tuple[bool, list[type]]]:
    """Field -> whether it is a path, and the settings dataclasses that it holds or may hold."""
    found: dict[str, tuple[bool, list[type]]] = {}
    for name, hint in typing.get_type_hints(settings, include_extras=True).items():
        kinds = (hint, *typing.get_args(hint))
        below = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        found[name] = PathText in kinds, below
    return found


def listed_settings(settings: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Of a settings dataclass and those inside it, the lists whose entries are dataclasses: dotted name, dataclass."""
    for name, hint in typing.get_type_hints(settings).items():
        for kind in (hint, *typing.get_args(hint)):
            entry = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
            if isinstance(entry, type) and dataclasses.is_dataclass(entry):
                yield f"{prefix}{name}", entry
            elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield from listed_settings(kind, f"{prefix}{name}.")


def with_home(settings: Any, prefix: str = "") -> Any:
    """The settings with `~` expanded in every path; `prefix` is of their names in errors.

    Raises:
        UserError: a path names a user that does not exist, or has letters that this process's locale lacks.
    """
    found = {}
    for name, (is_path, _) in _fields(type(settings)).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            found[name] = with_home(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            found[name] = tuple(with_home(entry, f"{prefix}{name}[{n}].") for n, entry in enumerate(value))
        elif is_path and isinstance(value, tuple):
            found[name] = tuple(map(expand_home, value))
            for path in found[name]:
                _refuse_unwritable(f"{prefix}{name}", path)
        elif is_path and value is not None:
            found[name] = expand_home(value)
            _refuse_unwritable(f"{prefix}{name}", found[name])
    return dataclasses.replace(settings, **found)


def _refuse_unwritable(name: str, path: str) -> None:
    """A path of other letters than the locale has: files seem not to be there, or settings cannot be saved."""
    try:
        os.fsencode(path)
        path.encode("utf-8")  # what came from a command line that the locale could not read has no UTF-8
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        raise UserError(
            f"{name}={path.encode('ascii', 'backslashreplace').decode()}: this process's encoding {encoding} has no "
            "such letters; set PYTHONUTF8=1, or LC_ALL to a UTF-8 locale such as C.UTF-8"
        ) from error


def tree_with_home(tree: Mapping[str, Any], settings: type) -> dict[str, Any]:
    """The same of settings as a YAML file holds them.

    Args:
        settings: the dataclass that they will be read into.
    """
    expanded: dict[str, Any] = copy.deepcopy(dict(tree))
    for name in path_names(settings):
        inner, last = _holder(expanded, name)
        value = inner.get(last) if isinstance(inner, dict) else None
        if isinstance(value, str):
            inner[last] = expand_home(value)
        elif isinstance(value, list):
            inner[last] = [expand_home(path) if isinstance(path, str) else path for path in value]
    for name, kind in listed_settings(settings):
        inner, last = _holder(expanded, name)
        value = inner.get(last) if isinstance(inner, dict) else None
        if isinstance(value, list):
            inner[last] = [tree_with_home(entry, kind) if isinstance(entry, dict) else entry for entry in value]
    return expanded


def _holder(tree: dict[str, Any], name: str) -> tuple[Any, str]:
    """The section of a tree that holds a setting, and the setting's name in it; None: there is no such section."""
    *sections, last = name.split(".")
    inner: Any = tree
    for section in sections:
        inner = inner.get(section) if isinstance(inner, dict) else None
    return inner, last
