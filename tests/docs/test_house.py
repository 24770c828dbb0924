"""The house keeps its size: few rooms, short files, a loop and a wiring that read on one screen."""

from __future__ import annotations

import ast
import subprocess

from tests.ranks import ROOT


def lines_of(pattern: str) -> dict[str, int]:
    files = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files.stdout.split()}


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    found = lines_of("*.py")
    assert len(found) > 200
    assert {name: lines for name, lines in found.items() if lines > 400} == {}


def test_the_wiring_and_the_loop_read_on_one_screen() -> None:
    found = lines_of("mbsd/training/*.py")
    assert found["mbsd/training/setup.py"] <= 150 and found["mbsd/training/trainer.py"] <= 150


def test_rooms_are_few() -> None:
    rooms = {name.split("/")[1] for name in lines_of("mbsd/*.py")} - {"__init__.py"}
    assert len(rooms) <= 22, sorted(rooms)


def test_text_is_read_and_written_in_a_named_encoding() -> None:
    """Not in the locale's, in which the same file is another text or a traceback. ruff sees the plain cases alone."""
    found = [
        f"{name}:{call.lineno}"
        for name in [*lines_of("mbsd/*.py"), *lines_of("launchers/*.py")]
        for call in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _leaves_encoding_to_the_locale(call)
    ]
    assert found == []


def _leaves_encoding_to_the_locale(call: ast.Call) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func, "value", None)
    if "encoding" in keywords or getattr(owner, "id", "") in ("os", "Image", "tarfile"):
        return False
    constants = [value.value for value in (*call.args, keywords.get("mode")) if isinstance(value, ast.Constant)]
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        return not any(isinstance(value, str) and "b" in value for value in constants)
    positional = {"read_text": 1, "write_text": 2}
    as_text = name in ("run", "Popen", "check_output") and "text" in keywords
    return as_text or (name in positional and len(call.args) < positional[name])
