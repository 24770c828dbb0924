"""FashionBERT: several losses weighed by their own sizes (Gao et al. 2020, "adaptive loss").

The paper looks for weights w of K losses that sum to 1, and finds with Lagrange's multipliers

    w_i = 1 / (K - g_i^2) / sum_j 1 / (K - g_j^2)

where g_i is how fast loss i moves. The authors' code (EasyTransfer, scripts/fashion_bert/pretrain_main.py) takes for g
the softmax of the losses themselves, so that the larger loss has the larger weight, and so does this file.
"""

from __future__ import annotations

import torch
from torch import Tensor


def adaptive_weights(losses_K: Tensor) -> Tensor:
    """[K], of sum 1, from K losses; every weight lies between (K - 1) / K and K / (K - 1) times its neighbours'."""
    count = losses_K.shape[0]
    inverse_K = 1 / (count - losses_K.softmax(0).square())
    return inverse_K / inverse_K.sum()


def adaptive_loss(losses_K: Tensor, through_weights: bool) -> tuple[Tensor, Tensor]:
    """The weighted sum of K losses (0-d), and its derivative by each of them ([K]); no graph.

    With both, micro-batches that know the global batch's losses alone give its value and its gradient
    (`share_of_loss`).

    Args:
        losses_K: of the global batch.
        through_weights: the weights are functions of the losses, and derived too, as in the authors' code, which stops
            no gradient there; else they are constants, as where the paper solves for them.
    """
    leaf_K = losses_K.detach().requires_grad_()
    with torch.enable_grad():
        weights_K = adaptive_weights(leaf_K)
        value = (weights_K * leaf_K).sum()
    if not through_weights:
        return value.detach(), weights_K.detach()
    return value.detach(), torch.autograd.grad(value, leaf_K)[0]


def share_of_loss(value: Tensor, derivative_K: Tensor, losses_K: Tensor) -> Tensor:
    """A loss with the global batch's value, whose gradient is one micro-batch's share of the global one, 0-d.

    Args:
        value, derivative_K: of `adaptive_loss`.
        losses_K: this micro-batch's; their mean over ranks and micro-steps is the global batch's.
    """
    return value + (derivative_K * (losses_K - losses_K.detach())).sum()
