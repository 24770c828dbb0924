"""Any checkpoint -> one vector a sample and view."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mbsd.batch import Batch
from mbsd.model.backbone import Backbone
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import MbsdForClassification, MbsdForMaskedModelling
from mbsd.model.load import load_model, saved_config

Vector = Literal["h", "mean"]


class Embedder(nn.Module):
    """The backbone and what of it is a vector.

    Attributes:
        vector: h, the representation that stage 2 and the tasks train; or mean, of the last layer's tokens of a view.
    """

    def __init__(self, model: Backbone, vector: Vector) -> None:
        super().__init__()
        self.model, self.vector = model, vector

    @property
    def config(self) -> BackboneConfig:
        """Of the model."""
        config: Any = self.model.config
        found: BackboneConfig = config
        return found

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.config.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """[V, B, D]."""
        encoded = self.model.encode(batch)
        return encoded.h_VBD if self.vector == "h" else encoded.token_means(batch)


def load_embedder(folder: Path, image_size: int, vector: Vector | Literal["auto"] = "auto") -> Embedder:
    """The embedder of a transformers folder of mbsd's.

    Args:
        vector: auto: mean for a model of stage 1, whose h no loss has trained; else h.

    Raises:
        UserError: as of `mbsd.model.load.load_model`.
    """
    saved = saved_config(folder)
    first_stage = saved.architectures == [MbsdForMaskedModelling.__name__]
    chosen: Vector = ("mean" if first_stage else "h") if vector == "auto" else vector
    return Embedder(load_model(MbsdForClassification, folder, image_size).mbsd, chosen)
