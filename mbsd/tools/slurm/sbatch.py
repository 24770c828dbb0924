"""What all submissions to Slurm have in common: a folder with what was submitted, dependencies, and calling sbatch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.catalog.layout import CATALOG_FILE
from mbsd.config.run_files import DONE
from mbsd.errors import UserError
from mbsd.tools.slurm.job import ROOT

PARTS = ".parts"  # of a catalogue's name: the folder of its parts, and of the jobs that build them


@dataclass(frozen=True)
class Job:
    """A job as it was submitted."""

    number: str
    seeds: tuple[int, ...]
    """Of an array; () where it is none."""


def code_state() -> tuple[str | None, str]:
    """Return (commit, differences from it) of the code that runs; (None, "") where it is no git checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None, ""
    untracked = _git("ls-files", "--others", "--exclude-standard") or ""
    return commit.strip(), (_git("diff", "HEAD", "--binary") or "") + "".join(
        f"# not in git: {name}\n" for name in untracked.splitlines()
    )


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def frozen_folder(folder: Path, make: bool) -> Path:
    """Return the next free one of the folders 001, 002, …; with `make` it is there afterwards."""
    number = 1
    while True:
        path = folder / "slurm" / f"{number:03}"
        if not make and not path.exists():
            return path
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
                return path
            except FileExistsError:
                pass
        number += 1


def dependency_on(depends_on: tuple[str, ...], seeds: tuple[int, ...]) -> str | None:
    """Return sbatch's --dependency; None where all that is waited for has finished."""
    parts = []
    for text in depends_on:
        job = _job_of(text)
        if job is not None:
            # A seed's run waits for the same seed's; anything else for the whole job.
            kind = "aftercorr" if seeds and job.seeds == seeds else "afterok"
            parts.append(f"{kind}:{job.number}")
    return ",".join(parts) or None


def _job_of(text: str) -> Job | None:
    if re.fullmatch(r"\d+(_\d+)?", text):
        return Job(text, ())
    folder = Path(text)
    if (folder / DONE).exists() or (folder / CATALOG_FILE).exists():
        return None
    parts = folder.with_name(folder.name + PARTS)
    for place, task in ((folder, ""), (parts, ""), (folder.parent, folder.name.removeprefix("seed-"))):
        submitted = sorted(place.glob("slurm/*/submit.json"))
        if submitted:
            facts: dict[str, Any] = json.loads(submitted[-1].read_text(encoding="utf-8"))
            return Job(f"{facts['job']}_{task}", ()) if task else Job(facts["job"], tuple(facts["seeds"]))
    raise UserError(
        f"--depends-on {text}: neither a job number nor the folder of a run that was submitted; name one of them"
    )


def call_sbatch(words: list[str]) -> str:
    """Call sbatch; return the job's number.

    Raises:
        UserError: it refuses the job, or is not found.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", env=_without_job(os.environ)
        )
    except FileNotFoundError as error:
        raise UserError("sbatch is not found: run this where Slurm's commands are; --dry-run needs none") from error
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())
        raise UserError(f"sbatch refused the job ({reason}); see what it would be with --dry-run")
    print(done.stderr, end="", file=sys.stderr)
    return done.stdout.strip().split(";")[0]


def _without_job(environ: os._Environ[str]) -> dict[str, str]:
    """Without the variables of a job that this runs in, which sbatch would take for options."""
    return {k: v for k, v in environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
