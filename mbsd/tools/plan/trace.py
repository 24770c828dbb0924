"""One forward and backward of a real training step on torch's meta device: shapes without memory or arithmetic.

The bytes that autograd saves, the peak of memory and each kernel's FLOPs and bytes are read from the operations
themselves, so a change of the model needs no change here. Where torch calls other operations on a GPU than on the meta
device, the GPU's are traced (`_AsOnGpu`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged
from torch.nested._internal.nested_tensor import NestedTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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


@dataclass
class Trace:
    """Memory and kernels of one micro-batch's forward and backward.

    Attributes:
        saved: bytes that autograd saves for the backward, without weights.
        peak: most bytes alive at once, without weights; each parameter's gradient is freed once it is complete.
        kernels: of forward and backward, in order.
    """

    saved: int = 0
    peak: int = 0
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """FLOPs of all matrix products."""
        return sum(kernel.flops for kernel in self.kernels)


@dataclass(frozen=True)
class Attention:
    """The attention of a micro-batch on a GPU.

    Attributes:
        lengths: tokens of each sequence.
        flash: whether the GPU takes the flash kernel; else the memory-efficient one.
    """

    lengths: tuple[int, ...]
    flash: bool

    def flops(self, products: int, query: Tensor) -> float:
        """FLOPs of so many products of each sequence's [length, length] scores with rows [..., heads, head size]."""
        return 2.0 * products * sum(n * n for n in self.lengths) * query.shape[-2] * query.shape[-1]


class SavedBytes:
    """Sums the distinct storages that autograd saves inside the block, except those of `module`'s parameters.

    Attributes:
        bytes: the sum, once the block has ended.
    """

    def __init__(self, module: nn.Module) -> None:
        self._not_these = {p.untyped_storage()._cdata for p in module.parameters()}
        self._storages: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = _rows(tensor).untyped_storage()
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


def trace_step(step: nn.Module, run: Callable[[], Tensor], attention: Attention) -> Trace:
    """Trace the forward `run`, which returns the loss of the module `step` on the meta device, and its backward."""
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        for p in step.parameters()
        if p.requires_grad
    ]
    ledger = Ledger(attention)
    with _AsOnGpu(attention), ledger:
        with SavedBytes(step) as saved:
            loss = run()
        torch.autograd.backward(loss)  # loss.backward() would leave the dispatch mode, and so miss recomputed layers
    for hook in hooks:
        hook.remove()
    return Trace(saved.bytes, ledger.peak, ledger.kernels)


class _AsOnGpu(TorchFunctionMode):
    """Operations that torch calls on a GPU and not on the meta device.

    Dropout is one kernel, which keeps a byte for each element. Attention over a jagged tensor is one of the two kernels
    for sequences of many lengths, which keep their output and the logarithm of each softmax's sum.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self._attention = attention

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout and kwargs["training"] and 0 < kwargs["p"] < 1:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        if function is F.scaled_dot_product_attention and args[0].is_nested:
            return self._attend(args, kwargs.get("dropout_p", 0.0), kwargs.get("scale"))
        return function(*args, **kwargs)

    def _attend(self, triple: tuple[NestedTensor, ...], dropout: float, scale: float | None) -> Tensor:
        """As `torch.nested` does: query, key, value [S, heads, jagged, size] as rows [T, heads, size], and back."""
        offsets_S, longest = triple[0].offsets(), max(self._attention.lengths)
        starts_S = offsets_S.to(torch.int32)
        q, k, v = (x.transpose(1, 2).values() for x in triple)
        if self._attention.flash:
            rows, *_ = torch.ops.aten._flash_attention_forward(
                q, k, v, starts_S, starts_S, longest, longest, dropout, False, False, scale=scale
            )
        else:
            rows, *_ = torch.ops.aten._efficient_attention_forward(
                q[None], k[None], v[None], None, starts_S, starts_S, longest, longest, dropout, 0, True, scale=scale
            )
            rows = rows[0]
        shortest = min(self._attention.lengths)
        return nested_tensor_from_jagged(rows, offsets_S, min_seqlen=shortest, max_seqlen=longest).transpose(1, 2)


class Ledger(TorchDispatchMode):
    """Records each operation's cost, and the bytes of all storages alive.

    Args:
        attention: for the FLOPs of kernels over many lengths, which their arguments on the meta device do not tell.
    """

    def __init__(self, attention: Attention | None = None) -> None:
        super().__init__()
        self._attention = attention
        self.live, self.peak = 0, 0
        self.kernels: list[Kernel] = []
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = META.get(operation, operation)(*args, **(kwargs or {}))
        inputs = [_rows(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [_rows(x) for x in tree_leaves(out) if isinstance(x, Tensor)]
        read = {x.untyped_storage()._cdata for x in inputs}
        made = [x for x in outputs if x.untyped_storage()._cdata not in read]  # the others are views, weights' too
        for tensor in made:
            self._note(tensor)
        if made or operation._schema.is_mutable:
            flops = self._flops(operation, args, kwargs or {}, out)
            self.kernels.append(Kernel(flops, float(sum(_bytes(x) for x in inputs + outputs))))
        return out

    def _flops(self, operation: Any, args: Any, kwargs: Any, out: Any) -> float:
        if self._attention is not None and operation.overloadpacket in PRODUCTS:
            return self._attention.flops(PRODUCTS[operation.overloadpacket], args[1])
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


def _rows(tensor: Tensor) -> Tensor:
    """A jagged tensor's rows; any other tensor itself."""
    return tensor._values if isinstance(tensor, NestedTensor) else tensor


def _bytes(tensor: Tensor) -> int:
    """Bytes that a kernel reads or writes of a tensor: an expanded one is no larger than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
