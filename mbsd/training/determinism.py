"""Whether the same run gives the same bits: always on a CPU, on a GPU where run.deterministic asks for it.

On a GPU torch's fastest kernels add with atomics, in an order of their own each time: the backward of attention, of
convolutions and of indexing among them. Each has a slower one that does not, or raises an error that names it. On a CPU
the one such kernel (the backward of indexing, with several threads) is no slower without.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mbsd.config.data import DataConfig
from mbsd.config.run import RunConfig
from mbsd.errors import UserError

# What cuBLAS needs to repeat itself: https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility.
WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def prepare_workspace(run: RunConfig) -> None:
    """Set the environment that cuBLAS reads at its first product; call it before the device is touched.

    Raises:
        UserError: it is set to a value with which products do not repeat themselves.
    """
    if run.deterministic and os.environ.setdefault(WORKSPACE, WORKSPACES[0]) not in WORKSPACES:
        raise UserError(
            f"run.deterministic=true and {WORKSPACE}={os.environ[WORKSPACE]} in the environment: set it to one of "
            f"{', '.join(WORKSPACES)}, or leave it out"
        )


@contextmanager
def repeatable(run: RunConfig, device: torch.device) -> Iterator[None]:
    """Take deterministic kernels for the time of a run, on a CPU and where run.deterministic asks for them.

    Raises:
        UserError: the run needs a kernel that torch has in no deterministic form; it is named, on every rank.
    """
    if not (run.deterministic or device.type == "cpu"):
        yield
        return
    memory: Any = torch.utils.deterministic  # what torch puts in this module's place has attributes that mypy misses
    before = torch.are_deterministic_algorithms_enabled()
    fill, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # nothing reads what it has not written
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise UserError(
            f"run.deterministic=true, and torch {torch.__version__} has no deterministic kernel for {found[1]} on "
            f"{device.type}: leave run.deterministic out, or train a model without it",
            shared=True,
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark


def repeatable_decoder(data: DataConfig, run: RunConfig, device: torch.device) -> DataConfig:
    """The settings with a decoder that repeats itself: on a GPU nothing says that DALI's does.

    Raises:
        UserError: data.decoder=dali asks for that one.
    """
    if not run.deterministic or device.type == "cpu":
        return data
    if data.decoder == "dali":
        raise UserError(
            "run.deterministic=true and data.decoder=dali: NVIDIA does not say that its decoder on the GPU gives the "
            "same pixels each time; set data.decoder=torchvision, or leave it out"
        )
    return dataclasses.replace(data, decoder="torchvision")
