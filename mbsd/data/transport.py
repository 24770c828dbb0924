"""Catalogue → batches: how a worker hands a micro-batch over: all of its tensors in ONE piece of shared memory.

torch's own way holds an open file for each tensor of each batch that is ready, twelve a batch: with a few workers more
than many systems let a process open. Here it is one, and page-locking it for a GPU is one copy.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mbsd.data.batch_builder import Prepared
from mbsd.data.room import ALIGNED, no_room
from mbsd.errors import UserError


@dataclass(frozen=True)
class Packed:
    """A micro-batch on its way from a worker.

    Attributes:
        buffer: uint8; the bytes of all tensors.
        places: of each tensor, in the order in which the batch maps them: dtype, shape and first byte.
        rest: all else; its tensors are empty.
    """

    buffer: Tensor
    places: tuple[tuple[torch.dtype, tuple[int, ...], int], ...]
    rest: Prepared

    def pin_memory(self) -> Packed:
        """The same in page-locked memory; torch's DataLoader calls this."""
        return dataclasses.replace(self, buffer=self.buffer.pin_memory())

    def unpack(self) -> Prepared:
        """The micro-batch; its tensors are views of the buffer."""
        tensors = iter([_view(self.buffer, *place) for place in self.places])
        return dataclasses.replace(self.rest, batch=self.rest.batch.map_tensors(lambda _: next(tensors)))


@dataclass(frozen=True)
class Refused:
    """Why a worker cannot make a micro-batch: the message of a UserError, which the training process raises."""

    message: str

    def pin_memory(self) -> Refused:
        """Itself."""
        return self


def pack(prepared: Prepared) -> Packed:
    """Copy a micro-batch into shared memory.

    Raises:
        UserError: there is none left, or no file can be opened for it.
    """
    places: list[tuple[torch.dtype, tuple[int, ...], int]] = []
    tensors: list[Tensor] = []
    size = 0

    def take(tensor: Tensor) -> Tensor:
        nonlocal size
        places.append((tensor.dtype, tuple(tensor.shape), size))
        tensors.append(tensor)
        size += -(-tensor.nbytes // ALIGNED) * ALIGNED
        return tensor.new_empty(0)

    rest = dataclasses.replace(prepared, batch=prepared.batch.map_tensors(take))
    buffer = _shared(size)
    for tensor, place in zip(tensors, places, strict=True):
        _view(buffer, *place).copy_(tensor)
    return Packed(buffer, tuple(places), rest)


class Sent(Dataset[Packed | Refused]):
    """A dataset of micro-batches as a worker sends them."""

    def __init__(self, micro_batches: Dataset[Prepared]) -> None:
        self.micro_batches = micro_batches

    def __getitem__(self, number: int) -> Packed | Refused:
        try:
            return pack(self.micro_batches[number])
        except UserError as error:
            return Refused(str(error))


def _shared(size: int) -> Tensor:
    try:
        # As torch's own collating does: `share_memory_` would copy what nobody has written yet.
        storage = torch.UntypedStorage._new_shared(size)
    except (RuntimeError, OSError) as error:  # torch knows one kind of error, whose last words are the system's
        if isinstance(error, RuntimeError) and "shared memory" not in str(error):
            raise
        raise UserError(no_room(str(error).rsplit(": ", 1)[-1])) from None
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _view(buffer: Tensor, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    return buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
