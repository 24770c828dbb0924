"""Which elements of which parameters this rank's slice of a ZeRO-1 or -2 group holds; DeepSpeed's layout, in one place.

The parameters of a group are concatenated, some with padding behind them, and the result is cut into one equal slice
per rank. Nothing here imports DeepSpeed; the attributes read from its ZeRO optimizer (0.19.8) are listed in `LAYOUT`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

LAYOUT = (
    "round_robin_bit16_groups",  # parameters in the order in which they are concatenated
    "round_robin_bit16_offsets",  # the first element of each, alignment padding included
    "partition_size",  # elements of one rank's slice
    "real_dp_process_group",  # the ranks that share a group
    "single_partition_of_fp32_groups",  # this rank's slice
    "param_names",
)


class SlicePiece(NamedTuple):
    """`length` elements of the group's n-th parameter: from `first` in it, from `start` in the slice."""

    n: int
    parameter: Tensor
    first: int
    start: int
    length: int


def slice_pieces(zero_optimizer: Any, group: int) -> list[SlicePiece]:
    """Return the pieces of this rank's slice of a group, in the order of their elements; padding belongs to none."""
    size = int(zero_optimizer.partition_size[group])
    begin = size * dist.get_rank(zero_optimizer.real_dp_process_group[group])
    pieces = []
    parameters, offsets = (
        zero_optimizer.round_robin_bit16_groups[group],
        zero_optimizer.round_robin_bit16_offsets[group],
    )
    for n, (p, offset) in enumerate(zip(parameters, offsets, strict=True)):
        low, high = max(offset, begin), min(offset + p.numel(), begin + size)
        if low < high:
            pieces.append(SlicePiece(n, p, low - offset, low - begin, high - low))
    return pieces
