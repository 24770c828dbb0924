"""A command of a pipeline (study, trial, demo): what a user would type, and the path that shows that it is done."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import joblib

from mbsd.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class LaunchConfig:
    """What starts the launchers."""

    command: str = "deepspeed"
    """Comes before `launchers/X.py`: deepspeed takes all GPUs of this machine; or `deepspeed --hostfile hosts`,
    `torchrun --standalone --nproc-per-node 8`, `srun --ntasks-per-node 8 python`, or `python` for one rank."""
    cpu_ranks: int | None = None
    """Ranks on CPUs: how many DeepSpeed starts here, or, with another command, how many share this machine's cores."""

    def check(self) -> None:
        """Raise UserError for a command that is empty or a number of ranks below 1."""
        if not self.command.split():
            raise UserError("launch.command is empty: say what starts a launcher, such as deepspeed")
        if self.cpu_ranks is not None and self.cpu_ranks < 1:
            raise UserError(f"launch.cpu_ranks={self.cpu_ranks}: expected 1 or more")


@dataclass(frozen=True)
class Command:
    """One command of a pipeline: `mbsd WORDS…`, or `deepspeed launchers/LAUNCHER.py WORDS…`.

    Attributes:
        name: unique in the pipeline; the output goes to `logs/NAME.log`.
        done: exists when, and only when, the command has ended well.
        launcher: pretrain, finetune or evaluate; None: the program is `mbsd`.
        launch: starts the launcher, in place of what starts the pipeline's others.
        after: names of the commands whose results it reads; None: all that stand before it in the pipeline.
    """

    name: str
    done: Path
    words: tuple[object, ...]
    launcher: str | None = None
    launch: LaunchConfig | None = None
    after: tuple[str, ...] | None = None


def launch_command(
    launch: LaunchConfig, launcher: str, *words: object, port: int | None = None, beside: int = 1
) -> tuple[dict[str, str], list[str]]:
    """(environment, command) of `launchers/LAUNCHER.py WORDS…`.

    Args:
        port: where DeepSpeed's ranks on CPUs meet; default: DeepSpeed's own choice.
        beside: commands that run at the same time and share the cores, this one included.
    """
    program, *options = shlex.split(launch.command)
    start = [tool(program), *options]
    environment: dict[str, str] = {}
    if launch.cpu_ranks is not None:
        threads = max(1, num_cores() // (launch.cpu_ranks * beside))
        environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
        if launch.command == LaunchConfig.command:
            start += ["--num_accelerators", str(launch.cpu_ranks), "--no_local_rank"]
            start += ["--master_port", str(port)] if port is not None else []
    return environment, [*start, in_clone(f"launchers/{launcher}.py"), *map(str, words)]


def num_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of a container (joblib asks for both)."""
    return int(joblib.cpu_count())


def as_typed(environment: Mapping[str, str], words: list[str]) -> str:
    """A command as one would type it."""
    return "".join(f"{name}={value} " for name, value in environment.items()) + shlex.join(words)


def in_clone(path: str) -> str:
    """A file of the clone, as one would type it in the current folder."""
    whole = ROOT / path
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole)


def refuse_without_launchers() -> None:
    """Raise UserError where this installation has no `launchers/` beside the package."""
    if not (ROOT / "launchers" / "pretrain.py").is_file():
        raise UserError(f"{ROOT}: no launchers/ there; run this in a clone (pip install --editable)")


def tool(name: str) -> str:
    """Path of a program of this environment, activated or not; paths and programs of other places stay as they are."""
    if "/" in name:
        return name
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name
