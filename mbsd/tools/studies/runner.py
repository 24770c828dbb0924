"""The one runner of commands, each with a log of its own; what is done is skipped, a failure ends it all.

Commands run in order, as many at a time as there are jobs; one that names what it comes after waits for these alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

import psutil
from rich.console import Console

from mbsd.errors import EXIT_USER_ERROR
from mbsd.parallel.launch_env import free_port
from mbsd.tools.studies.commands import Command, LaunchConfig, as_typed, launch_command, refuse_without_launchers, tool
from mbsd.tools.studies.outputs import Outputs
from mbsd.tools.studies.spent import Spent

LAST_LINES = 30


def predecessors(commands: Sequence[Command]) -> dict[str, tuple[str, ...]]:
    """What each command waits for, by name, in order."""
    names = [command.name for command in commands]
    return {
        command.name: tuple(names[:index]) if command.after is None else command.after
        for index, command in enumerate(commands)
    }


@dataclass
class Started:
    """A command at work.

    Attributes:
        log: its file, and the bytes that it had before.
        since: when it was started, as `time.monotonic` has it.
        signalled: it was told to end.
    """

    command: Command
    process: subprocess.Popen[bytes]
    program: str
    log: tuple[Path, int]
    since: float = field(default_factory=time.monotonic)
    signalled: bool = False

    def stop(self) -> None:
        """Pass SIGTERM on, once: a second one would end a run that is saving its state."""
        if self.signalled or self.process.returncode is not None:
            return
        self.signalled = True
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            # DeepSpeed's own program dies of it and leaves its child running, which is the one that ends the ranks.
            started = psutil.Process(self.process.pid)
            below = started.children() if "deepspeed" in Path(self.program).name else []
            for one in below or [started]:
                one.terminate()

    def wait(self) -> tuple[int, float]:
        """Wait for its end: its exit code, and the CPU seconds of its processes."""
        _, status, used = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return self.process.returncode, used.ru_utime + used.ru_stime


@dataclass
class Live:
    """The commands at work.

    Attributes:
        of: what waits for each.
        told: this process was told to end, so nothing more is started.
    """

    of: dict[Future[tuple[int, float]], Started] = field(default_factory=dict)
    told: bool = False

    def stop(self) -> None:
        """Tell all of them to end."""
        for started in list(self.of.values()):
            started.stop()

    def were_told(self) -> None:
        """Ctrl-C has told all of them to end."""
        for started in list(self.of.values()):
            started.signalled = True


@dataclass(frozen=True)
class Runner:
    """Runs commands.

    Attributes:
        logs: folder of their logs.
        launch: what starts the launchers, for commands that do not say so themselves.
        spent: where the commands' seconds are added up.
        jobs: commands that run at the same time at most; they share the cores.
    """

    console: Console
    logs: Path
    launch: LaunchConfig
    spent: Spent
    jobs: int = 1

    def run(self, commands: Sequence[Command]) -> None:
        """Run the commands that are not done yet, and those whose result is damaged.

        Raises:
            SystemExit: one failed; with 2 where it ended with 2 (a mistake of the user's), else with 1. Or it was
                stopped and saved its state; then with 1. The others that run are told to save theirs and end first,
                and what they took is counted too.
        """
        outputs, order = (
            Outputs(self.logs.parent / "settings" / "outputs.json"),
            TopologicalSorter(predecessors(commands)),
        )
        order.prepare()
        number = {command.name: index for index, command in enumerate(commands)}
        ready: list[int] = []
        live = Live()
        with _stopped_with_us(live), ThreadPoolExecutor(self.jobs) as pool:
            try:
                while order.is_active():
                    ready = sorted([*ready, *(number[name] for name in order.get_ready())])
                    while ready and len(live.of) < self.jobs:
                        self._refuse_stopped(live)
                        command = commands[index := ready.pop(0)]
                        if self._is_done(command, f"[{index + 1}/{len(commands)}] {command.name}", outputs):
                            order.done(command.name)
                            ready = sorted([*ready, *(number[name] for name in order.get_ready())])
                        else:
                            started = self._start(command)
                            live.of[pool.submit(started.wait)] = started
                            if live.told:  # while it was being started
                                started.stop()
                    for ended in wait(live.of, return_when=FIRST_COMPLETED).done if live.of else ():
                        started = live.of.pop(ended)
                        self._end(started, *ended.result(), outputs)
                        order.done(started.command.name)
                self._refuse_stopped(live)
            finally:
                live.stop()
                for ended, started in live.of.items():
                    code, cpu = ended.result()
                    self._count(started, cpu)
                    if not code and started.command.done.exists():
                        outputs.record(started.command)

    def _is_done(self, command: Command, label: str, outputs: Outputs) -> bool:
        if not command.done.exists():
            self._print(label)
            return False
        damage = outputs.damage(command)
        if not damage:
            self._print(f"{label}: already there")
            return True
        self._print(f"{label}: there, but not as it was written ({damage}): it is made again")
        outputs.remove(command)
        return False

    def _refuse_stopped(self, live: Live) -> None:
        if live.told:
            self._print("stopped; the same command resumes it")
            raise SystemExit(1)

    def _start(self, command: Command) -> Started:
        environment, words = self._typed(command)
        self._print(f"$ {as_typed(environment, words)}", style="dim")
        log = self.logs / f"{command.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            process = subprocess.Popen(words, env={**os.environ, **environment}, stdout=output, stderr=output)
        return Started(command, process, words[0], (log, before))

    def _end(self, started: Started, code: int, cpu: float, outputs: Outputs) -> None:
        command, (log, before) = started.command, started.log
        seconds = self._count(started, cpu)
        named = f"{command.name}: " if self.jobs > 1 else ""
        if code:
            lines = log.read_bytes()[before:].decode(errors="replace").splitlines()
            self._print("\n".join(lines[-LAST_LINES:]))
            self._print(f"{named}exit code {code}; the whole output is in {log}", style="red")
            raise SystemExit(EXIT_USER_ERROR if code == EXIT_USER_ERROR else 1)
        self._print(f"  {named}{seconds:.0f} s")
        if not command.done.exists():
            self._print(f"{command.name} was stopped; the same command resumes it")
            raise SystemExit(1)
        outputs.record(command)

    def _count(self, started: Started, cpu: float) -> float:
        """Add up what a command took until now; its seconds."""
        seconds = time.monotonic() - started.since
        self.spent.add(started.command.name, seconds, cpu)
        return seconds

    def _typed(self, command: Command) -> tuple[dict[str, str], list[str]]:
        """(environment, words) of the process."""
        if command.launcher is None:
            return {}, [tool("mbsd"), *map(str, command.words)]
        launch = command.launch or self.launch
        return launch_command(launch, command.launcher, *command.words, port=free_port(), beside=self.jobs)

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False)


def start_runner(out: Path, launch: LaunchConfig, width: int | None = None, jobs: int = 1) -> Runner:
    """A runner with its logs in `out/logs`.

    Args:
        width: of the screen, in letters; default: the terminal's.
        jobs: commands that run at the same time at most.

    Raises:
        UserError: there are no launchers in this installation.
    """
    refuse_without_launchers()
    out.mkdir(parents=True, exist_ok=True)
    spent = Spent(out / "settings" / "spent.json")
    return Runner(Console(soft_wrap=True, width=width), out / "logs", launch, spent, jobs)


@contextmanager
def _stopped_with_us(live: Live) -> Iterator[None]:
    """Pass SIGTERM on to what is live, and not SIGINT: Ctrl-C reaches all processes directly, and they save."""

    def stop(number: int, _: object) -> None:
        live.told = True
        if number == signal.SIGTERM:
            live.stop()
        else:
            live.were_told()  # a second signal would end them while they save

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
