"""Stage 2: query-item matching with SDMI, the self-distillation from the stronger to the weaker modality (Eq. 3-11).

Everything is computed from logits in float32 with softplus and logsigmoid, so value and gradient stay finite where a
probability rounds to 0 or 1. No boolean indexing, no data-dependent shape, no host synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SdmiLoss:
    """The loss of Eq. 11, its terms, and how unequal the modalities are; all 0-d.

    Attributes:
        loss: the sum of the terms that are trained on.
        qi, qt, qv: binary cross-entropy of the full, text and image views (Eq. 3-5).
        kl, rs: distillation of probabilities (Eq. 7) and of representations, weighted by w_i (Eq. 10).
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
    """Binary cross-entropy of logits, mean over the batch (Eq. 3-5); 0-d, at least float32."""
    logits_B = logits_B.to(torch.promote_types(logits_B.dtype, torch.float32))
    labels_B = labels_B.to(logits_B.dtype)
    # Not torch's own: its gradient sigmoid(z) - y cancels where a sample is nearly certain (1% error at z = 12).
    return (labels_B * F.softplus(-logits_B) + (1 - labels_B) * F.softplus(logits_B)).mean()


def sdmi_loss(  # noqa: PLR0913 (a kernel: three tensors and the switches of Eq. 11)
    logits_VB: Tensor,
    h_VBD: Tensor,
    labels_B: Tensor,
    *,
    variant: Literal["paper", "released"] = "paper",
    unimodal_losses: bool = True,
    distillation: bool = True,
    weight: Literal["adaptive"] | float = "adaptive",
) -> SdmiLoss:
    """The SDMI loss (Eq. 11) of a micro-batch, in at least float32.

    Args:
        logits_VB: [3, B], the full, text and image views' logits z, z^t, z^v.
        h_VBD: [3, B, D], the representations of the same views.
        labels_B: 0 or 1.
        variant: `paper`: KL(p^w || p^s), batch means over all N samples (Eq. 7, 10), teacher constant in both terms.
            `released`, the authors' code: KL(p^s || p^w), means over the selected samples of each direction, and
            L_RS with gradient through both sides.
        unimodal_losses: train on L_QT and L_QV (Eq. 4, 5); without, they are only reported.
        distillation: train on L_KL and L_RS (Eq. 10); without, they are only reported.
        weight: `adaptive` is w_i = |p^s - p^w| where the strong view is right, else 0 (Eq. 9); a number replaces
            |p^s - p^w|.
    """
    dtype = torch.promote_types(logits_VB.dtype, torch.float32)
    logits_VB, h_VBD, labels_B = logits_VB.to(dtype), h_VBD.to(dtype), labels_B.to(dtype)
    constant = None if weight == "adaptive" else float(weight)
    apply: Any = _Terms.apply  # untyped in torch
    qi, qt, qv, kl, rs, text_stronger, mean_weight = apply(logits_VB, h_VBD, labels_B, variant == "paper", constant)
    loss = qi
    if unimodal_losses:
        loss = loss + qt + qv
    if distillation:
        loss = loss + kl + rs
    return SdmiLoss(loss, qi, qt, qv, kl, rs, text_stronger, mean_weight)


class _Terms(torch.autograd.Function):
    """The five terms of Eq. 11, the share of stronger texts and the mean weight, with gradients in closed form.

    Autograd's backward of the same formulas takes twice the time. With side = 2y - 1 and p = sigmoid:

        d L_Q / d z = -side p(-side z) / N
        d KL(p^w || p^s) / d z^w = p^w (1 - p^w) (z^w - z^s)      (paper)
        d KL(p^s || p^w) / d z^w = p^w - p^s = -side |p^s - p^w|  (released)
        d (||h^s - h^w||^2 / d) / d h^w = 2 (h^w - h^s) / d       (and its opposite for h^s in the released variant)

    The last three are multiplied by w_i / N, or by w_i over the number of selected samples of its direction (released).
    """

    @staticmethod
    def forward(
        ctx: Any, z_VB: Tensor, h_VBD: Tensor, labels_B: Tensor, paper: bool, constant: float | None
    ) -> tuple[Tensor, ...]:
        """Return L_QI, L_QT, L_QV, L_KL, L_RS, text_stronger and the mean weight, all 0-d."""
        side = 2 * labels_B - 1
        # Eq. 3-5. Not torch's own: its gradient sigmoid(z) - y cancels where a sample is nearly certain.
        a_VB = side * z_VB
        q_V = F.softplus(-a_VB).mean(1)
        d_q_VB = -side * torch.sigmoid(-a_VB) / labels_B.shape[0]

        # Eq. 6 in logits: the stronger view has the logit further on the label's side.
        text_strong = a_VB[1] > a_VB[2]
        strong, weak = torch.where(text_strong, z_VB[1:], z_VB[1:].flip(0))
        sure, unsure = side * strong, side * weak
        right = (sure > 0).to(z_VB.dtype)
        # |p^s - p^w|, factored, because the difference of two probabilities near 1 cancels.
        apart = torch.sigmoid(sure) * torch.sigmoid(-unsure) * -torch.expm1(unsure - sure)
        w = right * (apart if constant is None else constant)
        share = w / labels_B.shape[0] if paper else w * _share_of_direction(right, text_strong)
        if paper:
            kl = (share * bernoulli_kl(weak, strong)).sum()
            d_kl_B = share * torch.sigmoid(weak) * torch.sigmoid(-weak) * (weak - strong)
        else:
            kl = (share * bernoulli_kl(strong, weak)).sum()
            d_kl_B = -share * side * apart
        text_less_image_BD = h_VBD[1] - h_VBD[2]
        rs = (share * text_less_image_BD.square().mean(-1)).sum()
        ctx.paper = paper
        ctx.save_for_backward(d_q_VB, d_kl_B, text_strong, text_less_image_BD, 2 * share / h_VBD.shape[2])
        means = text_strong.to(z_VB.dtype).mean(), w.mean()
        ctx.mark_non_differentiable(*means)
        return *q_V.unbind(), kl, rs, *means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of z_VB and h_VBD."""
        d_q_VB, d_kl_B, text_strong, text_less_image_BD, share_B = ctx.saved_tensors
        by_kl, by_rs = gradients[3] * d_kl_B, gradients[4] * share_B
        nothing = torch.zeros_like(by_kl)
        student_VB = torch.stack([nothing, nothing.where(text_strong, by_kl), by_kl.where(text_strong, nothing)])
        d_z_VB = d_q_VB * torch.stack(gradients[:3])[:, None] + student_VB
        # The text's gradient is along text - image, the image's against it; a teacher has none in the paper's variant.
        of_text, of_image = by_rs, -by_rs
        if ctx.paper:
            of_text, of_image = nothing.where(text_strong, of_text), of_image.where(text_strong, nothing)
        d_h_VBD = torch.stack([nothing, of_text, of_image])[..., None] * text_less_image_BD
        return d_z_VB, d_h_VBD, None, None, None


def bernoulli_kl(za: Tensor, zb: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(za)) || Bernoulli(sigmoid(zb))), elementwise, from logits (Eq. 7)."""
    yes, no = F.logsigmoid(za), F.logsigmoid(-za)
    # exp(logsigmoid), because the derivative of torch.sigmoid is p * (1 - p) with a rounded 1 - p.
    return yes.exp() * (yes - F.logsigmoid(zb)) + no.exp() * (no - F.logsigmoid(-zb))


def _share_of_direction(right_B: Tensor, text_strong_B: Tensor) -> Tensor:
    """The released reduction, a mean over the selected samples of each direction: 1 / count of a sample's direction."""
    text = right_B * text_strong_B.to(right_B.dtype)
    return torch.where(text_strong_B, 1 / (text.sum() + 1e-6), 1 / ((right_B - text).sum() + 1e-6))
