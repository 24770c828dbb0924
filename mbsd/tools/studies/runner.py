"""The one runner of commands: in order, each with a log of its own; what is done is skipped, a failure ends it all."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from mbsd.errors import EXIT_USER_ERROR
from mbsd.parallel.launch_env import free_port
from mbsd.tools.studies.commands import Command, LaunchConfig, as_typed, launch_command, refuse_without_launchers, tool
from mbsd.tools.studies.outputs import Outputs

LAST_LINES = 30


@dataclass(frozen=True)
class Runner:
    """Runs commands.

    Attributes:
        logs: folder of their logs.
        launch: what starts the launchers, for commands that do not say so themselves.
    """

    console: Console
    logs: Path
    launch: LaunchConfig

    def run(self, commands: Sequence[Command]) -> None:
        """Run the commands that are not done yet, in order, and those whose result is damaged.

        Raises:
            SystemExit: one failed; with 2 where it ended with 2 (a mistake of the user's), else with 1. Or it was
                stopped and saved its state; then with 1.
        """
        outputs = Outputs(self.logs.parent / "settings" / "outputs.json")
        for index, command in enumerate(commands, 1):
            label = f"[{index}/{len(commands)}] {command.name}"
            if command.done.exists():
                damage = outputs.damage(command)
                if not damage:
                    self._print(f"{label}: already there")
                    continue
                self._print(f"{label}: there, but not as it was written ({damage}): it is made again")
                outputs.remove(command)
            else:
                self._print(label)
            self._run_one(command)
            if not command.done.exists():
                self._print(f"{command.name} was stopped; the same command resumes it")
                raise SystemExit(1)
            outputs.record(command)

    def _run_one(self, command: Command) -> None:
        environment, words = self._typed(command)
        self._print(f"$ {as_typed(environment, words)}", style="dim")
        started = time.monotonic()
        log = self.logs / f"{command.name}.log"
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
            lines = log.read_bytes()[before:].decode(errors="replace").splitlines()
            self._print("\n".join(lines[-LAST_LINES:]))
            self._print(f"exit code {code}; the whole output is in {log}", style="red")
            raise SystemExit(EXIT_USER_ERROR if code == EXIT_USER_ERROR else 1)
        self._print(f"  {time.monotonic() - started:.0f} s")

    def _typed(self, command: Command) -> tuple[dict[str, str], list[str]]:
        """(environment, words) of the process."""
        if command.launcher is None:
            return {}, [tool("mbsd"), *map(str, command.words)]
        launch = command.launch or self.launch
        return launch_command(launch, command.launcher, *command.words, port=free_port())

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False)


def start_runner(out: Path, launch: LaunchConfig, width: int | None = None) -> Runner:
    """A runner with its logs in `out/logs`.

    Args:
        width: of the screen, in letters; default: the terminal's.

    Raises:
        UserError: there are no launchers in this installation.
    """
    refuse_without_launchers()
    out.mkdir(parents=True, exist_ok=True)
    return Runner(Console(soft_wrap=True, width=width), out / "logs", launch)


@contextmanager
def _stopped_with_us(process: subprocess.Popen[bytes], program: str) -> Iterator[None]:
    """While the process runs, pass SIGTERM on to it, and ignore SIGINT: Ctrl-C reaches it directly, and it saves."""

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
