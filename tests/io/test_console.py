"""What commands print where the screen's encoding has no letters for it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mbsd.cli.main import main
from mbsd.errors import RunFailed, exits_cleanly
from tests.catalog.helpers import write_jsonl
from tests.ranks import ROOT

NAMES = ["红色连衣裙 👗", "蓝色外套", "grüner Mantel"]


def run(monkeypatch: pytest.MonkeyPatch, encoding: str, *words: object) -> tuple[int, str]:
    """Exit code and stdout of `mbsd` on a screen of this encoding."""
    written = io.BytesIO()
    screen = io.TextIOWrapper(written, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "argv", ["mbsd", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as left:
        code = int(left.code or 0)
    return code, written.getvalue().decode(encoding)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items with titles, categories and attributes in Chinese, and a log of purchases, in a folder of such a name."""
    folder = tmp_path_factory.mktemp("目录")
    write_jsonl(
        folder / "items.jsonl",
        *(
            {
                "item_id": f"i{n}",
                "title": NAMES[n % 3],
                "category": f"类别{int(n < 10)}",
                "attributes": {"颜色": NAMES[n % 3]},
            }
            for n in range(40)
        ),
    )
    rows = ({"user": f"u{n % 7}", "query": "红色", "item": f"i{n % 40}", "kind": "purchase"} for n in range(400))
    write_jsonl(folder / "log.jsonl", *rows)
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "gb18030"])
def test_titles_and_paths_end_no_command(encoding: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / encoding
    shop, table = out / "c", out / "表.parquet"
    given = ("--catalog", shop, "--out", table)
    for words in (
        ("catalog", "build", folder / "items.jsonl", "--out", shop, "--workers", 1),
        ("catalog", "mask", folder / "items.jsonl", "--out", out / "masked.jsonl"),
        ("tables", "derive", "categories", *given, "--min-items", 11),
        ("tables", "derive", "attributes", *given),
        ("pairs", "mine", "--log", folder / "log.jsonl", *given),
    ):
        code, printed = run(monkeypatch, encoding, *words)
        assert words[2] != "categories" or ("类别1" in printed or "\\u7c7b\\u522b1" in printed), (
            "the one that is left out"
        )
        assert code == 0 and (str(out) in printed) == (encoding == "gb18030"), printed
        assert encoding == "gb18030" or "\\u76ee\\u5f55" in printed  # 目录
    code, printed = run(monkeypatch, encoding, "catalog", "inspect", shop)
    shown = json.loads(printed)
    assert code == 0 and set(shown["sample_titles"]) == set(NAMES) and shown["attributes"] == {"颜色": 3}
    assert ("红色" in printed) == (encoding == "gb18030")


def test_an_ascii_terminal(folder: Path) -> None:
    """A real one, as of a cron job, with a mistake whose line names the path."""
    environment = {
        **os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    words = [sys.executable, "-m", "mbsd.cli", "catalog", "inspect", str(folder / "nothing")]
    done = subprocess.run(words, env=environment, capture_output=True, timeout=120)
    error = done.stderr.decode("ascii")
    assert done.returncode == 2 and error.startswith("error: catalogue /") and error.count("\n") == 1, error


def test_a_failure_that_a_library_has_wrapped_is_still_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def command() -> None:
        try:
            raise RunFailed("a loader worker is gone")
        except RunFailed as error:
            raise RuntimeError("in a hook") from error

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 1 and capsys.readouterr().err == "error: a loader worker is gone\n"
