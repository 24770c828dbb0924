"""Submit a catalogue that is built in parts: an array of jobs, and one that merges the parts when all have ended well.

`OUT.parts/3-of-8` is the folder of part 3, `OUT.parts/slurm/001/` (002 for the next submission, and so on) holds
part.sbatch and merge.sbatch, which the jobs run, changes.diff, the difference between the code and its commit, and
submit.json: commands, commit, job numbers. Logs are `OUT.parts/slurm/part-3.log` and `merge.log`.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mbsd.catalog.build.finished_part import PART_FILE
from mbsd.catalog.build.unfinished import require_free
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.tools.slurm.job import ROOT
from mbsd.tools.slurm.sbatch import PARTS, call_sbatch, code_state, dependency_on, frozen_folder

SCRIPTS = {"part.sbatch": "catalog.sbatch", "merge.sbatch": "merge.sbatch"}  # frozen as -> of launchers/slurm


@dataclass(frozen=True)
class CatalogSubmission:
    """What is submitted, and what sbatch is asked for; None: what the scripts in `launchers/slurm` say."""

    words: tuple[str, ...]
    """The command line of `mbsd catalog build`, as for one machine."""
    out: Path
    """Where the catalogue will be: --out among these words."""
    max_rejects: float
    """For the merge: --max-rejects among these words, or what it is without."""
    parts: int
    """Number of parts, a task of the array for each."""
    cpus: int | None = None
    """Cores of each part."""
    time_limit: str | None = None
    """Of each job, as sbatch reads it, such as 24:00:00."""
    partition: str | None = None
    account: str | None = None
    depends_on: tuple[str, ...] = ()
    """Run folders or job numbers that have to finish first."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, for all jobs."""
    dry_run: bool = False
    """Print what would be submitted; write nothing."""

    @property
    def folder(self) -> Path:
        """Of the parts."""
        out = self.out.absolute()
        return out.with_name(out.name + PARTS)

    def part(self, number: int) -> Path:
        """Return the folder of a part."""
        return self.folder / f"{number}-of-{self.parts}"


def submit_catalog(submission: CatalogSubmission) -> None:
    """Submit the parts that are not finished, and the merge, and print the jobs' numbers.

    Raises:
        UserError: the catalogue is already there, a dependency is unknown, or sbatch refuses a job.
    """
    if submission.parts < 1:
        raise UserError(f"--parts {submission.parts}: expected 1 or more")
    require_free(submission.out)
    first = dependency_on(submission.depends_on, ())  # before anything is written: it may refuse
    numbers = range(1, submission.parts + 1)
    missing = [number for number in numbers if not (submission.part(number) / PART_FILE).exists()]
    frozen = frozen_folder(submission.folder, make=not submission.dry_run)
    build = [
        *_sbatch_options(submission, "part-%a.log", dependency=first, array=_array(missing), cpus=submission.cpus),
        str(frozen / "part.sbatch"), str(submission.folder), str(submission.parts), *submission.words,
    ]  # fmt: skip

    def merge(after: str | None) -> list[str]:
        return [
            *_sbatch_options(submission, "merge.log", dependency=after), str(frozen / "merge.sbatch"),
            *(str(submission.part(number)) for number in numbers), "--out", str(submission.out),
            "--max-rejects", f"{submission.max_rejects:g}",
        ]  # fmt: skip

    scripts = {name: (ROOT / "launchers" / "slurm" / of).read_text(encoding="utf-8") for name, of in SCRIPTS.items()}
    if submission.dry_run:
        commands = [build, merge("afterok:PARTS")] if missing else [merge(first)]
        print(*map(shlex.join, commands), sep="\n")
        print(*(f"# {frozen}/{name}\n{script}" for name, script in scripts.items()), sep="\n")
        return
    commit, changes = code_state()
    for name, text in {**scripts, "changes.diff": changes}.items():
        replace_text(frozen / name, text)
    parts_job = call_sbatch(build) if missing else None
    command = merge(f"afterok:{parts_job}" if missing else first)
    job = call_sbatch(command)
    facts = {
        "job": job, "seeds": [], "parts_job": parts_job, "parts": missing, "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": commit, "command": build, "merge_command": command,
    }  # fmt: skip
    replace_text(frozen / "submit.json", json.dumps(facts, indent=1) + "\n")
    logs = f"logs in {submission.folder / 'slurm'}"
    if missing:
        print(f"job {parts_job}: {len(missing)} of {submission.parts} parts in {submission.folder}, {logs}")
    print(f"job {job}: merge of the parts to {submission.out}, {logs}")


def _sbatch_options(
    submission: CatalogSubmission,
    log: str,
    *,
    dependency: str | None,
    array: str | None = None,
    cpus: int | None = None,
) -> list[str]:
    """`sbatch --array=…` up to the script."""
    asked = {
        "array": array, "cpus-per-task": cpus, "time": submission.time_limit, "partition": submission.partition,
        "account": submission.account, "dependency": dependency,
    }  # fmt: skip
    words = ["sbatch", "--parsable", *(f"--{name}={value}" for name, value in asked.items() if value is not None)]
    if dependency is not None:
        words.append("--kill-on-invalid-dep=yes")
    words += [
        f"--job-name={submission.out.name}", f"--output={submission.folder / 'slurm' / log}", "--open-mode=append",
        f"--chdir={Path.cwd()}", f"--export=ALL,MBSD_PYTHON={sys.executable}",
    ]  # fmt: skip
    return [*words, *submission.sbatch]


def _array(numbers: list[int]) -> str:
    """Numbers as --array names them: 1-8, or 2,5."""
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))
