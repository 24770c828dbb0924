"""torch's attention kernels for jagged tensors on a CPU, which has none: written out one sequence after the other.

A GPU runs attention over sequences of many lengths in one kernel, flash or memory-efficient. Inside `varlen_on_cpu`
the CPU has both, forward and backward, behind the very operators that the model
and its autograd call. So everything about that path runs with numbers here, except the GPU's own arithmetic.
What the kernels take for granted they check.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import _scoped_library
from torch.overrides import TorchFunctionMode

from mbsd.batch import Views
from mbsd.model import attention
from mbsd.model.attention import BOTTOM_RIGHT, AttentionPlan

Triple = tuple[Tensor, Tensor, Tensor]


class Draws(TorchFunctionMode):
    """Which attention weights dropout keeps: a function of how many sequences were attended before, all layers counted.

    Kernels ask `kept`. Inside the block, so does the path that attends to one sequence after the other: its dropout
    is the only one of a tensor of four dimensions, [1, heads, L, L]. All other dropout draws from torch's generator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @staticmethod
    def kept(number: int, shape: Any, p: float) -> Tensor:
        """0 or 1 / (1 - p) for each weight [heads, L, L] of the sequence with this number; float32."""
        generator = torch.Generator().manual_seed(1000 + number)
        return (torch.rand(shape, generator=generator) >= p).float() / (1 - p)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.dropout and args[0].ndim == 4:
            weights, p = args[0], (kwargs or {})["p"]
            self.count += 1
            return weights * self.kept(self.count - 1, weights.shape[1:], p)
        return function(*args, **(kwargs or {}))


@dataclass
class Kernels:
    """How often each operator ran, how many sequences the forwards have seen, and how many forwards were causal."""

    calls: list[str] = field(default_factory=list)
    sequences: int = 0
    causal: int = 0

    def flash_forward(  # noqa: PLR0913 (torch's schema names the parameters)
        self, query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, p: float, causal: bool,
        debug: bool, *, scale: float | None = None, **others: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """`aten::_flash_attention_forward`: [T, heads, d] -> the same, and the logarithm of sums [heads, T]."""
        assert not debug and not any(others.values()) and scale is not None
        assert query.shape[-1] % 8 == 0
        self.causal += causal
        triple, cu, longest = (query, key, value), (cu_q, cu_k), (max_q, max_k)
        out, lse_HT, seed = self._forward(triple, cu, longest, p, (scale, causal))
        state = torch.tensor([seed, 0], dtype=torch.uint64)
        return out, lse_HT, state, torch.zeros((), dtype=torch.uint64), query.new_empty(0)

    def flash_backward(  # noqa: PLR0913 (as above)
        self, grad: Any, query: Any, key: Any, value: Any, out: Any, lse_HT: Any, cu_q: Any, cu_k: Any, max_q: int,
        max_k: int, p: float, causal: bool, state: Any, unused: Any, *, scale: float | None = None, **others: Any,
    ) -> Triple:  # fmt: skip
        """`aten::_flash_attention_backward`: gradients of query, key and value."""
        assert not any(others.values()) and scale is not None
        self.calls.append("flash backward")
        check((query, key, value), (cu_q, cu_k), (max_q, max_k))
        seed = int(state.to(torch.int64)[0])
        return backward(
            grad, (query, key, value), out, lse_HT, Run(cu_q.tolist(), cu_k.tolist(), p, scale, seed, causal)
        )

    def efficient_forward(  # noqa: PLR0913 (as above)
        self, query: Any, key: Any, value: Any, bias: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, p: float,
        mask: int, with_sums: bool = False, *, scale: float | None = None, **others: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """`aten::_efficient_attention_forward`: [1, T, heads, d]; sums [S, heads, longest] in steps of 32 rows."""
        assert query.shape[0] == 1 and bias is None and mask in (0, BOTTOM_RIGHT) and not any(others.values())
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        self.causal += mask == BOTTOM_RIGHT
        triple, cu, longest = (query[0], key[0], value[0]), (cu_q, cu_k), (max_q, max_k)
        out, lse_HT, seed = self._forward(triple, cu, longest, p, (scale, mask == BOTTOM_RIGHT))
        spans = list(pairwise(cu_q.tolist()))
        lse_SHL = torch.zeros(len(spans), query.shape[2], -(-max_q // 32) * 32 if with_sums else 0)
        if with_sums:
            for s, (begin, end) in enumerate(spans):
                lse_SHL[s, :, : end - begin] = lse_HT[:, begin:end]
        return out[None], lse_SHL, torch.tensor(seed), torch.tensor(0), max_q, max_k

    def efficient_backward(  # noqa: PLR0913 (as above)
        self, grad: Any, query: Any, key: Any, value: Any, bias: Any, out: Any, cu_q: Any, cu_k: Any, max_q: int,
        max_k: int, lse_SHL: Any, p: float, seed: Any, offset: Any, mask: int, of_bias: bool, *,
        scale: float | None = None, **others: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """`aten::_efficient_attention_backward`: gradients of query, key, value, and none of a bias."""
        assert bias is None and mask in (0, BOTTOM_RIGHT) and not of_bias and not any(others.values())
        self.calls.append("efficient backward")
        triple = (query[0], key[0], value[0])
        check(triple, (cu_q, cu_k), (max_q, max_k))
        spans = cu_q.tolist()
        lse_HT = torch.cat([lse_SHL[s, :, : end - begin] for s, (begin, end) in enumerate(pairwise(spans))], dim=1)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        run = Run(spans, cu_k.tolist(), p, scale, int(seed), mask == BOTTOM_RIGHT)
        grads = backward(grad[0], triple, out[0], lse_HT, run)
        return (*(g[None] for g in grads), torch.empty(0))

    def _forward(
        self, triple: Triple, cu: tuple[Tensor, Tensor], longest: tuple[int, int], p: float,
        scores: tuple[float, bool],
    ) -> tuple[Tensor, Tensor, int]:  # fmt: skip
        self.calls.append("forward")
        check(triple, cu, longest)
        run = Run(cu[0].tolist(), cu[1].tolist(), p, scores[0], self.sequences, scores[1])
        self.sequences += len(run.cu_q) - 1
        return (*forward(triple, run), run.seed)


@dataclass(frozen=True)
class Run:
    """One call: the sequences' first rows of query and of key, dropout's share, what scores are scaled by, the first
    sequence's number, whether a query sees only the keys that end where it stands, the last ones of both together."""

    cu_q: list[int]
    cu_k: list[int]
    p: float
    scale: float
    seed: int
    causal: bool = False

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """[heads, L, L'], -inf where a key is not seen."""
        scores: Tensor = q @ k.transpose(1, 2) * self.scale
        if not self.causal:
            return scores
        rows, columns = scores.shape[1:]
        later = torch.arange(columns) > torch.arange(rows)[:, None] + columns - rows
        return scores.masked_fill(later, -torch.inf)

    def sequences(self) -> Iterator[tuple[int, slice, slice]]:
        """Number of each, its rows of query, its rows of key."""
        for n, spans in enumerate(zip(pairwise(self.cu_q), pairwise(self.cu_k), strict=True)):
            asked, shown = (slice(*span) for span in spans)
            yield self.seed + n, asked, shown

    def kept(self, number: int, weights: Tensor) -> Tensor:
        return Draws.kept(number, weights.shape, self.p) if self.p else torch.ones_like(weights)


def check(triple: Triple, cu: tuple[Tensor, Tensor], longest: tuple[int, int]) -> None:
    """What a GPU's kernels demand, or believe."""
    for starts, most, rows in zip(cu, longest, triple[:2], strict=True):
        assert starts.dtype == torch.int32 and starts.is_contiguous() and starts[0] == 0
        assert starts[-1] == len(rows) and (starts.diff() > 0).all()
        assert most == starts.diff().max(), "the kernels ask for the rows of the longest sequence"
    assert len(cu[0]) == len(cu[1]) and triple[1].shape == triple[2].shape
    assert all(x.stride(-1) == 1 and x.shape[1:] == triple[0].shape[1:] for x in triple)


def forward(triple: Triple, run: Run) -> tuple[Tensor, Tensor]:
    """softmax(q k' scale) v in the inputs' precision, and the logarithm of each softmax's sum; all else in float32."""
    out, lse_HT = torch.empty_like(triple[0]), torch.empty(triple[0].shape[1], len(triple[0]))
    for number, rows, shown in run.sequences():
        of = (rows, shown, shown)
        q, k, v = (x[rows_of].transpose(0, 1).float() for x, rows_of in zip(triple, of, strict=True))
        scores = run.scores(q, k)
        lse_HT[:, rows] = scores.logsumexp(-1)
        weights = (scores - lse_HT[:, rows, None]).exp()
        out[rows] = (weights * run.kept(number, weights) @ v).transpose(0, 1).to(out.dtype)
    return out, lse_HT


def backward(grad: Tensor, triple: Triple, out: Tensor, lse_HT: Tensor, run: Run) -> Triple:
    """From the forward's output and sums alone, as the kernels do (FlashAttention, section 3.1 and appendix B)."""
    d_query, d_key, d_value = (torch.full_like(x, torch.nan) for x in triple)
    for number, rows, shown in run.sequences():
        of = ((triple[0], rows), (triple[1], shown), (triple[2], shown), (out, rows), (grad, rows))
        q, k, v, o, do = (x[rows_of].transpose(0, 1).float() for x, rows_of in of)
        weights = (run.scores(q, k) - lse_HT[:, rows, None]).exp()
        kept = run.kept(number, weights)
        through = do @ v.transpose(1, 2) * kept
        scores = weights * (through - (do * o).sum(-1, keepdim=True)) * run.scale
        d_query[rows] = (scores @ k).transpose(0, 1).to(grad.dtype)
        d_key[shown] = (scores.transpose(1, 2) @ q).transpose(0, 1).to(grad.dtype)
        d_value[shown] = ((weights * kept).transpose(1, 2) @ do).transpose(0, 1).to(grad.dtype)
    return d_query, d_key, d_value


@contextmanager
def varlen_on_cpu(kernel: str) -> Iterator[Kernels]:
    """The CPU has both kernels and attends as a GPU does that takes `kernel`, "flash" or "efficient"; nothing stays."""
    kernels = Kernels()

    def of(views: Views) -> AttentionPlan:
        return AttentionPlan.at_once(views, (9, 0))

    with _scoped_library("aten", "IMPL") as library, pytest.MonkeyPatch.context() as patch:
        for name in ("flash", "efficient"):
            library.impl(f"_{name}_attention_forward", getattr(kernels, f"{name}_forward"), "CPU")
            library.impl(f"_{name}_attention_backward", getattr(kernels, f"{name}_backward"), "CPU")
        patch.setattr(attention, "runs_flash", lambda *_: kernel == "flash")
        patch.setattr(AttentionPlan, "of", of)
        yield kernels
