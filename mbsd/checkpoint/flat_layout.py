"""Which elements of which parameters lie where in the optimizer's flat tensors, without what DeepSpeed wraps around it.

Master weights and moments are saved as each rank holds them, with this map beside them. Parameters are named, so that
any other world size, ZeRO stage, order or padding finds its elements again: what DeepSpeed's universal checkpoint is
for, without a conversion, and without its trouble with ranks that own only padding and with `round_robin_gradients`.
Where DeepSpeed does not slice, the attributes read are those of 0.19.8; every piece is compared with its parameter's
values when the map is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.errors import UserError
from mbsd.optim.zero_layout import slice_pieces


class Piece(NamedTuple):
    """`length` elements of a parameter: from `first` in the flattened parameter, from `start` in the flat tensor."""

    name: str
    first: int
    start: int
    length: int


@dataclass(frozen=True)
class Flat:
    """One tensor that the optimizer updates: 32-bit weights, its state under the same key in `optimizer.state`."""

    key: str
    master: Tensor
    group: int
    """Its index in `optimizer.param_groups`."""
    pieces: tuple[Piece, ...]
    mine: bool
    """This rank saves it: its own slice, or, where all ranks hold the same, its share of the work."""


@dataclass(frozen=True)
class Layout:
    """The optimizer's tensors of this rank, and what no optimizer holds."""

    flats: tuple[Flat, ...]
    sliced: bool
    """ZeRO 1 or 2: each rank holds a slice; else each holds everything."""
    shapes: dict[str, list[int]]
    """Parameter -> shape, of those that are optimized."""


def read_layout(engine: Any) -> Layout:
    """The map of an engine (collective).

    Raises:
        UserError: a wrapper whose order is not known.
        RuntimeError: a piece does not hold its parameter's values: DeepSpeed's layout is not what it was.
    """
    optimizer, names = engine.optimizer, engine.param_names
    if hasattr(optimizer, "round_robin_bit16_groups"):
        flats = list(_zero(optimizer, names))
    elif hasattr(optimizer, "fp16_groups") and hasattr(optimizer, "fp32_groups_flat"):
        flats = [
            _whole(f"group{i}", flat, i, params, names)
            for i, (params, flat) in enumerate(zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True))
        ]
    elif hasattr(optimizer, "fp16_groups") and hasattr(optimizer, "fp32_groups"):
        flats = [
            _whole(names[p], master, i, [p], names)
            for i, (params, masters) in enumerate(zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True))
            for p, master in zip(params, masters, strict=True)
        ]
    elif optimizer is engine.basic_optimizer:
        flats = [
            _whole(names[p], p, i, [p], names)
            for i, group in enumerate(optimizer.param_groups)
            for p in group["params"]
        ]
    else:
        raise UserError(
            f"DeepSpeed's JSON: it wraps the optimizer in {type(optimizer).__name__}, of which checkpoints cannot be "
            "written; leave data_types.grad_accum_dtype out, or set zero_optimization.stage to 2"
        )
    parameters = {name: p for p, name in names.items()}
    shapes = {piece.name: list(parameters[piece.name].shape) for flat in flats for piece in flat.pieces}
    if hasattr(optimizer, "round_robin_bit16_groups"):
        shapes = {names[p]: list(p.shape) for group in optimizer.round_robin_bit16_groups for p in group}
    _compare(flats, parameters)
    return Layout(tuple(flats), hasattr(optimizer, "round_robin_bit16_groups"), shapes)


def write_back(engine: Any, layout: Layout) -> None:
    """Copy the master weights, which were just loaded, into the model's weights (collective)."""
    if layout.sliced:
        engine.optimizer.update_lp_params()
        return
    parameters = {name: p for p, name in engine.param_names.items()}
    for flat in layout.flats:
        for name, first, start, length in flat.pieces:
            parameters[name].data.view(-1).narrow(0, first, length).copy_(flat.master.data.view(-1)[start:][:length])


def _zero(optimizer: Any, names: dict[Tensor, str]) -> Iterator[Flat]:
    for i, flat in enumerate(optimizer.single_partition_of_fp32_groups):
        pieces = (Piece(names[p], first, start, length) for _, p, first, start, length in slice_pieces(optimizer, i))
        yield Flat(f"group{i}", flat, i, tuple(pieces), mine=True)


def _whole(key: str, master: Tensor, group: int, params: list[Tensor], names: dict[Tensor, str]) -> Flat:
    pieces, start = [], 0
    for p in params:
        pieces.append(Piece(names[p], 0, start, p.numel()))
        start += p.numel()
    # Every rank holds the same: they share the writing by the name's letters, the same on each.
    mine = sum(key.encode()) % dist.get_world_size() == dist.get_rank()
    return Flat(key, master, group, tuple(pieces), mine)


def _compare(flats: list[Flat], parameters: dict[str, Tensor]) -> None:
    same = True
    for flat in flats:
        values = flat.master.detach().view(-1)
        for name, first, start, length in flat.pieces:
            p = parameters[name].detach()
            same &= torch.equal(values[start:][:length].to(p.dtype), p.reshape(-1)[first:][:length])
    agreed = torch.tensor(int(same), device=flats[0].master.device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    if not agreed.item():
        raise RuntimeError(
            "a flat tensor of DeepSpeed's optimizer does not hold the values of its parameters; its layout has changed "
            "since 0.19.8 (see mbsd.checkpoint.flat_layout)"
        )
