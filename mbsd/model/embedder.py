"""Any checkpoint -> one vector a sample and view."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mbsd.batch import Batch
from mbsd.config.data import DataConfig
from mbsd.model.heads import MbsdForClassification, MbsdForMaskedModelling
from mbsd.model.load import load_model, saved_config
from mbsd.model.mbsd import MbsdConfig, MbsdModel


class Embedder(nn.Module):
    """The backbone and what of it is a vector.

    Attributes:
        vector: h, the representation that stage 2 and the tasks train; or mean, of the last layer's tokens of a view.
    """

    def __init__(self, model: MbsdModel, vector: Literal["h", "mean"]) -> None:
        super().__init__()
        self.model, self.vector = model, vector

    @property
    def config(self) -> MbsdConfig:
        """Of the model."""
        config: Any = self.model.config
        found: MbsdConfig = config
        return found

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.config.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """[V, B, D]."""
        encoded = self.model.encode(batch)
        if self.vector == "h":
            return encoded.h_VBD
        views = len(batch.views.names)
        parts = torch.split(encoded.hidden_TD, list(batch.views.lengths))
        return torch.stack([part.float().mean(0) for part in parts]).view(views, batch.num_samples, -1)


def load_embedder(source: str, data: DataConfig, vector: Literal["auto", "h", "mean"] = "auto") -> Embedder:
    """The embedder of a run folder, checkpoint or transformers folder.

    Args:
        vector: auto: mean for a model of stage 1, whose h no loss has trained; else h.

    Raises:
        UserError: nothing of the kind at `source`.
    """
    _, saved = saved_config(source)
    first_stage = saved.architectures == [MbsdForMaskedModelling.__name__]
    chosen: Literal["h", "mean"] = ("mean" if first_stage else "h") if vector == "auto" else vector
    return Embedder(load_model(MbsdForClassification, source, data).mbsd, chosen)
