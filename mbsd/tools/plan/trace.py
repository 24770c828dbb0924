"""One forward and backward of a real training step on torch's meta device: shapes without memory or arithmetic.

The bytes that autograd saves, the peak of memory and each kernel's FLOPs and bytes are read from the operations
themselves, so a change of the model needs no change here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


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


def trace_step(step: nn.Module, run: Callable[[], Tensor]) -> Trace:
    """Trace the forward `run`, which returns the loss of the module `step` on the meta device, and its backward."""
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        for p in step.parameters()
        if p.requires_grad
    ]
    ledger = Ledger()
    with _EfficientAttention(), ledger:
        with SavedBytes(step) as saved:
            loss = run()
        torch.autograd.backward(loss)  # loss.backward() would leave the dispatch mode, and so miss recomputed layers
    for hook in hooks:
        hook.remove()
    return Trace(saved.bytes, ledger.peak, ledger.kernels)


class _EfficientAttention(TorchFunctionMode):
    """Attention by the fused kernel that GPUs since the V100 use for masked sequences, and the meta device does not."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        query, key, value = args
        mask, bias = kwargs.get("attn_mask"), None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
            bias = bias.expand(*query.shape[:3], key.shape[2])
        out, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, kwargs.get("dropout_p", 0.0), False, scale=kwargs.get("scale")
        )
        return out


class Ledger(TorchDispatchMode):
    """Records each operation's cost, and the bytes of all storages alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.kernels: list[Kernel] = []
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for tensor in outputs:
            self._note(tensor)
        read = {x.untyped_storage()._cdata for x in inputs}
        is_view = all(x.untyped_storage()._cdata in read for x in outputs) and not operation._schema.is_mutable
        if not is_view:
            count = flop_registry.get(operation.overloadpacket)
            flops = float(count(*args, **(kwargs or {}), out_val=out)) if count is not None else 0.0
            self.kernels.append(Kernel(flops, float(sum(_bytes(x) for x in inputs + outputs))))
        return out

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


def _bytes(tensor: Tensor) -> int:
    """Bytes that a kernel reads or writes of a tensor: an expanded one is no larger than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
