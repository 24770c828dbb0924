"""What a batch job runs on its first node: `python -m mbsd.tools.slurm.job pretrain --config … --deepspeed_config …`.

It starts the ranks with srun, and decides from how they ended what happens to the job:

| the ranks | the job |
|---|---|
| finished (DONE) | ends with 0 |
| saved and stopped for SIGUSR1: the time limit is near, or `scancel --signal=USR1 JOB` | is queued again |
| failed or were killed | is queued again; after MBSD_MAX_FAILURES in a row without a new checkpoint it ends |
| found a mistake that only the user can correct: exit code 2 | ends with 2 |
| were stopped with the job: `scancel JOB`, preemption, a lost node | ends, not with 0; Slurm may queue it again |

A task of an array trains with its number as seed, in the folder `seed-N` of the run folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mbsd.config.parse import parse
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.config.run_files import DONE, LAST_SAVED, PREEMPTED
from mbsd.errors import EXIT_USER_ERROR, MISTAKE_FILE, UserError, exits_cleanly
from mbsd.io.files import replace_text
from mbsd.parallel.launch_env import free_port

ROOT = Path(__file__).resolve().parents[3]
Launcher = Literal["pretrain", "finetune"]
LAUNCHERS: dict[Launcher, type[PretrainConfig] | type[FinetuneConfig]] = {
    "pretrain": PretrainConfig, "finetune": FinetuneConfig,
}  # fmt: skip
MAX_FAILURES = 3
# Slurm repeats "end step N" for minutes to a node that it lost, and a restarted job counts its steps from 0 again: the
# message for the start before would end the ranks of this one. Empty steps in front give the ranks another number.
MAX_SKIPPED = 20
FROM_OTHER_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SEED = "{seed}"  # in run.init_from: stands for the number of an array's task

Next = Literal["done", "again", "end"]


@dataclass(frozen=True)
class Ended:
    """How the ranks of one start ended."""

    code: int
    """2 if any rank found a mistake of the user's; else srun's exit code, 128 + N where signal N killed a rank."""
    done: bool
    """The run is finished."""
    stopped_by: str
    """Name of the signal for which they saved and stopped, or ""."""
    job_ends: bool
    """Slurm ends the whole job: it was cancelled or preempted, or a node was lost."""


def what_next(ended: Ended, failures: int, max_failures: int) -> Next:
    """What happens to the job after `failures` in a row, this one included, without a new checkpoint."""
    if ended.done:
        return "done"
    if ended.job_ends or ended.code == EXIT_USER_ERROR:
        return "end"
    if ended.code == 0:
        return "again" if ended.stopped_by == signal.SIGUSR1.name else "end"
    return "again" if failures < max_failures else "end"


def run_job(launcher: Launcher, words: list[str]) -> int:
    """Run the ranks of this start of the job once; returns the exit code of the batch script."""
    words = words + seed_words(launcher, words)
    folder = Path(parse(LAUNCHERS[launcher], words)[0].run.dir)
    limit = _max_failures()
    job = os.environ["SLURM_JOB_ID"]
    name = f"job {job}, restart {os.environ.get('SLURM_RESTART_COUNT', '0')}"
    _log(f"{name} on {os.environ.get('SLURM_JOB_NODELIST', '')}: {folder}")
    ended = _run_ranks(name, [str(ROOT / "launchers" / f"{launcher}.py"), *words], folder)

    failures = 0
    if ended.code == 0 or ended.done:
        _failures_file(folder).unlink(missing_ok=True)
    elif ended.code != EXIT_USER_ERROR and not ended.job_ends:
        failures = count_failure(folder)
        _log(f"{name}: the ranks failed ({ended.code}), {failures} of {limit} times in a row without a new checkpoint")
    next_ = what_next(ended, failures, limit)
    if next_ == "again":
        asked = subprocess.run(
            ["scontrol", "requeue", _own_name(job)], capture_output=True, encoding="utf-8", errors="replace"
        )
        if asked.returncode == 0:
            _log(f"{name}: queued again")
            return ended.code
        _log(f"{name}: not queued again: {asked.stderr.strip()}")
    if next_ == "done":
        if ended.code != 0:
            _log(f"{name}: {folder} is finished, though its ranks ended with {ended.code}")
        return 0
    if ended.code == 0:
        _log(f"{name}: {folder} is saved and not finished; submit it again to resume it")
        return 1  # jobs that depend on the run must not start
    return ended.code


def _run_ranks(name: str, words: list[str], folder: Path) -> Ended:
    """Start the ranks with srun and wait for all of them.

    Args:
        name: of this start, for the log.
        words: the launcher's path and command line.
        folder: of the run.
    """
    beside = folder / "slurm"
    beside.mkdir(parents=True, exist_ok=True)
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    start = f"{os.environ['SLURM_JOB_ID']}-{restart}"
    # A rank that dies while it compiles leaves a lock, for which the next start would wait for ever.
    extensions, mistake = beside / f"extensions-{start}", beside / f"mistake-{start}.txt"

    environment = {k: v for k, v in os.environ.items() if k not in FROM_OTHER_LAUNCHERS}
    environment["MASTER_PORT"] = str(free_port())  # rank 0 runs on this node
    environment["PYTHONUNBUFFERED"] = "1"
    if "SLURM_CPUS_PER_TASK" in environment:  # srun does not take it over from sbatch since Slurm 22.05
        environment["SRUN_CPUS_PER_TASK"] = environment["SLURM_CPUS_PER_TASK"]
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(extensions.absolute()))
    environment[MISTAKE_FILE] = str(mistake.absolute())

    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
    for _ in range(min(int(restart), MAX_SKIPPED)):
        subprocess.run(["srun", "--quiet", "true"], env=environment, stdin=subprocess.DEVNULL)
    command = ["srun", "--export=ALL", "--kill-on-bad-exit=1", sys.executable, *words]
    code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode
    shutil.rmtree(extensions, ignore_errors=True)
    if mistake.exists():
        code = EXIT_USER_ERROR
        line = mistake.read_text(encoding="utf-8").strip()
        _log(f"{name}: {line}")  # srun may have ended rank 0 before it printed the error
        mistake.unlink()
    done = (folder / DONE).exists()
    return Ended(code if code >= 0 else 128 - code, done, _stopped_by(folder), bool(terminated))


def _max_failures() -> int:
    allowed = os.environ.get("MBSD_MAX_FAILURES", str(MAX_FAILURES))
    if not allowed.isdecimal():
        raise UserError(f"MBSD_MAX_FAILURES={allowed} in the environment: expected a whole number")
    return int(allowed)


def seed_words(launcher: Launcher, words: list[str]) -> list[str]:
    """Options that a task of an array adds to its command line: its seed, its folder, and the run it starts from."""
    seed = os.environ.get("SLURM_ARRAY_TASK_ID")
    if seed is None:
        return []
    run = parse(LAUNCHERS[launcher], words)[0].run
    more = ["--run.seed", seed, "--run.dir", f"{run.dir}/seed-{seed}"]
    more += ["--run.mirror", f"{run.mirror}/seed-{seed}"] if run.mirror else []
    return more + (["--run.init_from", run.init_from.replace(SEED, seed)] if run.init_from else [])


def _own_name(job: str) -> str:
    """What scontrol calls this job alone: the number of an array's task stands for the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array is not None else job


def _stopped_by(folder: Path) -> str:
    path = folder / PREEMPTED
    return str(json.loads(path.read_text(encoding="utf-8"))["signal"]) if path.exists() else ""


def _failures_file(folder: Path) -> Path:
    return folder / "slurm" / "failures.json"


def count_failure(folder: Path) -> int:
    """Count this failure; returns how many came in a row without a new checkpoint."""
    path, saved = _failures_file(folder), folder / LAST_SAVED
    newest = saved.read_text(encoding="utf-8") if saved.exists() else ""
    before: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"count": 0, "newest": newest}
    )
    count = int(before["count"]) + 1 if before["newest"] == newest else 1
    replace_text(path, json.dumps({"count": count, "newest": newest}) + "\n")
    return count


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@exits_cleanly
def main() -> None:
    """Run as a batch script's only command."""
    launcher = next((launcher for launcher in LAUNCHERS if sys.argv[1:2] == [launcher]), None)
    if launcher is None:
        raise UserError(f"expected one of {', '.join(LAUNCHERS)} as first word, found {sys.argv[1:2]}")
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError("this runs within a batch job: sbatch launchers/slurm/…, or launchers/submit.py")
    sys.exit(run_job(launcher, sys.argv[2:]))


if __name__ == "__main__":
    main()
