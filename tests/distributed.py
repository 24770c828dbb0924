"""Run a function on several gloo ranks of this machine, and never hang: `run_distributed`."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.checkpoint.forked import forks
from tests.launch import CPU


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 300) -> list[Any]:
    """Return [fn(rank, world_size, *args) for each rank], each called in its own process with gloo up.

    `fn` is a module-level function; its arguments and results can be pickled. Raises `RuntimeError` with the traceback
    of the rank that failed first, and `TimeoutError` with every rank's stack; no process outlives the call.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks: list[BaseProcess] = []
        port = _free_port()
        try:
            for rank in range(world_size):
                place = _environment(rank, world_size, port)
                ranks.append(forks().Process(target=_run_rank, args=(fn, rank, world_size, folder, place, args)))
                ranks[-1].start()
            _join(ranks, Path(folder), time.monotonic() + timeout, timeout)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def _run_rank(
    fn: Callable[..., Any], rank: int, world_size: int, folder: str, place: dict[str, str], args: tuple[Any, ...]
) -> None:
    os.environ.update(place)
    here = Path(folder)
    with open(here / f"{rank}.stack", "w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack)
        try:
            import deepspeed
            from deepspeed.ops import __compatible_ops__

            __compatible_ops__["deepspeed_shm_comm"] = False  # or init compiles it for two minutes
            deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
            result = fn(rank, world_size, *args)
            (here / f"{rank}.result").write_bytes(pickle.dumps(result))
            deepspeed.comm.destroy_process_group()
        except BaseException:
            failure = here / f"{rank}.writing"
            failure.write_text(traceback.format_exc())
            failure.rename(here / f"{rank}.failure")  # a failure is whole or absent
            os._exit(1)  # a group left half open would wait for the others at exit
    sys.stdout.flush()
    os._exit(0)  # threads of abandoned engines can abort an orderly interpreter exit


def _join(ranks: list[BaseProcess], folder: Path, deadline: float, timeout: float) -> None:
    """Wait for every rank to end well; raise as soon as one has not."""
    running = {process.sentinel for process in ranks}
    while running:
        ended = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        running -= set(ended)  # type: ignore[arg-type]
        done = [process for process in ranks if process.sentinel in ended]
        for process in done:
            process.join(5)  # the sentinel can precede the exit code
        if any(process.exitcode != 0 for process in done):
            failures = sorted(folder.glob("*.failure"), key=lambda path: path.stat().st_mtime_ns)
            codes = [process.exitcode for process in ranks]
            if not failures:
                raise RuntimeError(f"a rank died without a traceback; exit codes by rank: {codes}")
            raise RuntimeError(f"rank {failures[0].stem} failed (exit codes {codes}):\n{failures[0].read_text()}")
        if running and not ended:
            for process in ranks:
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, signal.SIGUSR1)
            time.sleep(0.5)
            stacks = [f"rank {path.stem}:\n{path.read_text()}" for path in sorted(folder.glob("*.stack"))]
            raise TimeoutError(f"not done after {timeout} s; " + "\n".join(stacks))


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher would set."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
    return {name: str(value) for name, value in {**place, "MASTER_PORT": port, **CPU}.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
