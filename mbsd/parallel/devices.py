"""The device of a rank: which one, whether this torch has kernels for it, and the table of all at the start."""

from __future__ import annotations

import itertools
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table

from mbsd.errors import UserError
from mbsd.parallel.launch_env import LaunchEnvironment


@dataclass(frozen=True)
class RankFacts:
    """A rank's line in the table at the start."""

    host: str
    device: str
    arch: str
    """Compute capability as kernels are named, say sm_70; the processor's architecture on a CPU."""
    uuid: str = field(default="", compare=False)
    """Of the GPU, or of the slice of it that MIG gave; "" on a CPU, and where the driver tells none."""


def choose_device(launch: LaunchEnvironment, environ: Mapping[str, str] = os.environ) -> torch.device:
    """The GPU of this rank, or the CPU where torch sees no GPU or DS_ACCELERATOR=cpu asks for it.

    Where the process sees one GPU alone, it is that one: Slurm (--gpus-per-task=1, --gpu-bind=single:1) or a
    CUDA_VISIBLE_DEVICES of its own gave it to this rank. Else it is the one of the rank's number on its host.

    Raises:
        UserError: Slurm gave GPUs and torch sees none; there are fewer GPUs than ranks; or this torch was built without
            kernels for the GPU.
    """
    if environ.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        if environ.get("SLURM_GPUS_ON_NODE", "0") != "0":
            raise UserError(
                f"{platform.node()}: Slurm gave {environ['SLURM_GPUS_ON_NODE']} GPUs and torch {torch.__version__} "
                "sees none: look at `nvidia-smi` and its driver's version there, or set DS_ACCELERATOR=cpu to train "
                "on CPUs"
            )
        return torch.device("cpu")
    index = launch.local_rank if count > 1 else 0  # whether two ranks see the same one: `refuse_shared_gpus`
    if index >= count:
        raise UserError(
            f"{platform.node()}: rank {launch.rank} is number {index} on this host and torch sees {count} GPUs: "
            "start one rank for each GPU"
        )
    device = torch.device("cuda", index)
    refuse_missing_kernels(
        torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    )
    return device


def refuse_shared_gpus(ranks: Sequence[RankFacts]) -> None:
    """Raise UserError where two ranks of a host would train on one GPU, which NCCL cannot.

    Args:
        ranks: of the whole job, in rank order.
    """
    taken: dict[tuple[str, str], int] = {}
    for rank, facts in enumerate(ranks):
        other = taken.setdefault((facts.host, facts.uuid), rank) if facts.uuid else rank
        if other != rank:
            raise UserError(
                f"{facts.host}: ranks {other} and {rank} both have {facts.device} ({facts.uuid}): start one rank for "
                "each GPU, and let each see all GPUs of its host or one of its own (CUDA_VISIBLE_DEVICES, srun "
                "--gpus-per-task=1)",
                shared=True,
            )


def refuse_precision(precision: str, supported: Sequence[str], name: str) -> None:
    """Raise UserError where a run is to compute in what its device has no arithmetic for.

    torch would emulate bf16 on a GPU without it, and attend with its slowest kernel, which asks the device for the
    length of every sequence in every layer.

    Args:
        precision: fp16, bf16 or fp32.
        supported: what the device computes in.
        name: of the device.
    """
    if precision not in supported:
        other = next((name for name in supported if name != "fp32"), "fp32")
        raise UserError(
            f"{platform.node()}: {name} computes in {' and '.join(supported)} alone, and DeepSpeed's JSON enables "
            f"{precision}: use {other} there"
        )


def refuse_missing_kernels(name: str, capability: tuple[int, int], built_for: Sequence[str]) -> None:
    """Raise UserError if torch was built for no architecture that the GPU can run.

    Machine code (sm_XY) runs on GPUs of its major number and at least its minor one, intermediate code (compute_XY) on
    all that are as new: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#binary-compatibility.
    """
    for architecture in built_for:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", architecture)
        if parts is None:
            continue
        built = int(parts[2]), int(parts[3])
        exactly = architecture.endswith("a")  # runs on this one kind alone
        as_new = built < capability and (parts[1] == "compute" or built[0] == capability[0])
        if built == capability or (as_new and not exactly):
            return
    major, minor = capability
    raise UserError(
        f"{platform.node()}: {name} is sm_{major}{minor} and this torch {torch.__version__} holds kernels for "
        f"{' '.join(built_for)} alone: install a torch that was built for it (V100: torch 2.10 of PyPI, "
        "`pip install -c constraints.txt`)"
    )


def rank_facts(device: torch.device) -> RankFacts:
    """The facts of this rank."""
    if device.type == "cpu":
        return RankFacts(platform.node(), "cpu", platform.machine())
    found = torch.cuda.get_device_properties(device)
    uuid = str(found.uuid)
    return RankFacts(
        platform.node(), f"{found.name} cuda:{device.index}", f"sm_{found.major}{found.minor}",
        uuid if uuid.strip("0-") else "",
    )  # fmt: skip


def print_ranks(ranks: Sequence[RankFacts], started_by: str, backend: str, console: Console | None = None) -> None:
    """A table of all ranks, those in a row that are alike in one line (called on rank 0)."""
    versions = [f"torch {torch.__version__}"]
    if torch.version.cuda and backend == "nccl":
        number: tuple[int, ...] = torch.cuda.nccl.version()
        versions += [f"CUDA {torch.version.cuda}", f"NCCL {'.'.join(map(str, number))}"]
    numbers = {"rank": len(ranks), "host": len({rank.host for rank in ranks})}
    counts = [f"{number} {what}{'s' if number > 1 else ''}" for what, number in numbers.items()]
    title = f"{' on '.join(counts)}, started by {started_by}, {backend}, {', '.join(versions)}"
    table = Table(box=None, pad_edge=False)
    for column in ("rank", "host", "device", "arch"):
        table.add_column(column, overflow="fold")
    first = 0
    for facts, same in itertools.groupby(ranks):
        last = first + len(list(same)) - 1
        table.add_row(f"{first}-{last}" if last > first else str(first), facts.host, facts.device, facts.arch)
        first = last + 1
    screen = console or Console(stderr=True)
    if not screen.is_terminal:
        screen.width = max(screen.width, 120)
    screen.print(title, table, sep="\n", highlight=False)
