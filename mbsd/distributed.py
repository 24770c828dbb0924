"""Who am I, start and stop of the process group, and decisions made on rank 0 for all.

DeepSpeed's launcher and torchrun set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; a process started
alone is a world of one.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mbsd.errors import UserError

R = TypeVar("R")


@dataclass(frozen=True)
class Place:
    """This process's place in the job."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Rank 0 speaks and writes."""
        return self.rank == 0


@contextmanager
def process_group(timeout: float | None = None) -> Iterator[Place]:
    """Join the job's process group (NCCL on GPUs, gloo on CPUs) for the time of a recipe, and leave it at the end.

    Args:
        timeout: seconds a rank waits for the others in one exchange; None: as DeepSpeed, 10 minutes. The environment's
            DEEPSPEED_TIMEOUT (minutes) goes before.
    """
    place = _start(timeout)
    try:
        yield place
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _start(timeout: float | None) -> Place:
    cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if not cuda:
        # Said before deepspeed is imported: it looks for an accelerator at import.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(pynvml|lr_scheduler.step).*")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if cuda:
        torch.cuda.set_device(local_rank)
    else:
        # A CPU communication kernel for inference that DeepSpeed would compile for two minutes at every first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "OMP_NUM_THREADS" not in os.environ:
            ranks_here = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    waits = {}
    if timeout is not None and "DEEPSPEED_TIMEOUT" not in os.environ:
        waits["timeout"] = timedelta(seconds=timeout)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False, **waits)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return Place(rank, world_size, local_rank, device)


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


def free_port() -> str:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
