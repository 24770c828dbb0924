"""Settings as text: JSON and YAML of any Unicode encoding, in any locale, in which no key stands twice.

`json.loads` and YAML's loaders keep the last of two equal keys without a word: the first is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mbsd.errors import UserError

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_COLON = re.compile(r"\s*:")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "<<"  # YAML's key for "and all of that mapping": may stand again in each mapping


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 or UTF-32 as editors on Windows write it; never in the locale's encoding.

    Raises:
        UserError: it cannot be read, or is in another encoding; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: found bytes that are no {encoding.upper()} text; save the file as UTF-8"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        UserError: it is no such file, or a key stands twice; the message names both lines.
    """
    text = read_text(path)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and lists without end
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(tree).__name__}")
    _refuse_twice(_json_keys(text), str(path))
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of YAML settings; an empty one has none.

    Raises:
        UserError: it is no such file, or a key stands twice; the message names both lines.
    """
    tree = load_yaml(read_text(path), str(path))
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"{path}: expected settings such as `run:`, found {type(tree).__name__}")
    return tree or {}


def load_yaml(text: str, where: str) -> Any:
    """YAML from a text; `where` names it in errors.

    Raises:
        UserError: it is not YAML, or a key stands twice.
    """
    try:
        refuse_keys_twice(text, where)
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also a date that no calendar has
        raise UserError(f"{where}: not a readable YAML file: {' '.join(str(error).split())}") from error


def refuse_keys_twice(text: str, where: str) -> None:
    """Raise UserError where a YAML mapping has a key twice, or a setting is spelled both `a: {b: …}` and `a.b: …`."""
    root = yaml.compose(text, Loader=_LOADER)
    _refuse_twice(_yaml_keys(root, (), ""), where)


def _refuse_twice(keys: Iterator[tuple[object, str, int]], where: str) -> None:
    """Keys as (what identifies them, name for the message, line)."""
    lines: dict[object, int] = {}
    for identity, name, line in keys:
        if identity in lines:
            raise UserError(
                f"{where}, line {line}: {name} is there twice, first in line {lines[identity]}; keep one of them"
            )
        lines[identity] = line


def _yaml_keys(node: yaml.Node | None, place: tuple[int, ...], prefix: str) -> Iterator[tuple[object, str, int]]:
    """Every key below `node`; `place` tells apart the mappings of a list."""
    if isinstance(node, yaml.SequenceNode):
        for index, inner in enumerate(node.value):
            yield from _yaml_keys(inner, (*place, index), prefix)
    elif isinstance(node, yaml.MappingNode):
        for key, inner in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == _MERGE:
                continue
            name = f"{prefix}{key.value}"
            yield (place, name), name, key.start_mark.line + 1
            yield from _yaml_keys(inner, place, f"{name}.")


def _json_keys(text: str) -> Iterator[tuple[object, str, int]]:
    """Every key of a text that is JSON, by the object that it stands in."""
    opened, name = 0, ""
    within: list[
        tuple[int, str]
    ] = []  # of each object or list that is open: its number, what its keys' names begin with
    for token in _JSON_TOKEN.finditer(text):
        found = token[0]
        if found in "{[":
            opened += 1
            within.append((opened, f"{name}." if name else ""))
        elif found in "}]":
            within.pop()
            name = within[-1][1].removesuffix(".") if within else ""  # the next in a list has its list's name
        elif _COLON.match(text, token.end()):
            key = json.loads(found)
            number, prefix = within[-1]
            name = f"{prefix}{key}"
            yield (number, key), name, text.count("\n", 0, token.start()) + 1
