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
from mbsd.placement import free_port

ROOT = Path(__file__).resolve().parents[2]
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
        self._run(name, [_tool("mbsd"), *map(str, words)], {})

    def launcher(self, name: str, launcher: str, *words: object) -> None:
        """`deepspeed launchers/LAUNCHER.py WORDS…`, or what `launch` has instead."""
        program, *options = shlex.split(self.launch.command)
        start, environment = [_tool(program), *options], {}
        if self.launch.cpu_ranks is not None:
            environment = _cpu_environment(self.launch.cpu_ranks)
            if self.launch.command == "deepspeed":
                start += ["--num_accelerators", str(self.launch.cpu_ranks), "--no_local_rank"]
                start += ["--master_port", str(free_port())]
        self._run(name, [*start, in_clone(f"launchers/{launcher}.py"), *map(str, words)], environment)

    def _run(self, name: str, words: list[str], environment: Mapping[str, str]) -> None:
        """Run one command.

        Raises:
            SystemExit: with 2 where it ended with 2 (it said a mistake of the user's), else with 1.
        """
        settings = "".join(f"{name}={value} " for name, value in environment.items())
        self.console.print(f"[dim]$ {settings}{shlex.join(words)}", highlight=False)
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


def _tool(name: str) -> str:
    """The program of this environment, whether or not it is activated."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def _cpu_environment(ranks: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    return {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
