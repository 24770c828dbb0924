"""From a command line to a job: what the run will be is written down in its folder, and sbatch is called.

`RUN/slurm/001/` (002 for the next job, and so on) holds the resolved config.yaml and ds_config.json, which the job
reads; job.sbatch, which it runs; changes.diff, what the code differs from its commit in; and submit.json: command,
commit, job number. The log of all jobs of the run is `RUN/slurm/log.txt`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mbsd.cli.usage import run_app
from mbsd.config.parse import parse, to_yaml
from mbsd.config.run import BaseConfig
from mbsd.config.run_files import DONE
from mbsd.errors import UserError, exits_cleanly
from mbsd.tools.slurm.job import LAUNCHERS, ROOT, SEED

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)


@dataclass(frozen=True)
class Job:
    """A job as it was submitted."""

    number: str
    seeds: tuple[int, ...]
    """Of an array; () where it is none."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Everything else is read as by launchers/pretrain.py and finetune.py: --config, --deepspeed_config, "
    "--section.key VALUE.",
)
def submit(
    context: typer.Context,
    launcher: Annotated[Literal["pretrain", "finetune"], typer.Argument(help="Which launcher.")],
    nodes: Annotated[int | None, typer.Option(help="Nodes.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each node, a rank for each. 0: see --ranks.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Ranks of each node, where they have no GPUs.")] = None,
    cpus: Annotated[int | None, typer.Option(help="Cores of each rank.")] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time", help="Such as 24:00:00; the run goes on in the next.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-3,7: an array, a run in RUN/seed-N for each.")] = None,
    depends_on: Annotated[
        list[str] | None, typer.Option(help="Run folder or job number that has to finish first; may be repeated.")
    ] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="An option of sbatch, such as --sbatch=--qos=high.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted; write nothing.")] = False,
) -> None:
    """Submit a training run to Slurm. Without an option, what launchers/slurm/LAUNCHER.sbatch says."""
    if gpus and ranks is not None:
        raise UserError(f"--gpus {gpus} means as many ranks on each node, and --ranks {ranks} is given too: remove it")
    config, ds_config = parse(LAUNCHERS[launcher], context.args)
    chosen = expand(seeds) if seeds is not None else ()
    _refuse_stray_seed(config, chosen)
    folder = Path(config.run.dir).absolute()
    options = {
        "nodes": nodes, "gpus-per-node": gpus, "ntasks-per-node": gpus or ranks, "cpus-per-task": cpus,
        "time": time_limit, "partition": partition, "account": account, "array": seeds,
        "dependency": _dependency(depends_on or [], chosen),
    }  # fmt: skip
    words = ["sbatch", "--parsable", *(f"--{name}={value}" for name, value in options.items() if value is not None)]
    if options["dependency"] is not None:
        words.append("--kill-on-invalid-dep=yes")
    where = f"{folder}/seed-%a" if chosen else str(folder)
    words += [
        f"--job-name={folder.name}", f"--output={where}/slurm/log.txt", "--open-mode=append", f"--chdir={Path.cwd()}",
        f"--export=ALL,MBSD_PYTHON={sys.executable}", *(sbatch or []),
    ]  # fmt: skip
    frozen = _frozen(folder, make=not dry_run)
    words += [
        str(frozen / "job.sbatch"), "--config", str(frozen / "config.yaml"), "--deepspeed_config",
        str(frozen / "ds_config.json"),
    ]  # fmt: skip
    script = (ROOT / "launchers" / "slurm" / f"{launcher}.sbatch").read_text()
    commit, changes = code_state()
    if dry_run:
        print(shlex.join(words), f"# {frozen}/config.yaml", to_yaml(config), f"# {frozen}/job.sbatch", script, sep="\n")
        return
    for place in [folder / f"seed-{seed}" for seed in chosen] or [folder]:
        (place / "slurm").mkdir(parents=True, exist_ok=True)
    (frozen / "config.yaml").write_text(to_yaml(config))
    (frozen / "ds_config.json").write_text(json.dumps(ds_config.tree, indent=1) + "\n")
    (frozen / "job.sbatch").write_text(script)
    (frozen / "changes.diff").write_text(changes)
    number = _sbatch(words)
    facts = {
        "job": number, "seeds": chosen, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "commit": commit, "command": words,
    }  # fmt: skip
    (frozen / "submit.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"job {number}: {where.replace('%a', 'N')}, log in slurm/log.txt there")


def expand(text: str, option: str = "--seeds") -> tuple[int, ...]:
    """`0-3,7` -> (0, 1, 2, 3, 7).

    Raises:
        UserError: it is written otherwise.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"{option} {text}: expected numbers and ranges such as 0-3,7")
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(sorted(numbers))


def code_state() -> tuple[str | None, str]:
    """(commit, what differs from it) of the code that runs; (None, "") where it is no git checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None, ""
    untracked = _git("ls-files", "--others", "--exclude-standard") or ""
    return commit.strip(), (_git("diff", "HEAD", "--binary") or "") + "".join(
        f"# not in git: {name}\n" for name in untracked.splitlines()
    )


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _frozen(folder: Path, make: bool) -> Path:
    """The next free of 001, 002, …"""
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


def _dependency(depends_on: list[str], seeds: tuple[int, ...]) -> str | None:
    """sbatch's --dependency; None where all that is waited for has finished."""
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
    if (folder / DONE).exists():
        return None
    for place, task in ((folder, ""), (folder.parent, folder.name.removeprefix("seed-"))):
        submitted = sorted(place.glob("slurm/*/submit.json"))
        if submitted:
            facts: dict[str, Any] = json.loads(submitted[-1].read_text())
            return Job(f"{facts['job']}_{task}", ()) if task else Job(facts["job"], tuple(facts["seeds"]))
    raise UserError(
        f"--depends-on {text}: neither a job number nor the folder of a run that was submitted; name one of them"
    )


def _refuse_stray_seed(config: BaseConfig, seeds: tuple[int, ...]) -> None:
    if SEED in (config.run.init_from or "") and not seeds:
        raise UserError(f"run.init_from={config.run.init_from}: {SEED} stands for each of --seeds, which is not given")


def _sbatch(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=_without_job(os.environ))
    except FileNotFoundError as error:
        raise UserError("sbatch is not found: run this where Slurm's commands are; --dry-run needs none") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split())
        raise UserError(f"sbatch refused the job ({said}); see what it would be with --dry-run")
    print(done.stderr, end="", file=sys.stderr)
    return done.stdout.strip().split(";")[0]


def _without_job(environ: os._Environ[str]) -> dict[str, str]:
    """Without the variables of a job that this runs in, which sbatch would take for options."""
    return {k: v for k, v in environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}


@exits_cleanly
def main() -> None:
    """Run the command line."""
    run_app(app, "launchers/submit.py --help")
