"""The one way in which tests start ranks: processes of one world, on gloo, each of which can be killed.

They are forked from a process that has imported everything: a start takes a second where a new interpreter takes ten.
`Ranks` runs a launcher of `launchers/` in each, with the environment that a launching program would set, and is there
to be signalled and killed; `launch` expects a good end, `refused` a user's mistake; `call` calls a function on each
rank and returns the results. `command` is `mbsd` in one such process. `deepspeed` is DeepSpeed's own launching program,
for tests whose question it is.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CPU = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
IMPORTS = [
    "deepspeed", "mbsd.training.pretrain", "mbsd.training.finetune", "mbsd.scoring.evaluate", "mbsd.scoring.embed",
    "mbsd.config.parse", "mbsd.cli.main",
    "torch.utils.tensorboard", "tests.ranks",
    # What deepspeed.initialize, jsonargparse, TensorBoard and PIL import when they are first used.
    "deepspeed.comm.mori", "deepspeed.module_inject.auto_ep_layer", "deepspeed.ops.op_builder.all_ops",
    "deepspeed.ops.triton_ops", "deepspeed.runtime.zero.muon.original_muon", "pkg_resources",
    "setuptools.command.build_ext", "attrs", "docstring_parser", "rich._emoji_codes",
    "tensorboard.plugins.hparams.plugin_data_pb2",
    "s3fs", "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin",
]  # fmt: skip
Task = tuple[Callable[..., object], tuple[Any, ...]]  # called as function(rank, *arguments)


class Ranks:
    """One start of a launcher on some ranks. Attributes: processes; logs, the file of each one's output.

    Args:
        ranks: how many.
        arguments: of the launcher; or one list for each rank.
        log: folder for what the ranks print.
        before: called in each rank before the launcher.
        env: more of the environment.
        launcher: of `launchers/`.
    """

    def __init__(
        self,
        ranks: int,
        arguments: Sequence[object] | list[list[object]],
        log: Path,
        before: Task | None = None,
        env: dict[str, str] | None = None,
        launcher: str = "pretrain",
    ) -> None:
        tasks = []
        for rank in range(ranks):
            words = arguments[rank] if isinstance(arguments[0], list) else arguments
            tasks.append([*([before] if before else []), (_run_launcher, (launcher, list(map(str, words))))])
        self._start(tasks, log, env or {})

    @classmethod
    def of(cls, tasks: list[list[Task]], log: Path, env: dict[str, str] | None = None) -> Ranks:
        """A rank for each list, which does what the list says."""
        ranks = cls.__new__(cls)
        ranks._start(tasks, log, env or {})
        return ranks

    def _start(self, tasks: list[list[Task]], log: Path, env: dict[str, str]) -> None:
        log.mkdir(parents=True, exist_ok=True)
        common = {"WORLD_SIZE": len(tasks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **CPU, **env}
        self.logs = [log / f"rank{rank}.txt" for rank in range(len(tasks))]
        self.processes: list[BaseProcess] = []
        for rank, (path, of_rank) in enumerate(zip(self.logs, tasks, strict=True)):
            path.write_text("")
            place = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
            self.processes.append(fork_server().Process(target=_run_rank, args=(rank, place, path, of_rank)))
            self.processes[-1].start()

    def wait(self, timeout: float = 300, patience: float = 2) -> list[int | None]:
        """Every rank's exit code; kills what is not done in time, or still waits for a rank that died.

        Args:
            timeout: seconds for all. Past them: AssertionError with every rank's stack.
            patience: seconds for the others once one has ended badly: a launching program would end them too.
        """
        deadline = time.monotonic() + timeout
        running = set(self.processes)
        failed = False
        try:
            while running and (left := deadline - time.monotonic()) > 0:
                ended = wait([process.sentinel for process in running], left)
                for process in [process for process in running if process.sentinel in ended]:
                    process.join()
                    running.remove(process)
                    if process.exitcode and not failed:
                        failed, deadline = True, min(deadline, time.monotonic() + patience)
            if running and not failed:
                self._write_stacks()
                raise AssertionError(f"not done after {timeout} s\n{self.printed()}")
        finally:
            self.kill()
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """End every rank at once."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def _write_stacks(self) -> None:
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGUSR2)
        time.sleep(0.5)

    def printed(self) -> str:
        """What all ranks printed."""
        return "".join(f"--- {path.stem}\n{path.read_text(errors='replace')}" for path in self.logs)

    def lines(self, word: str) -> list[str]:
        """Their lines with a word."""
        return [line for line in self.printed().splitlines() if word in line]

    def errors(self) -> list[str]:
        """Their lines that begin with `error`."""
        return [line for line in self.lines("error") if line.startswith("error")]


def launch(ranks: int, arguments: Sequence[object], log: Path, timeout: float = 300, **more: Any) -> Ranks:
    """A start of a launcher that is expected to end well; `more` are arguments of `Ranks`."""
    started = Ranks(ranks, arguments, log, **more)
    assert started.wait(timeout) == [0] * ranks, started.printed()[-6000:]
    return started


def refused(ranks: int, arguments: Sequence[object], log: Path, **more: Any) -> str:
    """The one line that all ranks of a start together print about a user's mistake, each ending with 2."""
    started = Ranks(ranks, arguments, log, **more)
    assert started.wait(patience=30) == [2] * ranks, started.printed()[-6000:]
    assert len(started.errors()) == 1 and "Traceback" not in started.printed(), started.printed()[-6000:]
    return started.errors()[0]


def call(function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 300) -> list[Any]:
    """Return [function(rank, world_size, *arguments) for each rank], each called in its own process with gloo up.

    `function` is one of a module; its arguments and results can be pickled.

    Raises:
        AssertionError: a rank failed, with its traceback, or was not done in time, with every rank's stack.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / f"{rank}.result" for rank in range(world_size)]
        started = Ranks.of([[(_call, (world_size, path, function, arguments))] for path in results], Path(folder))
        codes = started.wait(timeout)
        assert codes == [0] * world_size, f"exit codes by rank: {codes}\n{started.printed()}"
        return [pickle.loads(path.read_bytes()) for path in results]


def command(
    *words: object, timeout: float = 300, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`mbsd` with these words, in a process of its own that is forked as ranks are."""
    with tempfile.TemporaryDirectory() as folder:
        stdout = Path(folder) / "stdout"
        given = list(map(str, words))
        started = Ranks.of([[(_run_command, (given, stdout))]], Path(folder), env)
        (code,) = started.wait(timeout)
        assert code is not None
        return subprocess.CompletedProcess(given, code, stdout.read_text(), started.logs[0].read_text())


def deepspeed_command(ranks: int, launcher: str, *arguments: object) -> list[str]:
    """The command that a user types."""
    program = str(Path(sys.executable).with_name("deepspeed"))
    words = ["--num_accelerators", ranks, "--no_local_rank", "--master_port", free_port(), f"launchers/{launcher}.py"]
    return [program, *map(str, words), *map(str, arguments)]


def deepspeed(ranks: int, launcher: str, *arguments: object) -> None:
    """Run that command to its end and expect success."""
    done = subprocess.run(
        deepspeed_command(ranks, launcher, *arguments), cwd=ROOT, env={**os.environ, **CPU}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def free_port() -> int:
    """A port that nobody listens on, outside the range from which the system gives ports to connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def fork_server() -> Any:
    """The multiprocessing context whose processes are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    os.environ.update(CPU)  # read by deepspeed at import, in the process that ranks are forked from
    return context


def _run_rank(rank: int, place: dict[str, str], log: Path, tasks: list[Task]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(place)
    os.chdir(ROOT)
    faulthandler.register(signal.SIGUSR2, file=descriptor)
    code: object = 0
    try:
        for function, arguments in tasks:
            function(rank, *arguments)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)  # threads of abandoned engines can abort an orderly exit


def _run_launcher(rank: int, launcher: str, words: list[str]) -> None:
    sys.argv = [f"launchers/{launcher}.py", *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _run_command(rank: int, words: list[str], stdout: Path) -> None:
    from mbsd.cli.main import main

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT), 1)
    sys.argv = ["mbsd", *words]
    main()


def _call(rank: int, world_size: int, result: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or init compiles it for two minutes
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    result.write_bytes(pickle.dumps(function(rank, world_size, *arguments)))
    deepspeed.comm.destroy_process_group()
