"""The commands of a study or of the demo: what a user would type, shown, with their output in a log each."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from mbsd.errors import EXIT_USER_ERROR, UserError
from mbsd.parallel.launch_env import free_port

ROOT = Path(__file__).resolve().parents[3]
LAST_LINES = 30


@dataclass(frozen=True)
class LaunchConfig:
    """What starts the launchers."""

    command: str = "deepspeed"
    """Comes before `launchers/X.py`: deepspeed takes all GPUs of this machine; or, say, `deepspeed --hostfile hosts`,
    `torchrun --standalone --nproc-per-node 8`, `srun --ntasks-per-node 8 python`, or `python` for one rank."""
    cpu_ranks: int | None = None
    """On CPUs: DeepSpeed with so many ranks here, or, beside another command, so many that share the cores."""

    def check(self) -> None:
        """Raise UserError where the settings cannot be meant."""
        if not self.command.split():
            raise UserError("launch.command is empty: say what starts a launcher, such as deepspeed")
        if self.cpu_ranks is not None and self.cpu_ranks < 1:
            raise UserError(f"launch.cpu_ranks={self.cpu_ranks}: expected 1 or more")


@dataclass(frozen=True)
class Commands:
    """Runs one command after the other; what fails is shown and ends this process.

    Attributes:
        logs: folder of their logs.
    """

    console: Console
    logs: Path
    launch: LaunchConfig

    def mbsd(self, name: str, *words: object) -> None:
        """`mbsd WORDS…`, its output in `logs/NAME.log`."""
        self._run(name, {}, [tool("mbsd"), *map(str, words)])

    def launcher(self, name: str, launcher: str, *words: object) -> None:
        """`deepspeed launchers/LAUNCHER.py WORDS…`, or what `launch` has instead."""
        self._run(name, *launch_command(self.launch, launcher, *words, port=free_port()))

    def _run(self, name: str, environment: Mapping[str, str], words: list[str]) -> None:
        """Run one command.

        Raises:
            SystemExit: with 2 where it ended with 2 (it said a mistake of the user's), else with 1.
        """
        self.console.print(f"$ {as_typed(environment, words)}", style="dim", markup=False, highlight=False)
        started = time.monotonic()
        log = self.logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        before = log.stat().st_size if log.exists() else 0
        with (
            log.open("ab") as output,
            subprocess.Popen(
                words, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
            ) as process,
            _stopped_with_us(process, words[0]),
        ):
            code = process.wait()
        if code:
            said = log.read_bytes()[before:].decode(errors="replace")
            self.console.print("\n".join(said.splitlines()[-LAST_LINES:]), markup=False, highlight=False)
            self.console.print(f"exit code {code}; the whole output is in {log}", style="red")
            raise SystemExit(EXIT_USER_ERROR if code == EXIT_USER_ERROR else 1)
        self.console.print(f"  {time.monotonic() - started:.0f} s", highlight=False)


def launch_command(
    launch: LaunchConfig, launcher: str, *words: object, port: int | None = None
) -> tuple[dict[str, str], list[str]]:
    """(environment, command) of `launchers/LAUNCHER.py WORDS…`.

    Args:
        port: where DeepSpeed's ranks on CPUs meet; default: where DeepSpeed has them meet.
    """
    program, *options = shlex.split(launch.command)
    start = [tool(program), *options]
    environment: dict[str, str] = {}
    if launch.cpu_ranks is not None:
        threads = max(1, len(os.sched_getaffinity(0)) // launch.cpu_ranks)
        environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
        if launch.command == LaunchConfig.command:
            start += ["--num_accelerators", str(launch.cpu_ranks), "--no_local_rank"]
            start += ["--master_port", str(port)] if port is not None else []
    return environment, [*start, in_clone(f"launchers/{launcher}.py"), *map(str, words)]


def as_typed(environment: Mapping[str, str], words: list[str]) -> str:
    """A command as one would type it."""
    return "".join(f"{name}={value} " for name, value in environment.items()) + shlex.join(words)


def in_clone(path: str) -> str:
    """A file of the clone, as one would type it here."""
    whole = ROOT / path
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole)


def refuse_without_launchers() -> None:
    """Raise UserError where this installation has no `launchers/` beside the package."""
    if not (ROOT / "launchers" / "pretrain.py").is_file():
        raise UserError(f"{ROOT}: no launchers/ there; run this in a clone (pip install --editable)")


@contextmanager
def _stopped_with_us(process: subprocess.Popen[bytes], program: str) -> Iterator[None]:
    """While it runs, a SIGTERM to us is passed on, and Ctrl-C (which it gets itself) is its own matter: it saves."""

    def pass_on(*_: object) -> None:
        # DeepSpeed's own program dies of it and leaves its child running, which is the one that ends the ranks.
        started = psutil.Process(process.pid)
        below = started.children() if "deepspeed" in Path(program).name else []
        for one in below or [started]:
            one.terminate()

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tool(name: str) -> str:
    """The program of this environment, whether or not it is activated; a path is taken as it is."""
    if "/" in name:
        return name
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name
