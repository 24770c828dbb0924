"""Submit a training run: its settings are frozen in its folder, and sbatch is called (`launchers/submit.py`).

`RUN/slurm/001/` (002 for the next job, and so on) holds the resolved config.yaml and ds_config.json, which the job
reads; job.sbatch, which it runs; changes.diff, the difference between the code and its commit; and submit.json:
command, commit, job number. The log of all jobs of the run is `RUN/slurm/log.txt`.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.parse import expand, to_yaml
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.tools.slurm.job import ROOT, SEED, Launcher
from mbsd.tools.slurm.sbatch import call_sbatch, code_state, dependency_on, frozen_folder


@dataclass(frozen=True)
class Submission:
    """What is submitted, and what sbatch is asked for; None: what `launchers/slurm/LAUNCHER.sbatch` says."""

    launcher: Launcher
    config: PretrainConfig | FinetuneConfig
    deepspeed: DeepSpeedConfig
    nodes: int | None = None
    gpus: int | None = None
    """Of each node, a rank for each. 0: see `ranks`."""
    ranks: int | None = None
    """Of each node, where they have no GPUs."""
    cpus: int | None = None
    """Cores of each rank."""
    time_limit: str | None = None
    """As sbatch reads it, such as 24:00:00."""
    partition: str | None = None
    account: str | None = None
    seeds: str | None = None
    """Such as 0-3,7: an array of jobs, each a run in RUN/seed-N."""
    depends_on: tuple[str, ...] = ()
    """Run folders or job numbers that have to finish first."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch."""
    dry_run: bool = False
    """Print what would be submitted; write nothing."""

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """Of the array; () where it is none."""
        return expand(self.seeds, "--seeds") if self.seeds is not None else ()

    def check(self) -> None:
        """Raise UserError where the settings contradict each other."""
        if self.gpus and self.ranks is not None:
            raise UserError(
                f"--gpus {self.gpus} means as many ranks on each node, and --ranks {self.ranks} is given too: remove it"
            )
        init_from = self.config.run.init_from or ""
        if SEED in init_from and not self.chosen_seeds:
            raise UserError(f"run.init_from={init_from}: {SEED} stands for each of --seeds, which is not given")


def submit(submission: Submission) -> None:
    """Freeze the settings in the run folder, call sbatch and print the job's number.

    Raises:
        UserError: settings contradict each other, a dependency is unknown, or sbatch refuses the job.
    """
    submission.check()
    folder, seeds = Path(submission.config.run.dir).absolute(), submission.chosen_seeds
    script = (ROOT / "launchers" / "slurm" / f"{submission.launcher}.sbatch").read_text(encoding="utf-8")
    options = _sbatch_options(submission, folder)  # before anything is written: it may refuse
    frozen = frozen_folder(folder, make=not submission.dry_run)
    words = [
        *options, str(frozen / "job.sbatch"), "--config", str(frozen / "config.yaml"),
        "--deepspeed_config", str(frozen / "ds_config.json"),
    ]  # fmt: skip
    config = to_yaml(submission.config)
    if submission.dry_run:
        print(shlex.join(words), f"# {frozen}/config.yaml", config, f"# {frozen}/job.sbatch", script, sep="\n")
        return
    for place in [folder / f"seed-{seed}" for seed in seeds] or [folder]:
        (place / "slurm").mkdir(parents=True, exist_ok=True)
    commit, changes = code_state()
    replace_text(frozen / "config.yaml", config)
    replace_text(frozen / "ds_config.json", json.dumps(submission.deepspeed.tree, indent=1) + "\n")
    replace_text(frozen / "job.sbatch", script)
    replace_text(frozen / "changes.diff", changes)
    number = call_sbatch(words)
    facts = {
        "job": number, "seeds": seeds, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "commit": commit, "command": words,
    }  # fmt: skip
    replace_text(frozen / "submit.json", json.dumps(facts, indent=1) + "\n")
    print(f"job {number}: {folder}{'/seed-N' if seeds else ''}, log in slurm/log.txt there")


def _sbatch_options(submission: Submission, folder: Path) -> list[str]:
    """`sbatch --nodes=…` up to the script."""
    dependency = dependency_on(submission.depends_on, submission.chosen_seeds)
    asked = {
        "nodes": submission.nodes, "gpus-per-node": submission.gpus,
        "ntasks-per-node": submission.gpus or submission.ranks, "cpus-per-task": submission.cpus,
        "time": submission.time_limit, "partition": submission.partition, "account": submission.account,
        "array": submission.seeds, "dependency": dependency,
    }  # fmt: skip
    words = ["sbatch", "--parsable", *(f"--{name}={value}" for name, value in asked.items() if value is not None)]
    if dependency is not None:
        words.append("--kill-on-invalid-dep=yes")
    log = f"{folder}{'/seed-%a' if submission.chosen_seeds else ''}/slurm/log.txt"
    words += [
        f"--job-name={folder.name}", f"--output={log}", "--open-mode=append", f"--chdir={Path.cwd()}",
        f"--export=ALL,MBSD_PYTHON={sys.executable}",
    ]  # fmt: skip
    return [*words, *submission.sbatch]
