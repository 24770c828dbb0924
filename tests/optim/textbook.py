"""LAMB as the paper writes it, tensor by tensor in float64, sharing no line with `mbsd.optim`; and modules to try."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 0.02, 0.9, 0.98, 1e-6, 0.01
STEPS = 20

Gradients = Callable[[int], dict[str, Tensor]]  # step → name → gradient, float64


class Awkward(nn.Module):
    """Sizes that straddle every cut: 91 + 1 + 55 + 51 weights and 5 + 5 + 3 + 1 biases and norms."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(13, 7)
        self.one = nn.Linear(1, 1)
        self.dense = nn.Linear(11, 5, bias=False)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(17, 3)

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        """Return Σ ⟨p, gradient of p⟩: its gradients are those given."""
        return torch.stack([(p * gradients[name].to(p.dtype)).sum() for name, p in self.named_parameters()]).sum()


class Tiny(Awkward):
    """An excluded group of one element: all ranks but the first own padding alone."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        del self.norm
        self.head = nn.Linear(17, 3, bias=False)


def given_gradients(module: nn.Module, step: int, micro: int, rank: int) -> dict[str, Tensor]:
    """Return one rank's gradients (float32), of very different sizes from tensor to tensor."""
    generator = torch.Generator().manual_seed(1_000_000 + 10_000 * step + 100 * micro + rank)
    return {
        name: torch.randn(p.shape, generator=generator) * 10.0 ** (i % 5 - 2) + 0.3
        for i, (name, p) in enumerate(module.named_parameters())
    }


def mean_gradients(module: nn.Module, world_size: int, accumulation: int, clip: float) -> Gradients:
    """Return step → the mean over ranks and micro-batches, its global norm clipped (clip 0: left alone)."""

    def gradients(step: int) -> dict[str, Tensor]:
        drawn = [given_gradients(module, step, m, r) for m in range(accumulation) for r in range(world_size)]
        mean = {name: torch.stack([d[name].double() for d in drawn]).mean(0) for name in drawn[0]}
        norm = float(torch.cat([g.flatten() for g in mean.values()]).norm())
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        return {name: g * scale for name, g in mean.items()}

    return gradients


def learning_rate(step: int) -> float:
    return LR * (1 - step / (2 * STEPS))


def textbook_lamb(
    module: nn.Module,
    gradients: Gradients,
    adapt_excluded: bool = False,
    steps: int = STEPS,
    rate_of: Callable[[str, int], float] = lambda name, step: learning_rate(step),
    adapt: bool = True,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return name → weights and name → last trust ratio (adapted tensors only) after `steps` steps.

    `rate_of`: (name, step) → learning rate. Without `adapt` all ratios are 1: that is AdamW.
    """
    weights = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    m = {name: torch.zeros_like(w) for name, w in weights.items()}
    v = {name: torch.zeros_like(w) for name, w in weights.items()}
    ratios: dict[str, float] = {}
    for step in range(steps):
        for name, g in gradients(step).items():
            excluded = weights[name].ndim == 1
            m[name] = BETA1 * m[name] + (1 - BETA1) * g
            v[name] = BETA2 * v[name] + (1 - BETA2) * g**2
            u = (m[name] / (1 - BETA1 ** (step + 1))) / ((v[name] / (1 - BETA2 ** (step + 1))).sqrt() + EPS)
            if not excluded:
                u = u + WEIGHT_DECAY * weights[name]
            ratio = 1.0
            if adapt and (not excluded or adapt_excluded):
                w_norm, u_norm = float(weights[name].norm()), float(u.norm())
                ratio = w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1.0
                ratios[name] = ratio
            weights[name] = weights[name] - rate_of(name, step) * ratio * u
    return weights, ratios


def worst_relative_error(module: nn.Module, expected: dict[str, Tensor]) -> float:
    """Return max over tensors of ‖found - expected‖ / ‖expected‖."""
    found = {name: p.detach().double() for name, p in module.named_parameters()}
    assert found.keys() == expected.keys()
    return max(float((found[name] - w).norm() / w.norm()) for name, w in expected.items())
