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
        *sections, last = name.split(".")
        inner: Any = expanded
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        value = inner.get(last) if isinstance(inner, dict) else None
        if isinstance(value, str):
            inner[last] = expand_home(value)
        elif isinstance(value, list):
            inner[last] = [expand_home(path) if isinstance(path, str) else path for path in value]
    return expanded
