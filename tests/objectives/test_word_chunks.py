"""The word loss in chunks: the same loss, gradients and hits as all logits at once, which never stand in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mbsd.batch import NO_WORD
from mbsd.objectives.masked import masked_word_loss_in_chunks, words_right

WIDTH, VOCABULARY = 12, 97


class LargestTensor(TorchDispatchMode):
    """The elements of the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


def drawn(rows: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return tensors, torch.randint(0, VOCABULARY, (rows,), generator=generator)


@pytest.mark.parametrize(("rows", "at_once"), [(0, 8), (5, 8), (8, 8), (9, 8), (50, 7), (33, 1)])
def test_chunks_are_the_whole(rows: int, at_once: int) -> None:
    tensors, labels = drawn(rows)
    labels[1::5] = NO_WORD
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    logits = wide[0] @ wide[1].T + wide[2]
    asked = labels != NO_WORD
    expected = (logits.logsumexp(-1) - logits.gather(1, labels.clamp_min(0)[:, None])[:, 0])[asked].sum()
    found = masked_word_loss_in_chunks(*tensors, labels, at_once)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(3 * found, tensors)
    for gradient, true in zip(gradients, torch.autograd.grad(3 * expected, wide), strict=True):
        assert (gradient - true).norm() <= 1e-5 * true.norm()
    if rows:
        assert words_right(*tensors, labels, at_once) == ((logits.argmax(-1) == labels) & asked).sum()


def test_nothing_masked_is_nothing_right() -> None:
    tensors, labels = drawn(0)
    assert words_right(*tensors, labels) == 0


def test_no_tensor_holds_more_logits_than_a_chunk() -> None:
    rows, at_once = 640, 64
    tensors, labels = drawn(rows)
    with LargestTensor() as whole:
        masked_word_loss_in_chunks(*tensors, labels, rows).backward()
    assert whole.elements == rows * VOCABULARY
    with LargestTensor() as chunked:
        masked_word_loss_in_chunks(*tensors, labels, at_once).backward()
        words_right(*tensors, labels, at_once)
    assert chunked.elements == max(at_once * VOCABULARY, rows * WIDTH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    tensors, labels = drawn(200, dtype)
    wide = [tensor.detach().double() for tensor in tensors]
    logits = wide[0] @ wide[1].T + wide[2]
    expected = (logits.logsumexp(-1) - logits.gather(1, labels[:, None])[:, 0]).sum()
    found = masked_word_loss_in_chunks(*tensors, labels, 16)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=5e-3)  # the logits themselves are rounded
