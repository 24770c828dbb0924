"""Stage 2: query-item matching with SDMI, the self-distillation from the stronger to the weaker modality (Eq. 3-11).

Everything is computed from logits in float32 with softplus and logsigmoid, so value and gradient stay finite where a
probability rounds to 0 or 1. No boolean indexing, no data-dependent shape, no host synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SdmiLoss:
    """The loss of Eq. 11, its five terms (scalars), and what tells how unequal the modalities are.

    Attributes:
        text_stronger: share of samples whose text view is the stronger (no gradient).
        weight: mean w_i (no gradient).
    """

    loss: Tensor
    qi: Tensor
    qt: Tensor
    qv: Tensor
    kl: Tensor
    rs: Tensor
    text_stronger: Tensor
    weight: Tensor


def match_loss(logits_B: Tensor, labels_B: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the batch (Eq. 3-5)."""
    logits_B = logits_B.to(torch.promote_types(logits_B.dtype, torch.float32))
    labels_B = labels_B.to(logits_B.dtype)
    # Not torch's own: it takes sigmoid(z) - y, which loses a sure sample's gradient to rounding (1% at z = 12).
    return (labels_B * F.softplus(-logits_B) + (1 - labels_B) * F.softplus(logits_B)).mean()


def sdmi_loss(
    logits_VB: Tensor,
    h_VBD: Tensor,
    labels_B: Tensor,
    *,
    variant: Literal["paper", "released"] = "paper",
    unimodal_losses: bool = True,
    distillation: bool = True,
    weight: Literal["adaptive"] | float = "adaptive",
) -> SdmiLoss:
    """The SDMI loss of a micro-batch.

    Args:
        logits_VB: [3, B], the full, text and image views' logits z, z^t, z^v.
        h_VBD: [3, B, D], the representations of the same views.
        labels_B: 0 or 1.
        variant: `paper`: KL(p^w || p^s), batch means over all N samples (Eq. 7, 10), teacher constant in both terms.
            `released`, the authors' code: KL(p^s || p^w), means over the selected samples of each direction, and
            L_RS with gradient through both sides.
        unimodal_losses: L_QT and L_QV (Eq. 4, 5); off they are reported but not trained on.
        distillation: L_KL and L_RS (Eq. 10); the same.
        weight: `adaptive` is w_i = |p^s - p^w| where the strong view is right, else 0 (Eq. 9); a number replaces
            |p^s - p^w|.
    """
    dtype = torch.promote_types(logits_VB.dtype, torch.float32)
    logits_VB, h_VBD, labels_B = logits_VB.to(dtype), h_VBD.to(dtype), labels_B.to(dtype)
    qi, qt, qv = (match_loss(logits_B, labels_B) for logits_B in logits_VB)

    _, zt, zv = logits_VB
    _, ht, hv = h_VBD
    # Eq. 6 in logits: the strong view is the one further on the label's side.
    side = 2 * labels_B - 1
    text_strong = side * zt > side * zv
    zs, zw = torch.where(text_strong, zt, zv).detach(), torch.where(text_strong, zv, zt)
    hs, hw = torch.where(text_strong[:, None], ht, hv), torch.where(text_strong[:, None], hv, ht)
    right = (side * zs > 0).to(dtype)
    if weight == "adaptive":
        # |p^s - p^w|, factored: a difference of two probabilities near 1 keeps no digits.
        a, b = side * zs, side * zw.detach()
        w = right * torch.sigmoid(a) * torch.sigmoid(-b) * -torch.expm1(b - a)
    else:
        w = right * float(weight)

    if variant == "paper":
        kl = (w * bernoulli_kl(zw, zs)).mean()
        rs = (w * (hs.detach() - hw).square().mean(-1)).mean()
    else:
        kl = _mean_by_direction(w * bernoulli_kl(zs, zw), right, text_strong)
        rs = _mean_by_direction(w * (hs - hw).square().mean(-1), right, text_strong)

    loss = qi
    if unimodal_losses:
        loss = loss + qt + qv
    if distillation:
        loss = loss + kl + rs
    return SdmiLoss(loss, qi, qt, qv, kl, rs, text_strong.to(dtype).mean(), w.mean())


def bernoulli_kl(za: Tensor, zb: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(za)) || Bernoulli(sigmoid(zb))), elementwise, from logits (Eq. 7)."""
    yes, no = F.logsigmoid(za), F.logsigmoid(-za)
    # exp(logsigmoid), because the derivative of torch.sigmoid is p * (1 - p) with a rounded 1 - p.
    return yes.exp() * (yes - F.logsigmoid(zb)) + no.exp() * (no - F.logsigmoid(-zb))


def _mean_by_direction(values_B: Tensor, right_B: Tensor, text_strong_B: Tensor) -> Tensor:
    """The released reduction: the mean over the selected samples of each direction, the two added."""
    total = values_B.new_zeros(())
    for direction in (text_strong_B, ~text_strong_B):
        selected = right_B * direction.to(values_B.dtype)
        total = total + (selected * values_B).sum() / (selected.sum() + 1e-6)
    return total
