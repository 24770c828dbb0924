"""The README's first command, with another seed than its default: what it claims must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT


@pytest.mark.distributed
@pytest.mark.timeout(1500)
def test_the_demo(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "mbsd.cli", "demo", "--out", str(out), "--seed", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    print(done.stdout)
    scores = {row["model"]: row for row in json.loads((out / "summary.json").read_text())}
    scratch, sdmi = scores["scratch"], scores["pre-trained with SDMI"]
    assert sdmi["full"] > scratch["full"] + 0.02
    assert sdmi["image_on_image_only"] >= 0.65
    assert "tensorboard --logdir" in done.stdout
    for run in ("stage1", "stage2", "stage2_no_sdmi", "finetune0", "finetune1", "finetune2"):
        assert (out / run / "DONE").exists() and list((out / run / "tensorboard").iterdir())

    # Again: nothing is started, the table is the same. Another seed would mix two shops.
    again = demo_again(out, 1)
    assert again.returncode == 0 and "$ " not in again.stdout and again.stdout.count("already there") == 13
    assert {row["model"]: row for row in json.loads((out / "summary.json").read_text())} == scores
    other = demo_again(out, 2)
    assert other.returncode == 2 and "seed was 1" in other.stderr and other.stderr.count("\n") == 1


def demo_again(out: Path, seed: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mbsd.cli", "demo", "--out", str(out), "--seed", str(seed)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def test_a_demo_leaves_a_folder_in_use_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = demo_again(tmp_path, 0)
    assert done.returncode == 2 and "already there and not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("launcher", "option"),
    [*((launcher, "--data.catalog") for launcher in ("pretrain", "finetune", "evaluate", "embed")),
     ("ablation", "--rows"), ("missing", "--rates"), ("grid", "--learning-rates")],
)  # fmt: skip
def test_launchers_print_their_settings(launcher: str, option: str) -> None:
    words = [sys.executable, f"launchers/{launcher}.py", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and option in done.stdout
