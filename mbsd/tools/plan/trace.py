"""One forward and backward of a real training step on torch's meta device: shapes without memory or arithmetic.

The bytes that autograd saves, the peak of memory and each kernel's FLOPs and bytes are read from the operations
themselves, so a change of the model needs no change here. Where torch calls other operations on a GPU than on the meta
device, the GPU's are traced (`_AsOnGpu`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

R = TypeVar("R")

# Of an attention kernel over sequences of many lengths: how many products of the size of its scores it takes.
PRODUCTS = {
    torch.ops.aten._flash_attention_forward: 2,
    torch.ops.aten._flash_attention_backward: 5,
    torch.ops.aten._efficient_attention_forward: 2,
    torch.ops.aten._efficient_attention_backward: 5,
}


@dataclass(frozen=True)
class Kernel:
    """One operation that moves data: FLOPs of its matrix products (0: none), and bytes that it reads and writes."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Once:
    """Memory and kernels of what a step does once for its whole global batch, beside its micro-batches.

    Attributes:
        kept: bytes that stay until the last micro-step.
        peak: most bytes alive while it is done, those of `kept` among them.
        kernels: of it, in order.
        encoding: kernels of the forward that each micro-batch has before, without graph; none: there is no such.
        exchanged: bytes of all ranks together that each rank gathers.
    """

    kept: int
    peak: int
    kernels: list[Kernel]
    encoding: list[Kernel]
    exchanged: int


@dataclass(frozen=True)
class Trace:
    """Memory and kernels of one micro-batch's forward and backward.

    Attributes:
        saved: bytes that autograd saves for the backward, without weights.
        peak: most bytes alive at once, without weights; each parameter's gradient is freed once it is complete.
        kernels: of forward and backward, in order.
        once: what the step does once for its whole global batch; None: nothing of size.
    """

    saved: int = 0
    peak: int = 0
    kernels: list[Kernel] = field(default_factory=list)
    once: Once | None = None

    @property
    def flops(self) -> float:
        """FLOPs of all matrix products."""
        return sum(kernel.flops for kernel in self.kernels)


class SavedBytes:
    """Sums the distinct storages that autograd saves inside the block, except those of `module`'s parameters.

    Args:
        counted: a ledger whose storages are counted already.

    Attributes:
        bytes: the sum, once the block has ended.
    """

    def __init__(self, module: nn.Module, counted: Ledger | None = None) -> None:
        self._not_these = {p.untyped_storage()._cdata for p in module.parameters()}
        self._not_these |= counted.alive if counted is not None else set()
        self._storages: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._not_these:
            self._storages[storage._cdata] = storage
        return tensor

    def __enter__(self) -> SavedBytes:
        """Start counting."""
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Set `bytes` and release the storages."""
        self._hooks.__exit__(*error)
        self.bytes = sum(storage.nbytes() for storage in self._storages.values())
        self._storages.clear()


def trace_step(
    step: nn.Module, run: Callable[[], Tensor], *lengths: Sequence[int], counted: Ledger | None = None
) -> Trace:
    """Trace the forward `run`, which returns the loss of the module `step` on the meta device, and its backward.

    Args:
        lengths: tokens of each sequence that is attended; of every set of sequences that is attended by itself.
        counted: what `run` reads and another trace counts.
    """
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        for p in step.parameters()
        if p.requires_grad
    ]
    ledger = Ledger(*lengths)
    with _AsOnGpu(), ledger:
        with SavedBytes(step, counted) as saved:
            loss = run()
        torch.autograd.backward(loss)  # loss.backward() would leave the dispatch mode, and so miss recomputed layers
    for hook in hooks:
        hook.remove()
    return Trace(saved.bytes, ledger.peak, ledger.kernels)


def trace_once(run: Callable[[], R], *lengths: Sequence[int]) -> tuple[R, Ledger]:
    """What `run` returns, and what it does on the meta device without graph; `lengths` as of `trace_step`."""
    with torch.no_grad(), _AsOnGpu(), Ledger(*lengths) as ledger:
        found = run()
    return found, ledger


class _AsOnGpu(TorchFunctionMode):
    """Dropout as torch calls it on a GPU and not on the meta device: one kernel, which keeps a byte an element."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout and kwargs["training"] and 0 < kwargs["p"] < 1:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        return function(*args, **kwargs)


class Ledger(TorchDispatchMode):
    """Records each operation's cost, and the bytes of all storages alive.

    Args:
        lengths: of the sequences, for the FLOPs of attention: its arguments on the meta device do not tell them, but
            how many tokens they have together, by which the set is found. None: attention counts no FLOPs.
    """

    def __init__(self, *lengths: Sequence[int]) -> None:
        super().__init__()
        self._scores = {sum(some): sum(n * n for n in some) for some in lengths}
        self.live, self.peak = 0, 0
        self.kernels: list[Kernel] = []
        self._storages: dict[int, weakref.ref[Any]] = {}

    @property
    def alive(self) -> set[int]:
        """Which storages are alive."""
        return set(self._storages)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = META.get(operation, operation)(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        read = {x.untyped_storage()._cdata for x in inputs}
        made = [x for x in outputs if x.untyped_storage()._cdata not in read]  # the others are views, weights' too
        for tensor in made:
            self._note(tensor)
        if made or operation._schema.is_mutable:
            flops = self._flops(operation, args, kwargs or {}, out)
            self.kernels.append(Kernel(flops, float(sum(_bytes(x) for x in inputs + outputs))))
        return out

    def _flops(self, operation: Any, args: Any, kwargs: Any, out: Any) -> float:
        if operation.overloadpacket in PRODUCTS:
            *_, heads, size = args[1].shape
            counts = [tensor.shape[-3] for tensor in args[:3]]  # of query and key, and of a gradient where there is one
            rows = max(counts)
            # Where the first tokens alone ask, each token is looked at once.
            scores = 0 if not self._scores else self._scores[rows] if min(counts) == rows else rows
            return float(2 * PRODUCTS[operation.overloadpacket] * scores * heads * size)
        count = flop_registry.get(operation.overloadpacket)
        return float(count(*args, **kwargs, out_val=out)) if count is not None else 0.0

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _efficient_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    """Gradients of query, key and value, and none of a bias."""
    return (*(torch.empty_like(x) for x in (query, key, value)), query.new_empty(()))


# What torch 2.10 cannot do on the meta device: its function for this one has other arguments than the operation.
META = {torch.ops.aten._efficient_attention_backward.default: _efficient_backward}


def _bytes(tensor: Tensor) -> int:
    """Bytes that a kernel reads or writes of a tensor: an expanded one is no larger than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
