"""Run on the fake device: several things one after the other, each in a process that is forked from this one.

    python -m tests.fake_cuda.forked PLAN

PLAN is a file, JSON: a list of starts, each a list of the processes that run together. This one has imported everything
that they need and has not touched a device, so that each begins in no time and as if it were new.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fake_cuda.marks import mark
from tests.fake_cuda.recorder import Event, Part, read

PATIENCE = 5.0  # seconds for the other processes of a start once one has failed


@dataclass(frozen=True)
class Process:
    """One process to be forked.

    Attributes:
        words: `launchers/NAME.py` or a module, and its arguments.
        record: what it asks of the device is written to RECORD.<process>, what it prints to RECORD.txt.
        env: more of the environment.
    """

    words: list[str]
    record: str
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a process did: its exit code (None: it was killed), what it printed and what it asked of the device."""

    code: int | None
    printed: str
    parts: list[Part]

    @classmethod
    def of(cls, process: Process) -> Result:
        """Of a process of a plan that has been run."""
        record = Path(process.record)
        code, printed = record.with_name(f"{record.name}.code"), record.with_name(f"{record.name}.txt")
        found = read(record)
        parts = next(iter(found.values())) if found else []
        return cls(int(code.read_text()) if code.exists() else None, printed.read_text(errors="replace"), parts)

    def of_kind(self, *kinds: str) -> list[Event]:
        """All its events of some kinds."""
        return [event for part in self.parts for event in part.of(*kinds)]

    def named(self, beginning: str) -> list[Part]:
        """The parts whose name begins so, and is no mark before something."""
        return [part for part in self.parts if part.name.startswith(beginning) and not part.name.endswith("begins")]


def write_plan(path: Path, starts: list[list[Process]]) -> Path:
    """The plan as a file."""
    path.write_text(json.dumps([[asdict(process) for process in start] for start in starts]))
    return path


def main(plan: Path) -> None:
    """Run the plan; ends with 1 if a start had not the codes that were expected of it."""
    starts = [[Process(**process) for process in start] for start in json.loads(plan.read_text())]
    import_everything()
    mark_trainer()
    for start in starts:
        run([fork(process) for process in start])


def import_everything() -> None:
    """Import what the processes need. torch forbids a device to those forked from one that has asked it for anything.

    What is imported asks how many there are, which opens none: it is answered past torch.
    """
    import torch

    from tests.ranks import IMPORTS

    def device_count() -> int:
        count = ctypes.c_int()
        ctypes.CDLL(None).cudaGetDeviceCount(ctypes.byref(count))
        return count.value

    asks, torch._C._cuda_getDeviceCount = torch._C._cuda_getDeviceCount, device_count
    for name in (*IMPORTS, "mbsd.training.trainer", "tests.fake_cuda.steps"):
        importlib.import_module(name)
    torch._C._cuda_getDeviceCount = asks


def mark_trainer() -> None:
    """Marks before and after what a trainer does: `train_step 3 begins`, `train_step 3`."""
    from mbsd.training.trainer import Trainer

    def marked(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def called(trainer: Any) -> Any:
            mark(f"{method.__name__} {trainer.state.step} begins")
            result = method(trainer)
            mark(f"{method.__name__} {trainer.state.step}")
            return result

        return called

    for name in ("train_step", "validate", "save"):
        setattr(Trainer, name, marked(getattr(Trainer, name)))


def fork(process: Process) -> int:
    """The number of the process that was begun."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.environ.update(process.env)
        os.environ["FAKE_CUDA_LOG"] = process.record
        output = os.open(f"{process.record}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        importlib.import_module("sitecustomize").record_stacks()
        name, *sys.argv[1:] = process.words
        sys.argv[0] = name
        run_module = runpy.run_path if name.endswith(".py") else runpy.run_module
        run_module(name, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    mark("end")
    Path(f"{process.record}.code").write_text(str(code))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of engines that were left can abort an orderly exit


def run(processes: list[int]) -> None:
    """Wait for all; those that wait for one that failed are killed."""
    running, until = set(processes), float("inf")
    while running and time.monotonic() < until:
        for number in list(running):
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                running.remove(number)
                until = min(until, time.monotonic() + PATIENCE) if status else until
        time.sleep(0.02)
    for number in running:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
