"""Which rank of how many this process is, from the environment that its launcher set; without torch.

| started by | sets |
|---|---|
| deepspeed, torchrun, by hand | RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT |
| mpirun of Open MPI | OMPI_COMM_WORLD_*; where rank 0 listens is broadcast through mpi4py |
| srun | SLURM_PROCID, SLURM_STEP_*; where rank 0 listens follows from the step's nodes and number |
| nothing of the kind | a world of one |

Under Slurm the world has to be what was asked of Slurm. A launcher that does not find its place otherwise trains
separate copies of the run, each a world of one, without any message.
"""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from mbsd.errors import UserError

TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_JOB_NUM_NODES")  # of this step, else of the job
BY_HAND = "RANK and WORLD_SIZE"
OPEN_MPI_LOCAL_RANK = "OMPI_COMM_WORLD_LOCAL_RANK"
PORTS = range(16384, 32768)  # below those that Linux gives to outgoing connections


@dataclass(frozen=True)
class LaunchEnvironment:
    """This process's place among all of the job."""

    started_by: str
    rank: int
    world_size: int
    local_rank: int
    """Number among the ranks of this host."""
    local_size: int
    """Ranks on this host, as far as the launcher sets it."""
    master_addr: str
    """Where rank 0 listens; "" where only rank 0 knows."""
    master_port: int
    """0 where only rank 0 knows."""

    @property
    def rank_zero_listens(self) -> bool:
        """Whether rank 0 itself listens on the port, and not its launcher: torchrun has begun to before."""
        return self.started_by in ("deepspeed", "srun", BY_HAND)

    def environment(self, gpu: int | None = None) -> dict[str, str]:
        """What torch and DeepSpeed read.

        Args:
            gpu: the index of this rank's GPU among those that this process sees. LOCAL_RANK is set to it, since
                DeepSpeed takes LOCAL_RANK for a device: where each rank sees one GPU alone, that is 0 on all of them.
                Open MPI's own variable is set with it, since DeepSpeed refuses two that differ.
        """
        values = {
            "RANK": self.rank, "WORLD_SIZE": self.world_size, "LOCAL_RANK": self.local_rank if gpu is None else gpu,
            "MASTER_ADDR": self.master_addr, "MASTER_PORT": self.master_port,
        }  # fmt: skip
        if gpu is not None:
            values[OPEN_MPI_LOCAL_RANK] = gpu
        return {name: str(value) for name, value in values.items()}


def find_launch_environment(environ: Mapping[str, str]) -> LaunchEnvironment:
    """This process's place, from environment variables.

    Raises:
        UserError: RANK is set and the rest is not, or a value is not a number.
    """
    addr, port = environ.get("MASTER_ADDR", ""), _number(environ, "MASTER_PORT", 0)
    if "RANK" in environ:
        missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if missing:
            raise UserError(f"RANK={environ['RANK']} is set and {', '.join(missing)} not: set all of them, or none")
        rank, world = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
        local, local_size = _number(environ, "LOCAL_RANK", 0), 1
        by = BY_HAND
        if "TORCHELASTIC_RUN_ID" in environ:
            by, local_size = "torchrun", _number(environ, "LOCAL_WORLD_SIZE")
        elif "CROSS_SIZE" in environ:
            by, local_size = "deepspeed", _number(environ, "LOCAL_SIZE")
        return LaunchEnvironment(by, rank, world, local, local_size, addr, port)
    if "OMPI_COMM_WORLD_RANK" in environ:
        world, local_size = _number(environ, "OMPI_COMM_WORLD_SIZE"), _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
        rank, local = _number(environ, "OMPI_COMM_WORLD_RANK"), _number(environ, OPEN_MPI_LOCAL_RANK)
        return LaunchEnvironment("mpirun", rank, world, local, local_size, addr, port)
    if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        world, nodes = _number(environ, "SLURM_STEP_NUM_TASKS"), _number(environ, "SLURM_STEP_NUM_NODES", 1)
        rank, local = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID")
        here = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        node = _number(environ, "SLURM_NODEID", 0)
        first = "127.0.0.1" if nodes == 1 else first_host(environ["SLURM_STEP_NODELIST"])
        return LaunchEnvironment(
            "srun", rank, world, local, here[node] if node < len(here) else 1, addr or first,
            port or step_port(environ),
        )  # fmt: skip
    return LaunchEnvironment("nothing", 0, 1, 0, 1, "127.0.0.1", free_port())


def refuse_wrong_world(launch: LaunchEnvironment, environ: Mapping[str, str]) -> None:
    """Raise UserError where Slurm was asked for another number of tasks than the world has ranks.

    A launcher (torchrun, deepspeed) may be a task of its own that starts several ranks: then a task for each launcher
    is right too.
    """
    name = next((name for name in TASK_COUNTS if name in environ), "")
    if not name or "SLURM_JOB_ID" not in environ:
        return
    tasks, world = _number(environ, name), launch.world_size
    if world == tasks or (launch.started_by in ("torchrun", "deepspeed") and world == tasks * launch.local_size):
        return
    given, here = (f"{number} {what}{'s' if number > 1 else ''}" for number, what in ((tasks, "task"), (world, "rank")))
    raise UserError(
        f"{platform.node()}: Slurm gave {given} ({name}) and the world has {here} (started by {launch.started_by}): "
        "separate copies of the run would train, or part of the nodes idle; start the ranks with `srun python …`, "
        f"or ask for --ntasks={world} (cores are --cpus-per-task)"
    )


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it, such as `rack[1-2]-n[07-09,12],login`."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)


def step_port(environ: Mapping[str, str]) -> int:
    """A port that all ranks of a step know without talking: another one for each job, step and restart."""
    job, step = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID", 0)
    restart = _number(environ, "SLURM_RESTART_COUNT", 0)
    return PORTS[(job + 1009 * step + 4099 * restart) % len(PORTS)]


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refuse_taken_port(port: int, started_by: str = BY_HAND) -> None:
    """Raise UserError where rank 0 cannot listen on its port, mostly because somebody does already."""
    by_deepspeed = started_by == "deepspeed"
    other = "give deepspeed another --master_port" if by_deepspeed else "set MASTER_PORT to another one for all ranks"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            number = error.errno if isinstance(error, OSError) else None
            why = os.strerror(number).lower() if number else "ports are numbers up to 65535"
            raise UserError(
                f"{platform.node()}: rank 0 would listen on port {port}, and {why}; end what holds it, or {other}"
            ) from error


def _tasks_per_node(text: str) -> list[int]:
    """`8(x2),4` -> [8, 8, 4]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{name}={text!r} in the environment: expected a whole number") from error
