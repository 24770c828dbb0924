"""Training steps: a model and its objective as the one module that DeepSpeed wraps.

`forward(batch, norms)` returns named losses and what is watched beside them, `loss` among them, such that their MEAN
over ranks and micro-steps is the value for the whole global batch. `norms(batches)` gives what that takes;
`validate(batches)` reduces over all samples of all ranks exactly, so that world size 1 and N agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.config.stages import SdmiConfig
from mbsd.metrics.binary import binary_metrics
from mbsd.metrics.table_scores import Scores, TableScores, gather_scores
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.heads import MaskedOutput, MbsdForMaskedModelling, MbsdForMatching, ViewsOutput
from mbsd.objectives.labels import binary_loss
from mbsd.objectives.masked import masked_patch_loss, masked_word_loss_in_chunks, words_right
from mbsd.objectives.sdmi import match_loss, sdmi_loss

Losses = dict[str, Tensor]
TaskLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
TaskMetrics = Callable[[NDArray[Any], NDArray[np.int64]], dict[str, float]]


@dataclass(frozen=True)
class Validation:
    """Losses and metrics over all samples, and, where they have labels, the scores that the metrics are of."""

    metrics: dict[str, float]
    scores: TableScores | None = None


class TrainingStep(Protocol):
    """What the loop asks of a step."""

    model: MbsdPreTrainedModel

    def norms(self, batches: Sequence[Batch], device: torch.device) -> Tensor | None:
        """Denominators for the micro-batches of one global batch (collective)."""

    def validate(self, batches: Iterable[Batch], device: torch.device) -> Validation:
        """Losses and metrics over all batches of all ranks (collective)."""


class MaskedStep(nn.Module):
    """Stage 1: masked words + masked patches."""

    def __init__(self, model: MbsdForMaskedModelling) -> None:
        super().__init__()
        self.model = model

    def norms(self, batches: Sequence[Batch], device: torch.device) -> Tensor:
        """[2]: masked words and masked patches of the global batch, divided by (ranks x micro-steps).

        A micro-batch's sum over this is its share of the global mean: the engine averages over ranks and micro-steps.
        """
        counts = _masked_counts(batches, device)
        dist.all_reduce(counts)
        return (counts / (dist.get_world_size() * len(batches))).clamp_min(1e-9)

    def forward(self, batch: Batch, norms: Tensor) -> Losses:
        """Eq. 1 + Eq. 2."""
        assert batch.masks is not None
        output: MaskedOutput = self.model(batch)
        mlm = masked_word_loss_in_chunks(*output.words, batch.masks.mlm_labels_K) / norms[0]
        mpm = masked_patch_loss(output.patch_pixels, output.patch_target) / norms[1]
        return {"loss": mlm + mpm, "loss_mlm": mlm, "loss_mpm": mpm}

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch], device: torch.device) -> Validation:
        """Mean losses over all masked words and patches, and the share of words predicted right."""
        totals = torch.zeros(5, dtype=torch.float64, device=device)
        for batch in batches:
            batch = batch.to(device)
            assert batch.masks is not None
            output: MaskedOutput = self.model(batch)
            words = masked_word_loss_in_chunks(*output.words, batch.masks.mlm_labels_K)
            patches = masked_patch_loss(output.patch_pixels, output.patch_target)
            right = words_right(*output.words, batch.masks.mlm_labels_K)
            totals += torch.stack([words, patches, right, *_masked_counts([batch], device)]).double()
        dist.all_reduce(totals)
        words_sum, patches_sum, num_right, num_words, num_patches = totals.tolist()
        mlm, mpm = words_sum / max(num_words, 1), patches_sum / max(num_patches, 1)
        accuracy = num_right / max(num_words, 1)
        return Validation({"loss": mlm + mpm, "loss_mlm": mlm, "loss_mpm": mpm, "word_accuracy": accuracy})


class MatchingStep(nn.Module):
    """Stage 2: query-item matching with SDMI, all views that are trained on in one forward."""

    def __init__(self, model: MbsdForMatching, sdmi: SdmiConfig) -> None:
        super().__init__()
        self.model, self.sdmi = model, sdmi

    @staticmethod
    def views(sdmi: SdmiConfig) -> tuple[str, ...]:
        """The views a training batch needs: without unimodal losses and distillation, only the full one (row 6)."""
        return VIEW_NAMES if sdmi.unimodal_losses or sdmi.distillation else ("full",)

    def norms(self, batches: Sequence[Batch], device: torch.device) -> None:
        """Nothing: micro-batches are of equal size, so the mean of their means is the mean."""

    def forward(self, batch: Batch, norms: None) -> Losses:
        """Eq. 11."""
        assert batch.labels_B is not None
        return self.losses(self.model(batch), batch.labels_B)

    def losses(self, output: ViewsOutput, labels_B: Tensor) -> Losses:
        """The loss, its terms, each view's accuracy and how unequal the modalities are; of the full view alone, L_QI.

        text_stronger, image_stronger: shares of samples; sdmi_weight: mean w_i; modality_gap: the text view's accuracy
        less the image view's.
        """
        right_V = ((output.logits > 0) == (labels_B > 0.5)).float().mean(1)
        if output.logits.shape[0] == 1:
            loss = match_loss(output.logits[0], labels_B)
            return {"loss": loss, "loss_qi": loss, "accuracy_full": right_V[0]}
        terms = sdmi_loss(output.logits, output.h_VBD, labels_B, **asdict(self.sdmi))
        return {
            "loss": terms.loss,
            "loss_qi": terms.qi,
            "loss_qt": terms.qt,
            "loss_qv": terms.qv,
            "loss_kl": terms.kl,
            "loss_rs": terms.rs,
            "text_stronger": terms.text_stronger,
            "image_stronger": 1 - terms.text_stronger,
            "sdmi_weight": terms.weight,
            **{f"accuracy_{name}": right for name, right in zip(VIEW_NAMES, right_V, strict=True)},
            "modality_gap": right_V[1] - right_V[2],
        }

    def validate(self, batches: Iterable[Batch], device: torch.device) -> Validation:
        """Loss terms as sample means, and the five metrics of each view."""
        return _validate_labelled(self.model, self.losses, binary_metrics, batches, device)


class ClassificationStep(nn.Module):
    """A downstream task: a head on h, and a loss and metrics that fit it.

    Args:
        loss: (logits [V, B] or [V, B, C], labels [B], weights [C] or None) -> its mean over views and samples.
        metrics: (logits [n] or [n, C], labels [n]) -> named values.
        class_weights: [C] of the loss.
    """

    def __init__(
        self,
        model: MbsdPreTrainedModel,
        loss: TaskLoss = binary_loss,
        metrics: TaskMetrics = binary_metrics,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model, self._loss, self._metrics = model, loss, metrics
        self._weights = class_weights  # not a buffer: the engine would make it as coarse as the weights

    def norms(self, batches: Sequence[Batch], device: torch.device) -> None:
        """Nothing (see MatchingStep); puts the class weights on the device, once, so that no step waits for a copy."""
        if self._weights is not None:
            self._weights = self._weights.to(device)

    def forward(self, batch: Batch, norms: None) -> Losses:
        """The loss."""
        assert batch.labels_B is not None
        return self.losses(self.model(batch), batch.labels_B)

    def losses(self, output: ViewsOutput, labels_B: Tensor) -> Losses:
        """The task's loss."""
        return {"loss": self._loss(output.logits, labels_B, self._weights)}

    def validate(self, batches: Iterable[Batch], device: torch.device) -> Validation:
        """The loss, and the metrics of each view."""
        self.norms((), device)
        return _validate_labelled(self.model, self.losses, self._metrics, batches, device)


@torch.no_grad()
def _validate_labelled(
    model: nn.Module,
    losses: Callable[[ViewsOutput, Tensor], Losses],
    metrics_of: TaskMetrics,
    batches: Iterable[Batch],
    device: torch.device,
) -> Validation:
    """Losses weighted by samples, metrics from the logits of all ranks together (no mean of means)."""
    mine, totals, names = Scores(), torch.zeros((), dtype=torch.float64, device=device), ["samples"]
    for batch in batches:
        batch = batch.to(device)
        assert batch.labels_B is not None
        output: ViewsOutput = model(batch)
        mine.add(batch, output.logits)
        values = losses(output, batch.labels_B)
        names = ["samples", *values]
        ones = torch.ones((), device=device)
        totals = totals + batch.labels_B.shape[0] * torch.stack([ones, *values.values()]).double()
    scores = gather_scores(mine, {name: float(total) for name, total in zip(names, totals.reshape(-1), strict=True)})
    metrics = {name: total / scores.totals["samples"] for name, total in scores.totals.items() if name != "samples"}
    for view, logits_n in zip(scores.views, scores.logits, strict=True):
        metrics |= {f"{name}_{view}": value for name, value in metrics_of(logits_n, scores.labels).items()}
    return Validation(metrics, scores if scores.logits.ndim == 2 else None)  # C classes have no PR curve


def _masked_counts(batches: Iterable[Batch], device: torch.device) -> Tensor:
    """[2] float: masked words and patches; from shapes, so the device is not asked, and filled there, not copied."""
    masks = [batch.masks for batch in batches if batch.masks is not None]
    counts = (sum(m.num_words for m in masks), sum(m.num_patches for m in masks))
    return torch.stack([torch.full((), float(count), device=device) for count in counts])
