"""What a batch job runs on its first node: `python -m mbsd.tools.slurm.job pretrain --config … --deepspeed_config …`.

It starts the ranks by srun, and what becomes of the job follows from how they ended:

| the ranks | the job |
|---|---|
| finished (DONE) | ends with 0 |
| saved and stopped for SIGUSR1: the time limit is near, or `scancel --signal=USR1 JOB` | is queued again |
| failed or were killed | is queued again, unless it was so many failures in a row without a new checkpoint |
| found a mistake that only the user can mend: exit code 2 | ends with 2 |
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
from mbsd.parallel.launch_env import free_port

ROOT = Path(__file__).resolve().parents[3]
LAUNCHERS: dict[str, type[PretrainConfig] | type[FinetuneConfig]] = {
    "pretrain": PretrainConfig, "finetune": FinetuneConfig,
}  # fmt: skip
MAX_FAILURES = 3
# That a step has to end, Slurm repeats for minutes to a node that it lost, and a restart counts steps from 0 again: the
# message of the start before would end the ranks of this one. Empty steps give them another number.
MAX_SKIPPED = 20
FROM_OTHER_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SEED = "{seed}"  # in run.init_from: the number of an array's task

Next = Literal["done", "again", "end"]


@dataclass(frozen=True)
class Ended:
    """How the ranks of one start ended."""

    code: int
    """2 if any rank found a mistake of the user's; else that of srun, 128 + N where signal N killed a rank."""
    done: bool
    stopped_by: str
    """The signal for which they saved and stopped, or ""."""
    job_ends: bool
    """Somebody ends the whole job."""


def what_next(ended: Ended, failures: int, max_failures: int) -> Next:
    """What becomes of the job; `failures` in a row, this one included, without a new checkpoint."""
    if ended.done:
        return "done"
    if ended.job_ends or ended.code == EXIT_USER_ERROR:
        return "end"
    if ended.code == 0:
        return "again" if ended.stopped_by == signal.SIGUSR1.name else "end"
    return "again" if failures < max_failures else "end"


def run_job(launcher: str, words: list[str]) -> int:
    """Run the ranks of this start of the job once; returns the exit code of the batch script."""
    words = words + seed_words(launcher, words)
    folder = Path(parse(LAUNCHERS[launcher], words)[0].run.dir)
    allowed = os.environ.get("MBSD_MAX_FAILURES", str(MAX_FAILURES))
    if not allowed.isdecimal():
        raise UserError(f"MBSD_MAX_FAILURES={allowed} in the environment: expected a whole number")
    limit = int(allowed)
    beside = folder / "slurm"
    beside.mkdir(parents=True, exist_ok=True)
    job, restart = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
    name = f"job {job}, restart {restart}"

    environment = {k: v for k, v in os.environ.items() if k not in FROM_OTHER_LAUNCHERS}
    environment["MASTER_PORT"] = str(free_port())  # rank 0 runs on this node
    environment["PYTHONUNBUFFERED"] = "1"
    if "SLURM_CPUS_PER_TASK" in environment:  # srun does not take it over from sbatch since Slurm 22.05
        environment["SRUN_CPUS_PER_TASK"] = environment["SLURM_CPUS_PER_TASK"]
    # A rank that dies while it compiles leaves a lock, for which the next start would wait for ever.
    extensions = beside / f"extensions-{job}-{restart}"
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(extensions.absolute()))

    mistake = beside / f"mistake-{job}-{restart}.txt"
    environment[MISTAKE_FILE] = str(mistake.absolute())

    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    script = ROOT / "launchers" / f"{launcher}.py"
    command = ["srun", "--export=ALL", "--kill-on-bad-exit=1", sys.executable, str(script), *words]
    _say(f"{name} on {os.environ.get('SLURM_JOB_NODELIST', '')}: {folder}")
    for _ in range(min(int(restart), MAX_SKIPPED)):
        subprocess.run(["srun", "--quiet", "true"], env=environment, stdin=subprocess.DEVNULL)
    code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode
    shutil.rmtree(extensions, ignore_errors=True)
    if mistake.exists():
        code = EXIT_USER_ERROR
        _say(f"{name}: {mistake.read_text().strip()}")  # srun may have ended the rank that was to say it
        mistake.unlink()

    ended = Ended(code if code >= 0 else 128 - code, (folder / DONE).exists(), _stopped_by(folder), bool(told))
    failures = 0
    if ended.code == 0 or ended.done:
        _failures_file(folder).unlink(missing_ok=True)
    elif ended.code != EXIT_USER_ERROR and not ended.job_ends:
        failures = count_failure(folder)
        _say(f"{name}: the ranks failed ({ended.code}), {failures} of {limit} times in a row without a new checkpoint")
    next_ = what_next(ended, failures, limit)
    if next_ == "again":
        asked = subprocess.run(["scontrol", "requeue", _own_name(job)], capture_output=True, text=True)
        if asked.returncode == 0:
            _say(f"{name}: queued again")
            return ended.code
        _say(f"{name}: not queued again: {asked.stderr.strip()}")
    if next_ == "done":
        if ended.code != 0:
            _say(f"{name}: {folder} is finished, though its ranks ended with {ended.code}")
        return 0
    if ended.code == 0:
        _say(f"{name}: {folder} is saved and not finished; submit it again to go on")
        return 1  # what depends on the run must not start
    return ended.code


def seed_words(launcher: str, words: list[str]) -> list[str]:
    """What a task of an array adds to its command line: its seed, its folder, and what it starts from."""
    seed = os.environ.get("SLURM_ARRAY_TASK_ID")
    if seed is None:
        return []
    run = parse(LAUNCHERS[launcher], words)[0].run
    more = ["--run.seed", seed, "--run.dir", f"{run.dir}/seed-{seed}"]
    return more + (["--run.init_from", run.init_from.replace(SEED, seed)] if run.init_from else [])


def _own_name(job: str) -> str:
    """As scontrol knows this job alone: one task of an array has the number of the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array is not None else job


def _stopped_by(folder: Path) -> str:
    path = folder / PREEMPTED
    return str(json.loads(path.read_text())["signal"]) if path.exists() else ""


def _failures_file(folder: Path) -> Path:
    return folder / "slurm" / "failures.json"


def count_failure(folder: Path) -> int:
    """How many failures in a row came without a new checkpoint, this one included."""
    path, saved = _failures_file(folder), folder / LAST_SAVED
    newest = saved.read_text() if saved.exists() else ""
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"count": 0, "newest": newest}
    count = int(before["count"]) + 1 if before["newest"] == newest else 1
    path.write_text(json.dumps({"count": count, "newest": newest}) + "\n")
    return count


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@exits_cleanly
def main() -> None:
    """Run as a batch script's only command."""
    if len(sys.argv) < 2 or sys.argv[1] not in LAUNCHERS:
        raise UserError(f"expected one of {', '.join(LAUNCHERS)} as first word, found {sys.argv[1:2]}")
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError("this runs within a batch job: sbatch launchers/slurm/…, or launchers/submit.py")
    sys.exit(run_job(sys.argv[1], sys.argv[2:]))


if __name__ == "__main__":
    main()
