"""Losses and metrics over samples with labels: stage 2 and all downstream tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbsd.batch import Batch
from mbsd.metrics.binary import binary_metrics
from mbsd.metrics.board import Board
from mbsd.metrics.pictures import Card, cards_table, draw_card
from mbsd.metrics.table_scores import Scores, gather_scores
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.heads import MbsdForAlignment, ViewsOutput
from mbsd.objectives.labels import binary_loss
from mbsd.stages.showcase import NUM_CARDS, HeldOut
from mbsd.stages.stage import Losses, Objective, Validation

TaskMetrics = Callable[[NDArray[Any], NDArray[np.int64]], dict[str, float]]


class TaskLoss(Protocol):
    """A loss of `mbsd.objectives.labels`."""

    def __call__(
        self, logits: Tensor, labels_B: Tensor, weights_C: Tensor | None = None, /, *, smoothing: float = 0.0
    ) -> Tensor:
        """0-d, from logits [V, B] or [V, B, C]; class weights [C], and the share of label smoothing."""


class LabelledObjective(Objective):
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
        super().__init__(model)
        self._loss, self._metrics = loss, metrics
        self._weights = class_weights  # not a buffer: the engine would make it as coarse as the weights

    def contexts(self, batches: Sequence[Batch]) -> Sequence[None]:
        """Nothing; puts the class weights on the device, once, so that no step waits for a copy."""
        self._place_weights()
        return [None] * len(batches)

    def forward(self, batch: Batch, context: None = None) -> Losses:
        """The loss."""
        assert batch.labels_B is not None
        return self.losses(self.model(batch), batch.labels_B)

    def losses(self, output: ViewsOutput, labels_B: Tensor) -> Losses:
        """The task's loss."""
        return {"loss": self._loss(output.logits, labels_B, self._weights)}

    def validate(self, batches: Iterable[Batch]) -> Validation:
        """The loss, and the metrics of each view."""
        self._place_weights()
        return validate_labelled(self, self.losses, self._metrics, batches)

    def show(self, board: Board, step: int, few: HeldOut) -> None:
        """Product cards with each view's probability, where the answer is yes or no."""
        show_cards(self.model, board, step, few)

    def _place_weights(self) -> None:
        if self._weights is not None:
            self._weights = self._weights.to(self.device)


@torch.no_grad()
def validate_labelled(
    objective: Objective,
    losses: Callable[[ViewsOutput, Tensor], Losses],
    metrics_of: TaskMetrics,
    batches: Iterable[Batch],
) -> Validation:
    """Losses weighted by samples, metrics from the logits of all ranks together: no mean of means (collective)."""
    mine, names = Scores(), ["samples"]
    totals = torch.zeros((), dtype=torch.float64, device=objective.device)
    for batch in batches:
        assert batch.labels_B is not None
        output: ViewsOutput = objective.model(batch)
        mine.add(batch, output.logits)
        values = losses(output, batch.labels_B)
        names = ["samples", *values]
        ones = torch.ones((), device=objective.device)
        totals = totals + batch.labels_B.shape[0] * torch.stack([ones, *values.values()]).double()
    scores = gather_scores(mine, dict(zip(names, totals.reshape(-1).tolist(), strict=True)))
    metrics = {name: total / scores.totals["samples"] for name, total in scores.totals.items() if name != "samples"}
    for view, logits_n in zip(scores.views, scores.logits, strict=True):
        metrics |= {f"{name}_{view}": value for name, value in metrics_of(logits_n, scores.labels).items()}
    return Validation(metrics, scores if scores.logits.ndim == 2 else None)  # C classes have no PR curve


def show_cards(model: Any, board: Board, step: int, few: HeldOut) -> None:
    """Cards of a few held-out samples, where one logit a view and sample is the model's answer."""
    if model.config.num_labels_out != 1 or isinstance(model, MbsdForAlignment):
        return  # C classes, or an answer about pairs
    cards = make_cards(model, few)
    for n, card in enumerate(cards):
        board.picture(step, f"cards/{n}", draw_card(card))
    board.text(step, "cards", cards_table(cards))


def make_cards(model: Any, few: HeldOut) -> list[Card]:
    """The model's answer for a few held-out samples, each view by itself."""
    samples = few.spread(NUM_CARDS)
    batch = few.batch(samples)
    probabilities_VB = torch.sigmoid(model(batch).logits.double()).cpu().numpy()
    pictures, with_image = iter(batch.images.permute(0, 2, 3, 1).cpu().numpy()), batch.has_image.tolist()
    return [
        Card(
            query=sample.text or "",
            title=few.catalog.title(sample.item),
            label=int(sample.label or 0),
            picture=next(pictures) if with_image[b] else None,
            probabilities={view: float(probabilities_VB[v, b]) for v, view in enumerate(batch.views.names)},
        )
        for b, sample in enumerate(samples)
    ]
