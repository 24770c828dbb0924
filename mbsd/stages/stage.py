"""The contract of a stage: everything that one kind of training knows, as one object.

A stage defines what it reads (`Needs`), its samples, its objective and its charts. Data, loop, checkpoints, plan and
bench ask the stage and know none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mbsd.batch import Batch
from mbsd.catalog.several import Items
from mbsd.catalog.tables import Table
from mbsd.data.inputs import Inputs, split_samples
from mbsd.data.samples import Samples
from mbsd.data.spec import Needs
from mbsd.errors import UserError
from mbsd.metrics.board import Board, Charts
from mbsd.metrics.table_scores import TableScores
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.config import BackboneConfig
from mbsd.stages.showcase import HeldOut

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Validation:
    """Losses and metrics over all samples, and, where they have yes/no labels, the scores that the metrics are of."""

    metrics: dict[str, float]
    scores: TableScores | None = None


@dataclass(frozen=True)
class WholeBatch:
    """What a step does once for its whole global batch, on the meta device; for `mbsd plan`.

    Attributes:
        contexts: of the micro-batches.
        exchanged: bytes of all ranks together that each rank gathers.
        encodes_first: with more than one micro-batch, each is encoded without graph before.
    """

    contexts: Sequence[Any]
    exchanged: int
    encodes_first: bool


class Objective(nn.Module, ABC):
    """A model and its loss: the one module that DeepSpeed wraps.

    Attributes:
        model: a head on a backbone; checkpoints are written from it.
    """

    def __init__(self, model: MbsdPreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model  # transformers' base class does not declare our `config` and backbone

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device

    def contexts(self, batches: Sequence[Batch]) -> Sequence[Any]:
        """For each micro-batch of a step, what `forward` needs to know of the whole global batch (collective).

        Default: nothing; micro-batches are of equal size, so the mean of their means is the mean.
        """
        return [None] * len(batches)

    def whole_batch(self, batch: Batch, micro_steps: int, num_ranks: int) -> WholeBatch | None:
        """What `contexts` does beside encoding, of so many micro-batches like `batch` on each of so many ranks.

        For `mbsd plan`: all of it is on the meta device, and no other rank is there. Default: nothing of size.
        """

    @abstractmethod
    def forward(self, batch: Batch, context: Any = None) -> Losses:
        """Named losses and what is watched beside them, `loss` among them.

        Their MEAN over ranks and micro-steps is the value for the whole global batch.

        Args:
            context: of this micro-batch, from `contexts`; None: the batch is the whole global batch.
        """

    @abstractmethod
    def validate(self, batches: Iterable[Batch]) -> Validation:
        """Losses and metrics over all batches of all ranks, exactly: world size 1 and N agree (collective)."""

    def vectors(self, batch: Batch) -> Tensor:
        """[B, D]: a vector of each sample to look at; default: h of the view full, or of the first there is."""
        first = batch.views.names.index("full") if "full" in batch.views.names else 0
        h_BD: Tensor = self.model.mbsd.represent(batch)[first]
        return h_BD

    def show(self, board: Board, step: int, few: HeldOut) -> None:
        """Draw for TensorBoard what the model makes of a few held-out samples, on rank 0; default: nothing.

        It draws no random number: a run with pictures is bitwise a run without.
        """


@dataclass(frozen=True)
class Stage:
    """One kind of training.

    Attributes:
        needs: (settings) -> what it reads. Raises UserError where the settings do not fit the stage.
        objective: (settings, inputs) -> the model with its first weights, and its loss; or UserError.
        outline: (settings, configuration of a model) -> the same around a model of that shape, for `mbsd plan` and
            `mbsd bench step`, which read no data.
        samples: (settings, catalogue, table, split) -> its samples; or UserError. Default: rows of the table, or all
            items of the catalogue (data.drop_incomplete: those with title and picture).
        charts: its rows of TensorBoard's page "custom scalars".
        paper_batch: global batch of the paper (section 4.3); None: the paper has none.
        monitor: validation metric, of `charts.held_out`, that the best checkpoint is chosen by where the settings name
            none; None: no best one is chosen.
        least_batch: samples that a global batch needs at least.
    """

    needs: Callable[[Any], Needs]
    objective: Callable[[Any, Inputs], Objective]
    outline: Callable[[Any, BackboneConfig], Objective]
    samples: Callable[[Any, Items, Table | None, str], Samples] = split_samples
    charts: Charts = field(default_factory=Charts)
    paper_batch: int | None = None
    monitor: str | None = None
    least_batch: int = 1

    def check_batch(self, global_batch: int) -> None:
        """Raise UserError where a global batch has too few samples."""
        if global_batch < self.least_batch:
            raise UserError(
                f"train_batch_size={global_batch}: this stage tells the samples of a global batch from each other and "
                f"needs {self.least_batch} or more; raise it in DeepSpeed's JSON"
            )
