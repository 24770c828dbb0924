"""What becomes of a job, and how a submission is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mbsd.config.parse import expand
from mbsd.config.run_files import LAST_SAVED
from mbsd.errors import UserError
from mbsd.tools.slurm.job import Ended, count_failure, what_next
from tests.ranks import ROOT

CONFIG = ["--config", "launchers/configs/stage1.yaml", "--deepspeed_config", "ds_configs/v100x16_stage1.json"]


@pytest.mark.parametrize(
    ("ended", "failures", "expected"),
    [
        (Ended(0, done=True, stopped_by="", job_ends=False), 0, "done"),
        (Ended(0, done=True, stopped_by="", job_ends=True), 0, "done"),
        (Ended(143, done=True, stopped_by="", job_ends=False), 0, "done"),  # killed on its way out
        (Ended(0, done=False, stopped_by="SIGUSR1", job_ends=False), 0, "again"),
        (Ended(0, done=False, stopped_by="SIGTERM", job_ends=True), 0, "end"),  # scancel
        (Ended(0, done=False, stopped_by="SIGINT", job_ends=False), 0, "end"),
        (Ended(137, done=False, stopped_by="SIGUSR1", job_ends=False), 1, "again"),  # an old PREEMPTED
        (Ended(1, done=False, stopped_by="", job_ends=False), 3, "end"),
        (Ended(1, done=False, stopped_by="", job_ends=False), 2, "again"),
        (Ended(2, done=False, stopped_by="", job_ends=False), 0, "end"),
        (Ended(143, done=False, stopped_by="", job_ends=True), 0, "end"),
    ],
)
def test_what_becomes_of_a_job(ended: Ended, failures: int, expected: str) -> None:
    assert what_next(ended, failures, max_failures=3) == expected


def test_failures_count_in_a_row_until_a_checkpoint_is_new(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    assert [count_failure(tmp_path) for _ in range(3)] == [1, 2, 3]
    (tmp_path / LAST_SAVED).write_text("step-00000010\n")
    assert [count_failure(tmp_path) for _ in range(2)] == [1, 2]
    (tmp_path / LAST_SAVED).write_text("step-00000020\n")
    assert count_failure(tmp_path) == 1


def test_seeds() -> None:
    for text, numbers in {"0-3,7": (0, 1, 2, 3, 7), "5": (5,), "3,1-2,2": (1, 2, 3)}.items():
        assert expand(text, "--seeds") == numbers
    for wrong in ("", "a", "3-1", "1,,2", "1-"):
        with pytest.raises(UserError, match="--seeds"):
            expand(wrong, "--seeds")


def submit(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launchers/submit.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_dry_run_prints_the_job_and_writes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = submit(
        "pretrain", *CONFIG, "--run.dir", run, "--nodes", 4, "--gpus", 2, "--account", "shop", "--sbatch=--qos=high",
        "--depends-on", 12, "--depends-on=13_1", "--seeds", "0-1", "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[0].split()
    assert command[0] == "sbatch" and command[-4:] == [
        "--config", f"{run}/slurm/001/config.yaml", "--deepspeed_config", f"{run}/slurm/001/ds_config.json",
    ]  # fmt: skip
    assert {
        "--nodes=4", "--gpus-per-node=2", "--ntasks-per-node=2", "--account=shop", "--qos=high", "--array=0-1",
        "--dependency=afterok:12,afterok:13_1", f"--output={run}/seed-%a/slurm/log.txt", "--open-mode=append",
    } <= set(command)  # fmt: skip
    assert (ROOT / "launchers/slurm/pretrain.sbatch").read_text() in done.stdout
    assert f"dir: {run}\n" in done.stdout and not list(tmp_path.iterdir())


def test_what_a_job_depends_on(tmp_path: Path) -> None:
    """The newest job of a run folder; the same seed where both are arrays of the same seeds; nothing if it is done."""
    for number, job in (("001", "40"), ("002", "41")):
        (tmp_path / "slurm" / number).mkdir(parents=True)
        (tmp_path / "slurm" / number / "submit.json").write_text(json.dumps({"job": job, "seeds": [0, 1]}))
    (tmp_path / "seed-1").mkdir()

    def dependency(*words: object) -> list[str]:
        said = submit("pretrain", *CONFIG, *words, "--dry-run")
        assert said.returncode == 0, said.stderr
        return [word for word in said.stdout.splitlines()[0].split() if word.startswith("--dependency")]

    assert dependency("--depends-on", tmp_path) == ["--dependency=afterok:41"]
    assert dependency("--depends-on", tmp_path, "--seeds=0-1") == ["--dependency=aftercorr:41"]
    assert dependency("--depends-on", tmp_path / "seed-1") == ["--dependency=afterok:41_1"]
    (tmp_path / "seed-1" / "DONE").touch()
    assert dependency("--depends-on", tmp_path / "seed-1") == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nodes", "two"], "--nodes"),
        (["--gpus=2", "--ranks=2"], "--ranks"),
        (["--depends-on", "runs/nowhere"], "--depends-on runs/nowhere"),
        (["--run.init_from", "runs/{seed}", "--model.backbone=null"], "--seeds"),
        (["--run.max_step=3"], "max_step"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words: list[str], named: str) -> None:
    done = submit("pretrain", *CONFIG, *words, "--dry-run")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and named in done.stderr
