"""Who may publish checkpoints in a folder: the latest start of the run, and no older one that still lives.

After a network cut two starts of one run can be alive. Each start of the run claims the folder with a higher
generation (`owner.json`); a writer reads it right before it publishes and stops if the folder is no longer its own.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mbsd.errors import UserError
from mbsd.io.files import replace_text

OWNER = "owner.json"
# (job, how often it was restarted) from the scheduler's variables.
RESTARTS = (("SLURM_JOB_ID", "SLURM_RESTART_COUNT"), ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"))


@dataclass(frozen=True)
class Owner:
    """One start of a run."""

    generation: int
    """One more than that of the start before."""
    token: str
    """Drawn by rank 0: differs between any two starts."""
    job: str
    """The scheduler's name for the job, which its restarts share; "" without a scheduler."""
    restart: int
    """The scheduler's count of restarts of the job."""
    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        """As an error names it."""
        return f"start {self.generation} (process {self.pid} on {self.host}, since {self.since})"


class FencedError(UserError):
    """A later start of the run owns the folder."""


def claim(root: Path, token: str) -> Owner:
    """Make this start the owner of `root`. One process of each file system calls it.

    Raises:
        UserError: a later restart of the same job owns it already.
    """
    job, restart = _restart()
    before = _read(root)
    if before is not None and job and before.job == job and before.restart > restart:
        raise FencedError(
            f"{root}: this is restart {restart} of job {job}, and restart {before.restart} owns the folder, {before}; "
            "end this one"
        )
    generation = before.generation + 1 if before is not None else 1
    owner = Owner(generation, token, job, restart, platform.node(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))
    replace_text(root / OWNER, json.dumps(asdict(owner), indent=1))
    return owner


def check(root: Path, token: str) -> None:
    """Raise FencedError if the folder belongs to another start than the one with `token`."""
    owner = _read(root)
    if owner is None or owner.token != token:
        newer = f"{owner} has taken the run over" if owner is not None else f"its {OWNER} is gone"
        raise FencedError(f"{root}: {newer}; this start publishes no checkpoint any more and ends")


def _read(root: Path) -> Owner | None:
    try:
        return Owner(**json.loads((root / OWNER).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{root / OWNER}: not readable ({error}); if no run uses the folder, remove it") from error


def _restart() -> tuple[str, int]:
    for job, count in RESTARTS:
        if os.environ.get(job, "none") != "none":  # torchrun's name for a job without a name
            return os.environ[job], int(os.environ.get(count, "0"))  # Slurm counts no first start
    return "", 0
