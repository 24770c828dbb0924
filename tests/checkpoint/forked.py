"""Real training runs that start in a second: ranks forked from a process that has already imported everything.

Each rank is a process of its own that can be killed, runs `launchers/pretrain.py` with the environment a launcher would
set, and writes its stderr to a file. What a test adds to a rank (`before`) is called in it before the launcher.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.launch import CPU, ROOT, free_port

IMPORTS = [
    "deepspeed", "mbsd.training.finetune", "mbsd.scoring.evaluate", "mbsd.config.parse",
    "torch.utils.tensorboard", "tests.checkpoint.forked",
    "deepspeed.runtime.zero.muon.original_muon",  # what deepspeed.initialize imports, half of torch's compiler with it
]  # fmt: skip
Before = Callable[..., None]


class Start:
    """One start of a run on some ranks.

    Args:
        ranks: how many.
        arguments: of the launcher; or one list for each rank.
        log: folder for the ranks' stderr.
        before: (function, arguments), called as function(rank, *arguments) in each rank first.
        env: more of the environment.
        launcher: of `launchers/`.
    """

    def __init__(
        self,
        ranks: int,
        arguments: Sequence[object] | list[list[object]],
        log: Path,
        before: tuple[Before, tuple[Any, ...]] | None = None,
        env: dict[str, str] | None = None,
        launcher: str = "pretrain",
    ) -> None:
        log.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.logs = [log / f"rank{rank}.txt" for rank in range(ranks)]
        for path in self.logs:
            path.write_text("")
        self.ranks: list[BaseProcess] = []
        for rank in range(ranks):
            words = arguments[rank] if isinstance(arguments[0], list) else arguments
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port,
                     "MASTER_ADDR": "127.0.0.1", **(env or {})}  # fmt: skip
            process = forks().Process(
                target=_rank,
                args=({k: str(v) for k, v in place.items()}, launcher, list(map(str, words)), self.logs[rank], before),
            )
            process.start()
            self.ranks.append(process)

    def wait(self, timeout: float = 300, patience: float = 2) -> list[int | None]:
        """Every rank's exit code; kills what is not done in time, or still waits for a rank that died.

        Args:
            timeout: seconds for all.
            patience: seconds for the others once one has ended badly.
        """
        deadline = time.monotonic() + timeout
        try:
            while any(process.is_alive() for process in self.ranks) and time.monotonic() < deadline:
                if any(process.exitcode not in (None, 0) for process in self.ranks):
                    deadline = min(deadline, time.monotonic() + patience)  # a launcher would end the others too
                time.sleep(0.01)
            assert time.monotonic() < deadline or any(process.exitcode for process in self.ranks), self.said()
        finally:
            self.kill()
        return [process.exitcode for process in self.ranks]

    def kill(self) -> None:
        """End every rank at once."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join()

    def said(self) -> str:
        """What all ranks wrote to stderr."""
        return "".join(f"--- {path.stem}\n{path.read_text(errors='replace')}" for path in self.logs)

    def errors(self) -> list[str]:
        """Their lines that begin with `error`."""
        return [line for line in self.said().splitlines() if line.startswith("error")]

    def lines(self, word: str) -> list[str]:
        """Their lines with a word."""
        return [line for line in self.said().splitlines() if word in line]


def train(ranks: int, arguments: Sequence[object], log: Path, timeout: float = 300, **more: Any) -> Start:
    """A run that is expected to end well."""
    start = Start(ranks, arguments, log, **more)
    assert start.wait(timeout) == [0] * ranks, start.said()[-6000:]
    return start


def run_ranks(function: Before, ranks: int, log: Path, *arguments: Any) -> None:
    """Call function(rank, *arguments) on several gloo ranks."""
    start = Start(ranks, ["-"], log, before=(_alone, (function, *arguments)))
    assert start.wait() == [0] * ranks, start.said()[-6000:]


def _alone(rank: int, function: Before, *arguments: Any) -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    function(rank, *arguments)
    deepspeed.comm.destroy_process_group()
    raise SystemExit(0)


def _rank(
    place: dict[str, str], launcher: str, words: list[str], log: Path, before: tuple[Before, tuple[Any, ...]] | None
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(place)
    os.chdir(ROOT)
    code: object = 0
    try:
        if before is not None:
            function, arguments = before
            function(int(place["RANK"]), *arguments)
        sys.argv = [f"launchers/{launcher}.py", *words]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def forks() -> Any:
    """Processes forked from one that has imported everything: ready in no time, where a new one takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    os.environ.update(CPU)  # read by deepspeed at import, in the process that ranks are forked from
    return context
