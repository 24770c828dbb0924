"""What measurements on several ranks share: starting ranks on this machine, and a training step without data."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from mbsd.errors import UserError
from mbsd.parallel.launch_env import free_port
from mbsd.parallel.world import World, process_group

P = ParamSpec("P")
R = TypeVar("R")


class SumOfWeights(nn.Module):
    """A module whose loss is a sum over its weights: cheap, and every trained parameter gets a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> torch.Tensor:
        """The loss, 0-d: the sum of the means of all trained parameters."""
        return torch.stack([p.float().mean() for p in self.model.parameters() if p.requires_grad]).sum()


def on_ranks(world_size: int, measure: Callable[Concatenate[World, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `measure(world, *args, **kwargs)` in `world_size` processes that form a group; return rank 0's result.

    `measure` has to be a function of a module, and its arguments and result have to be picklable.

    Raises:
        UserError: more ranks than this machine's GPUs, where it has any.
        RuntimeError: a rank failed; its traceback has been printed.
    """
    if torch.cuda.is_available() and world_size > torch.cuda.device_count():
        raise UserError(
            f"--ranks {world_size}: this machine has {torch.cuda.device_count()} GPUs; name no more, or set "
            "CUDA_VISIBLE_DEVICES to nothing to measure on CPUs"
        )
    context = multiprocessing.get_context("spawn")
    answers: Any = context.SimpleQueue()
    common = {
        "WORLD_SIZE": world_size,
        "LOCAL_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    processes = []
    for rank in range(world_size):
        environment = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
        processes.append(context.Process(target=_rank, args=(environment, answers, measure, args, kwargs)))
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a rank failed; exit codes {[process.exitcode for process in processes]}")
    result: R = answers.get()
    return result


def seconds_of_slowest(step: Callable[[], object], world: World) -> float:
    """Seconds of a step on the slowest rank, from a barrier to the end of the last kernel (collective)."""
    _wait(world)
    dist.barrier()
    began = time.perf_counter()
    step()
    _wait(world)
    took = torch.tensor(time.perf_counter() - began, dtype=torch.float64, device=world.device)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return float(took)


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def _rank(
    environment: dict[str, str], answers: Any, measure: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> None:
    os.environ.update(environment)
    with process_group() as world:
        result = measure(world, *args, **kwargs)
        if world.is_first:
            answers.put(result)
