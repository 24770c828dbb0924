"""The contrastive loss as one writes it by hand: gather all vectors, dense logits, autograd. Of complete rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_KEY
from mbsd.objectives.contrastive import Rule
from mbsd.stages.global_batch import Vectors

APART = 2e-5  # relative, in float32


@dataclass(frozen=True)
class Answer:
    """The loss of the global batch [] and its gradients: of this rank's vectors, and of log scale and bias [1]."""

    loss: Tensor
    image_nE: Tensor
    text_nE: Tensor
    log_scale: Tensor
    bias: Tensor


def plain_answer(mine: Vectors, log_scale: Tensor, bias: Tensor, rule: Rule) -> Answer:
    """By autograd (collective); every rank computes the whole loss, so that its own gradients are complete.

    Args:
        log_scale, bias: [1]; the bias is the sigmoid loss's.
    """
    inputs = [x.detach().requires_grad_() for x in (mine.image_nE, mine.text_nE, log_scale, bias)]
    image_nE, text_nE, log_scale, bias = inputs
    image_NE, text_NE, keys_NK = _gathered(image_nE), _gathered(text_nE), _gathered(mine.keys_nK)
    logits_NN = log_scale.exp() * (image_NE @ text_NE.T)
    itself_NN = torch.eye(len(image_NE), dtype=torch.bool, device=image_NE.device)
    same_NN = itself_NN
    if rule.targets != "own":
        for key_N in keys_NK.unbind(1):
            same_NN = same_NN | ((key_N[:, None] == key_N) & (key_N != NO_KEY))
    if rule.loss == "softmax":
        loss = _softmax(logits_NN, same_NN, itself_NN, rule.targets)
    else:
        positive_NN = itself_NN if rule.targets == "masked" else same_NN
        signed_NN = torch.where(positive_NN, 1.0, -1.0) * (logits_NN + bias)
        losses_NN = -F.logsigmoid(signed_NN)
        if rule.targets == "masked":
            losses_NN = losses_NN.masked_fill(same_NN & ~itself_NN, 0)
        loss = losses_NN.sum() / len(image_NE)
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return Answer(loss.detach(), *gradients)


def _softmax(logits_NN: Tensor, same_NN: Tensor, itself_NN: Tensor, targets: str) -> Tensor:
    if targets == "shared":
        wanted = same_NN / same_NN.sum(1, keepdim=True)
    else:
        wanted = torch.arange(len(logits_NN), device=logits_NN.device)
        logits_NN = logits_NN.masked_fill(same_NN & ~itself_NN, -torch.inf) if targets == "masked" else logits_NN
    return (F.cross_entropy(logits_NN, wanted) + F.cross_entropy(logits_NN.T, wanted)) / 2


def _gathered(x_n: Tensor) -> Tensor:
    """All ranks' rows; this rank's own with their graph."""
    parts = [torch.empty_like(x_n) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x_n.detach())
    parts[dist.get_rank()] = x_n
    return torch.cat(parts)


def require_same(found: Answer, expected: Answer) -> float:
    """The largest relative difference of loss and gradients on this rank.

    Raises:
        RuntimeError: they are not the same loss.
    """
    largest = 0.0
    for name in ("loss", "image_nE", "text_nE", "log_scale", "bias"):
        one, other = getattr(found, name), getattr(expected, name)
        apart = float((one - other).norm() / other.norm().clamp_min(torch.finfo(other.dtype).tiny))
        if not apart <= APART:  # also where it is no number
            raise RuntimeError(
                f"the contrastive loss and the plain one differ in {name} by {apart:.2e} of {float(other.norm()):.6g}, "
                f"expected at most {APART}: nothing is timed"
            )
        largest = max(largest, apart)
    return largest
