"""A process's place as launchers say it, and worlds that are not what was asked of Slurm."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbsd.errors import UserError
from mbsd.parallel.launch_env import (
    PORTS,
    LaunchEnvironment,
    find_launch_environment,
    free_port,
    refuse_taken_port,
    refuse_wrong_world,
    step_port,
)
from tests.ranks import refused
from tests.settings import stage_1_words

DEEPSPEED = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2", "CROSS_RANK": "1", "CROSS_SIZE": "2",
    "MASTER_ADDR": "n1", "MASTER_PORT": "29500",
}  # fmt: skip
TORCHRUN = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none",
    "MASTER_ADDR": "n1", "MASTER_PORT": "29500",
}  # fmt: skip
BATCH = {  # as a batch script of 2 nodes with 2 tasks each sees it
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
}  # fmt: skip
SRUN = BATCH | {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "started_by", "addr"),
    [(DEEPSPEED, "deepspeed", "n1"), (TORCHRUN, "torchrun", "n1"), (SRUN, "srun", "n1"), (OPEN_MPI, "mpirun", "")],
)
def test_every_launcher_says_the_same_place(environ: dict[str, str], started_by: str, addr: str) -> None:
    found = find_launch_environment(environ)
    assert (found.started_by, found.master_addr) == (started_by, addr)
    assert (found.rank, found.world_size, found.local_rank, found.local_size) == (3, 4, 1, 2)
    again = find_launch_environment(found.environment())
    assert (again.rank, again.world_size, again.local_rank, again.master_port) == (3, 4, 1, found.master_port)


@pytest.mark.parametrize("environ", [{}, BATCH | {"SLURM_NTASKS": "1"}])
def test_a_process_of_no_launcher_is_alone(environ: dict[str, str]) -> None:
    found = find_launch_environment(environ)
    assert (found.rank, found.world_size, found.local_rank, found.started_by) == (0, 1, 0, "nothing")
    refuse_wrong_world(found, environ)
    refuse_taken_port(found.master_port)


def test_mpirun_within_a_job_is_mpirun() -> None:
    """On other nodes its ranks see the variables of the step by which it started its daemons."""
    daemons = SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert find_launch_environment(daemons | OPEN_MPI).rank == 3


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        (TORCHRUN, BATCH),  # a task for each rank
        (TORCHRUN, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}),  # a task for each launcher
        (DEEPSPEED, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}),
        (DEEPSPEED, {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "16"}),
        (SRUN, {}),
        (DEEPSPEED, {"SLURM_NTASKS": "9"}),  # left over: no job
    ],
)
def test_worlds_that_slurm_was_asked_for(environ: dict[str, str], job: dict[str, str]) -> None:
    refuse_wrong_world(find_launch_environment(environ), environ | job)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        # Two tasks of srun, each of which was told that it is a world of its own.
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "1"}, ("4 tasks", "1 rank ")),
        (BATCH, ("4 tasks (SLURM_NTASKS)", "1 rank (started by nothing)", "--ntasks=1")),  # python in a batch script
        (BATCH | {"SLURM_NTASKS": "3"} | TORCHRUN, ("3 tasks", "4 ranks (started by torchrun)")),
        (BATCH | {"SLURM_NTASKS": "1"} | DEEPSPEED, ("1 task ", "4 ranks (started by deepspeed)")),
        (OPEN_MPI | {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, ("2 tasks", "4 ranks (started by mpirun)")),
    ],
)
def test_another_world_is_refused_and_both_numbers_named(environ: dict[str, str], said: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        refuse_wrong_world(find_launch_environment(environ), environ)
    assert all(words in str(refused.value) for words in said) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        (DEEPSPEED | {"RANK": "first"}, "RANK='first'"),
        ({k: v for k, v in SRUN.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID=''"),
    ],
)
def test_half_a_place_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_launch_environment(environ)


@given(st.integers(1, 10**7), st.integers(0, 20), st.integers(0, 20))
def test_jobs_steps_and_restarts_that_may_meet_have_ports_of_their_own(job: int, step: int, restart: int) -> None:
    def port(job: int, step: int, restart: int) -> int:
        count = {"SLURM_RESTART_COUNT": str(restart)} if restart else {}
        return step_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), **count})

    near = [port(job + j, step + s, restart + r) for j, s, r in itertools.product(range(100), range(2), range(2))]
    assert len(set(near)) == len(near) and set(near) <= set(PORTS)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("", free_port()))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}, and address already in use.*MASTER_PORT"):
            refuse_taken_port(port)
        with pytest.raises(UserError, match=f"port {port}, and address already in use.*--master_port"):
            refuse_taken_port(port, "deepspeed")
    refuse_taken_port(port)
    with pytest.raises(UserError, match="port 70000, and ports are numbers up to 65535"):
        refuse_taken_port(70_000)


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", [{}, {"CROSS_SIZE": "1", "LOCAL_SIZE": "1"}])  # by hand, and by deepspeed
def test_a_launch_on_a_taken_port_is_one_line(launcher: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", free_port()))
        holder.listen()
        taken = {"MASTER_PORT": str(holder.getsockname()[1]), **launcher}
        line = refused(1, stage_1_words(tmp_path / "run", tmp_path, 1), tmp_path / "log", env=taken)
    assert f"port {taken['MASTER_PORT']}, and address already in use" in line
    assert ("--master_port" if launcher else "MASTER_PORT to another") in line and not (tmp_path / "run").exists()


def test_ranks_of_uneven_nodes() -> None:
    uneven = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_STEP_NUM_NODES": "3"}
    sizes = [find_launch_environment(uneven | {"SLURM_NODEID": str(node)}).local_size for node in range(3)]
    assert sizes == [8, 8, 4]
    assert isinstance(find_launch_environment(uneven), LaunchEnvironment)
