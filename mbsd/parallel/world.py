"""Start and stop of the process group, and decisions made on rank 0 for all; who am I: `launch.py`."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from mbsd.errors import RunFailed, UserError
from mbsd.parallel.devices import RankFacts, choose_device, print_ranks, rank_facts, refuse_shared_gpus
from mbsd.parallel.launch_env import (
    LaunchEnvironment,
    find_launch_environment,
    free_port,
    refuse_taken_port,
    refuse_wrong_world,
)

R = TypeVar("R")

# gloo's words where the process at the other end of a connection is gone.
LOST_PEER = re.compile(
    r"gloo.*(Connection (closed|reset) by peer|Broken pipe)|Connection closed by peer", re.IGNORECASE
)


@dataclass(frozen=True)
class World:
    """This process among all ranks of the job.

    Attributes:
        local_rank: number among the ranks of its host, as the launcher counts; the GPU is `device`'s.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    local_size: int = 1
    """Ranks on this host."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """What this rank's device computes in, without emulation: some of fp32, fp16, bf16."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return ("fp32", "fp16", "bf16") if bf16 else ("fp32", "fp16")
        from deepspeed.accelerator import get_accelerator

        return ("fp32", "fp16", "bf16") if get_accelerator().is_fp16_supported() else ("fp32", "bf16")

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def alone(self) -> World:
        """This process as a world of its own: what it reads is no other rank's."""
        return dataclasses.replace(self, rank=0, size=1)


@contextmanager
def process_group(timeout: float | None = None) -> Iterator[World]:
    """Join the job's process group (NCCL on GPUs, gloo on CPUs) for the time of a recipe, and leave it at the end.

    Args:
        timeout: seconds a rank waits for the others in one exchange; None: as DeepSpeed, 10 minutes. The environment's
            DEEPSPEED_TIMEOUT (minutes) goes before.
    """
    world = _start(timeout)
    try:
        yield world
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if LOST_PEER.search(text) is None:
            raise
        raise RunFailed(f"another rank has ended, and its own line says why ({text})") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _start(timeout: float | None) -> World:
    launch = find_launch_environment(os.environ)
    device = choose_device(launch)
    cuda = device.type == "cuda"
    if launch.started_by == "mpirun":
        launch = _ask_rank_zero(launch)
    else:
        refuse_wrong_world(launch, os.environ)
    if launch.rank == 0 and launch.rank_zero_listens:
        refuse_taken_port(launch.master_port, launch.started_by)
    os.environ.update(launch.environment(device.index if cuda else None))
    if cuda:
        torch.cuda.set_device(device)  # before anything that would open a context on the first GPU
    else:
        # Said before deepspeed is imported: it looks for an accelerator at import.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(pynvml|lr_scheduler.step).*")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not cuda:
        # A CPU communication kernel for inference that DeepSpeed would compile for two minutes at every first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // launch.local_size))
    backend = "nccl" if cuda else "gloo"
    wait = timedelta(seconds=timeout) if timeout is not None and "DEEPSPEED_TIMEOUT" not in os.environ else None
    waits = {"timeout": wait} if wait is not None else {}
    with _facts_of_all(launch, rank_facts(device), wait) as ranks:
        refuse_shared_gpus(ranks)
        # DeepSpeed's own search for MPI would overwrite what was found here.
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, **waits)
    here = sum(rank.host == platform.node() for rank in ranks)
    world = World(launch.rank, launch.world_size, launch.local_rank, device, local_size=here)
    if world.is_first:
        print_ranks(ranks, launch.started_by, backend)
    return world


@contextmanager
def _facts_of_all(launch: LaunchEnvironment, mine: RankFacts, timeout: timedelta | None) -> Iterator[list[RankFacts]]:
    """Every rank's facts, in rank order, from the store at which the ranks meet: NCCL connects them only after that.

    Rank 0 keeps the store for the time of the block; the process group that is made there keeps it from then on.
    """
    store, *_ = next(rendezvous("env://", timeout=timeout or default_pg_timeout))
    ranks = range(launch.world_size)
    store.set(f"mbsd/facts/{launch.rank}", json.dumps(dataclasses.astuple(mine)))
    facts = [RankFacts(*json.loads(store.get(f"mbsd/facts/{rank}"))) for rank in ranks]
    store.set(f"mbsd/read/{launch.rank}", "")
    if launch.rank == 0:  # a rank 0 that leaves with an error takes the store away
        store.wait([f"mbsd/read/{rank}" for rank in ranks])
    yield facts


def _ask_rank_zero(launch: LaunchEnvironment) -> LaunchEnvironment:
    """Where rank 0 listens, or why it will not, broadcast through MPI.

    Rank 0 runs where mpirun does. On other nodes Slurm's variables describe mpirun's own daemons.
    """
    from mpi4py import MPI

    answer = None
    if launch.rank == 0:
        wrong = ""
        try:
            refuse_wrong_world(launch, os.environ)
            if launch.master_port:
                refuse_taken_port(launch.master_port, launch.started_by)
        except UserError as error:
            wrong = str(error)
        one_host = launch.local_size == launch.world_size
        addr = launch.master_addr or ("127.0.0.1" if one_host else platform.node())
        answer = wrong, addr, launch.master_port or free_port()
    wrong, addr, port = MPI.COMM_WORLD.bcast(answer)
    if wrong:
        raise UserError(wrong)
    return dataclasses.replace(launch, master_addr=addr, master_port=port)


def on_rank_zero(decide: Callable[[], R]) -> R:
    """`decide()` on rank 0; every rank returns its (picklable) result or raises its UserError.

    Anything else that goes wrong ends rank 0 with its traceback, and the launcher then ends the others.
    """
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = decide()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise UserError(answer[1], shared=True)
    result: R = answer[0]
    return result


@contextmanager
def same_on_every_rank() -> Iterator[None]:
    """Leave the block the same way on every rank: if any rank raised a UserError in it, all raise the first one.

    The block itself must hold no collective call, for a rank that failed would miss it.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = str(error)
    first = next((message for message in gather_objects(failure) if message is not None), None)
    if first is not None:
        raise UserError(first, shared=True)


def gather_objects(value: R) -> list[R]:
    """Every rank's picklable `value`, in rank order, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
