"""Stage 1's losses against float64 by hand: values, gradients, empty masks, low precision."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from mbsd.objectives.masked import masked_patch_loss, masked_word_loss


def words_by_hand(logits: np.ndarray, labels: list[int]) -> tuple[float, np.ndarray]:
    """-log softmax at the labels, summed, and its gradient: softmax less one at the label."""
    loss, gradient = 0.0, np.zeros_like(logits)
    for k, label in enumerate(labels):
        top = max(logits[k])
        exponentials = [math.exp(value - top) for value in logits[k]]
        total = math.fsum(exponentials)
        loss += top + math.log(total) - logits[k][label]
        gradient[k] = [value / total for value in exponentials]
        gradient[k][label] -= 1
    return loss, gradient


def patches_by_hand(found: np.ndarray, true: np.ndarray, error: str = "absolute") -> tuple[float, np.ndarray]:
    """Each patch's mean error, summed over the patches, and its gradient: the sign, or twice the error, over values."""
    loss, gradient = 0.0, np.zeros_like(found)
    for q in range(len(found)):
        apart = found[q] - true[q]
        loss += math.fsum(apart**2 if error == "squared" else abs(apart)) / len(apart)
        gradient[q] = (2 * apart if error == "squared" else np.sign(apart)) / len(apart)
    return loss, gradient


@pytest.mark.parametrize(("rows", "vocabulary", "scale"), [(1, 7, 1.0), (9, 31, 3.0), (40, 211, 20.0)])
def test_words(rows: int, vocabulary: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    logits = (scale * torch.randn(rows, vocabulary, generator=generator)).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    expected, gradient = words_by_hand(logits.detach().double().numpy(), labels.tolist())
    found = masked_word_loss(logits, labels)
    found.backward()
    assert found.shape == () and found.item() == pytest.approx(expected, rel=1e-5)
    difference = np.linalg.norm(logits.grad.double().numpy() - gradient)
    assert difference <= 1e-5 * np.linalg.norm(gradient)


def test_words_far_apart_stay_finite() -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = masked_word_loss(logits, torch.tensor([1, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(160.0 + 2e4)
    assert logits.grad.numpy() == pytest.approx(np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("error", ["absolute", "squared"])
@pytest.mark.parametrize(("rows", "side"), [(1, 2), (5, 4), (17, 8)])
def test_patches(rows: int, side: int, error: Literal["absolute", "squared"]) -> None:
    generator = torch.Generator().manual_seed(rows)
    found = torch.randn(rows, 3 * side**2, generator=generator)
    true = torch.randn(rows, 3 * side**2, generator=generator)
    found[0, 0] = true[0, 0]  # a value already right pulls in neither direction
    expected, gradient = patches_by_hand(found.double().numpy(), true.double().numpy(), error)
    loss = masked_patch_loss(found.requires_grad_(), true, error)
    loss.backward()
    assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-5)
    assert np.linalg.norm(found.grad.double().numpy() - gradient) <= 1e-5 * np.linalg.norm(gradient)
    assert found.grad[0, 0] == 0


def test_divided_by_their_counts_they_are_the_means_over_what_is_masked() -> None:
    """Two micro-batches with unequal counts: sums over both counts are the mean of the one large batch."""
    generator = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(10, 6, generator=generator), torch.randint(0, 6, (10,), generator=generator)
    pixels, true = torch.randn(10, 12, generator=generator), torch.randn(10, 12, generator=generator)
    words = sum(masked_word_loss(logits[part], labels[part]) for part in (slice(0, 3), slice(3, 10))) / 10
    patches = sum(masked_patch_loss(pixels[part], true[part]) for part in (slice(0, 3), slice(3, 10))) / 10
    log_probability = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    assert words.item() == pytest.approx(-log_probability[range(10), labels].mean().item(), rel=1e-5)
    assert patches.item() == pytest.approx((pixels.double() - true.double()).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_masked_is_zero_with_zero_gradients(dtype: torch.dtype) -> None:
    """The gradient reaches the weights before the empty rows as zeros, not as NaN and not as None."""
    weight = torch.ones(4, 7, dtype=dtype, requires_grad=True)
    rows = torch.ones(5, 4, dtype=dtype)[torch.zeros(0, dtype=torch.int64)] @ weight
    words = masked_word_loss(rows, torch.zeros(0, dtype=torch.int64))
    patches = masked_patch_loss(rows, torch.zeros(0, 7, dtype=dtype))
    assert words.dtype == patches.dtype == torch.float32
    assert words.item() == 0 and patches.item() == 0
    for loss in (words, patches):
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert gradient.shape == weight.shape and not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (20 * torch.randn(300, 50, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(0, 50, (300,), generator=generator)
    words = masked_word_loss(logits, labels)
    expected, _ = words_by_hand(logits.detach().double().numpy(), labels.tolist())
    assert words.dtype == torch.float32 and words.item() == pytest.approx(expected, rel=1e-5)
    pixels = (1000 * torch.randn(300, 48, generator=generator)).to(dtype).requires_grad_()
    true = torch.randn(300, 48, generator=generator)
    patches = masked_patch_loss(pixels, true)
    expected, _ = patches_by_hand(pixels.detach().double().numpy(), true.double().numpy())
    assert patches.dtype == torch.float32 and patches.item() == pytest.approx(expected, rel=1e-5)
    (words + patches).backward()
    assert logits.grad.isfinite().all() and pixels.grad.isfinite().all()
