"""The house keeps its size: few rooms, short files, a loop and a wiring that read on one screen."""

from __future__ import annotations

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
