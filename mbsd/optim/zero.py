"""Between ZeRO's flat slices and LAMB's tensors: which slice of which tensor a rank owns, and the norms of the whole.

ZeRO-1 and -2 concatenate the parameters of a group, cut the result into one equal slice per rank and give the optimizer
only this rank's slice, in float32. A tensor may straddle a cut, so its norm is a sum over ranks: one all-reduce of 2 N
doubles per group and step, for the N tensors of the group. Nothing here imports DeepSpeed; its layout is described in
`mbsd.optim.zero_layout`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.errors import UserError
from mbsd.optim.lamb import Lamb
from mbsd.optim.zero_layout import LAYOUT, slice_pieces


@dataclass(frozen=True)
class FlatShard:
    """This rank's slice of a group: the `mbsd.optim.lamb.Shard` of ZeRO-1 and -2."""

    names: tuple[str, ...]  # N, in the order in which they are concatenated
    owned: slice  # the P consecutive tensors of which this slice holds a part
    spans: tuple[tuple[int, int], ...]  # P × (first element, elements) within the slice
    process_group: dist.ProcessGroup | None

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the P views of `flat`; padding, at the end or between tensors, belongs to none of them."""
        return [flat.narrow(0, first, length) for first, length in self.spans]

    def whole_norms(self, norms_2P: Tensor) -> Tensor:
        """Return norms_2N from norms_2P (float64): a collective call, also of ranks that own only padding."""
        squares_2N = norms_2P.new_zeros(2, len(self.names))
        squares_2N[:, self.owned] = norms_2P.square()
        dist.all_reduce(squares_2N, group=self.process_group)
        return squares_2N.sqrt_()


def bind(lamb: Lamb, zero_optimizer: Any) -> None:
    """Give `lamb` the layout of its flat slices; call it once, right after `deepspeed.initialize`. Collective.

    `zero_optimizer` is `engine.optimizer` at any ZeRO stage ≤ 2; without ZeRO there is nothing to bind. Loading a
    checkpoint, DeepSpeed's or a universal one, copies into the bound slices and needs no second call; a new engine
    does.

    Raises:
        UserError: a ZeRO stage or wrapper that is not supported.
        RuntimeError: a slice does not hold the values of its tensors; on every rank alike.
    """
    if zero_optimizer is lamb:
        return
    kind = type(zero_optimizer).__name__
    if hasattr(zero_optimizer, "fp16_groups") and hasattr(zero_optimizer, "fp32_groups"):
        return take_back_first_step(lamb, zero_optimizer)
    if missing := [name for name in LAYOUT if not hasattr(zero_optimizer, name)]:
        raise UserError(
            f"zero_optimization: found DeepSpeed's {kind} (no {missing[0]}), expected ZeRO stage 0, 1 or 2 for Lamb; "
            "set zero_optimization.stage to 2 and leave data_types.grad_accum_dtype out"
        )
    if getattr(zero_optimizer, "cpu_offload", False):
        raise UserError("zero_optimization.offload_optimizer: found cpu, expected none for Lamb; remove it")
    if zero_optimizer.optimizer is not lamb:
        raise RuntimeError("bind was given another Lamb than deepspeed.initialize")
    flats: list[Tensor] = zero_optimizer.single_partition_of_fp32_groups
    lamb.shards = {flat: _shard(zero_optimizer, i, flat) for i, flat in enumerate(flats)}


def _shard(zero_optimizer: Any, i: int, flat: Tensor) -> FlatShard:
    """Return the layout of group `i`, after comparing each piece with the values of its tensor."""
    process_group = zero_optimizer.real_dp_process_group[i]
    pieces = slice_pieces(zero_optimizer, i)
    spans = tuple((start, length) for *_, start, length in pieces)
    owned = slice(pieces[0].n, pieces[-1].n + 1) if pieces else slice(0, 0)

    same = [  # a master that has moved still rounds to the model's value
        torch.equal(flat.narrow(0, start, length).to(p.dtype), p.flatten().narrow(0, first, length))
        for _, p, first, start, length in pieces
    ]
    contiguous = all(b.n == a.n + 1 for a, b in itertools.pairwise(pieces))
    size = int(zero_optimizer.partition_size[i])
    agreed = torch.tensor(int(all(same) and contiguous and flat.numel() == size), device=flat.device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=process_group)
    if not agreed.item():
        raise RuntimeError(
            f"param group {i}: a slice of DeepSpeed's flat fp32 partition does not hold its parameter's values; "
            "its layout has changed since 0.19.8 (see mbsd.optim.zero_layout.LAYOUT)"
        )
    names = tuple(zero_optimizer.param_names[p] for p in zero_optimizer.round_robin_bit16_groups[i])
    return FlatShard(names, owned, spans, process_group)


def take_back_first_step(optimizer: torch.optim.Optimizer, wrapper: Any) -> None:
    """Undo the step that fp16 and bf16 without ZeRO take at construction to allocate the optimizer's state.

    Its gradients are 0, but with weight decay its update is not: every float32 master lost a share of itself, and the
    first real step would be counted as the second. Elsewhere nothing is changed.

    Args:
        wrapper: DeepSpeed's FP16_UnfusedOptimizer (a master for each parameter) or FP16_Optimizer (one for each group).
    """
    if not hasattr(wrapper, "fp16_groups"):
        return
    flats = getattr(wrapper, "fp32_groups_flat", None)
    for i, models in enumerate(wrapper.fp16_groups):
        masters = wrapper.fp32_groups[i] if flats is None else [flats[i]]
        values = models if flats is None else [torch.cat([model.detach().reshape(-1) for model in models])]
        for value, master in zip(values, masters, strict=True):
            master.data.copy_(value.data)
            optimizer.state.pop(master, None)
    for group in optimizer.param_groups:
        group.pop("step", None)  # DeepSpeed's FusedAdam counts there
