from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mbsd.cli.main import main


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It raises where the merged catalogue is another one; what it wrote is removed."""
    words = ["mbsd", "bench", "catalog", "--rows", "3000", "--parts", "2", "--folder", str(tmp_path / "room")]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(tmp_path / "c.json")])
    main()
    found = json.loads((tmp_path / "c.json").read_text())
    names = ["at once", "part 1 of 2", "part 2 of 2", "a part without rows", "merge"]
    assert [step["name"] for step in found["steps"]] == names
    assert all(step["cpu_seconds"] > 0.1 and step["peak_rss_bytes"] > 50e6 for step in found["steps"])
    assert 3000 * 1024 < found["bytes"] < 3000 * 2048 and not list((tmp_path / "room").iterdir())
    printed = capsys.readouterr().out
    assert "A catalogue of 3,000 rows without pictures; merged, it is the same byte for byte" in printed
    assert all(name in printed for name in names)


def test_nothing_to_build_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mbsd", "bench", "catalog", "--rows", "0"])
    with pytest.raises(SystemExit) as left:
        main()
    assert (
        left.value.code == 2 and capsys.readouterr().err == "error: --rows 0, --parts 4; expected at least 1 of each\n"
    )
