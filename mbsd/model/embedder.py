"""Any checkpoint -> one vector a sample and view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.errors import UserError
from mbsd.model.backbone import Backbone
from mbsd.model.config import BackboneConfig
from mbsd.model.generation import MbsdForGeneration
from mbsd.model.heads import MbsdForClassification, MbsdForContrastive, MbsdForMaskedModelling, MbsdForMaskedPatches
from mbsd.model.load import load_model, saved_config

Vector = Literal["h", "mean", "contrastive"]
SHARED_VIEWS = ("text", "image", "mean")  # of the space that titles and pictures share
NO_TEXT = 2  # tokens of an empty title: [CLS] [SEP]


@dataclass(frozen=True)
class ViewVectors:
    """The vectors of B samples in one view.

    Attributes:
        vectors_BE: float32 at least; zeros for a sample that has none.
        present_B: bool; whether a sample shows anything in the view: a title in text, a picture in image, either of
            them in mean and full.
    """

    vectors_BE: Tensor
    present_B: Tensor


def shown_for(views: Iterable[str]) -> tuple[str, ...]:
    """What a batch has to show for vectors in these views: mean is made of text and image."""
    wanted = {shown for view in views for shown in (("text", "image") if view == "mean" else (view,))}
    return tuple(name for name in VIEW_NAMES if name in wanted)


class Embedder(nn.Module):
    """The backbone and what of it is a vector.

    Attributes:
        vector: h, the representation that stage 2 and the tasks train; mean, of the last layer's tokens of a view; or
            contrastive: h of the views text and image, projected into the space that they share, as unit vectors. The
            view full has no place there: its vector is h.
        head: that projects; None where nothing is projected.
    """

    def __init__(self, model: Backbone, vector: Vector, head: MbsdForContrastive | None = None) -> None:
        super().__init__()
        assert (head is not None) == (vector == "contrastive"), "the head is what makes contrastive vectors"
        self.model, self.vector, self.head = model, vector, head

    @property
    def config(self) -> BackboneConfig:
        """Of the model."""
        config: Any = self.model.config
        found: BackboneConfig = config
        return found

    def width(self, view: str = "full") -> int:
        """Numbers of a vector in a view."""
        projected = self.head is not None and view in SHARED_VIEWS
        return int(self.config.projection_dim if projected else self.config.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """[V, B, D] of the batch's views; of contrastive ones [V, B, E], of the views text and image alone.

        Raises:
            UserError: the view full among contrastive ones, which is none of their space.
        """
        if self.head is not None and "full" in batch.views.names:
            raise UserError(
                "the view full is not in the space of contrastive vectors; ask for text, image or mean, or for the "
                "vector h"
            )
        return torch.stack(list(self._of_shown(batch).values()))

    def of_views(self, batch: Batch, views: Sequence[str]) -> dict[str, ViewVectors]:
        """The vectors in each of `views` from one forward.

        mean is the direction of the sum of both unit vectors, of title and picture; of the one alone where the other is
        missing.

        Args:
            batch: without queries; shows what `shown_for(views)` names.
            views: some of full, text, image and mean.
        """
        vectors, shows = self._of_shown(batch), _shows(batch)
        found = {}
        for view in views:
            if view == "mean":
                text, image = (
                    F.normalize(vectors[name], dim=-1, eps=1e-6) * shows[name][:, None] for name in ("text", "image")
                )
                # In float64: two vectors that nearly cancel leave few digits.
                vectors_BE = F.normalize((text.double() + image.double()), dim=-1, eps=1e-12).to(text.dtype)
            else:
                vectors_BE = vectors[view] * shows[view][:, None]
            found[view] = ViewVectors(vectors_BE, shows[view])
        return found

    def _of_shown(self, batch: Batch) -> dict[str, Tensor]:
        """View of the batch -> [B, D], or [B, E] where it is projected; float32 at least."""
        if self.vector == "mean":
            vectors_VBD = self.model.encode(batch).token_means(batch)
        else:
            vectors_VBD = self.model.represent(batch)
        vectors_VBD = vectors_VBD.to(torch.promote_types(vectors_VBD.dtype, torch.float32))
        found = dict(zip(batch.views.names, vectors_VBD, strict=True))
        if self.head is None:
            return found
        return {view: self.head.project(h, view) if view in SHARED_VIEWS else h for view, h in found.items()}


def _shows(batch: Batch) -> dict[str, Tensor]:
    """View -> bool [B]: which samples show something in it. A batch of texts alone shows no picture."""
    lengths = torch.tensor(batch.views.real_lengths).view(len(batch.views.names), -1)
    of_view = dict(zip(batch.views.names, lengths, strict=True))
    image = batch.has_image
    text = torch.zeros_like(image)
    if "text" in of_view:
        text = (of_view["text"] > NO_TEXT).to(image.device)
    full = image | text
    if "full" in of_view:  # an empty title and no picture leave [CLS] [SEP]
        full = (of_view["full"] > NO_TEXT).to(image.device)
    return {"text": text, "image": image, "mean": image | text, "full": full}


def load_embedder(folder: Path, image_size: int, vector: Vector | Literal["auto"] = "auto") -> Embedder:
    """The embedder of a transformers folder of mbsd's.

    Args:
        vector: auto: mean for a model of stage 1 (without `masking.cross_modal`) or of the generative stage, whose h no
            loss has trained; contrastive for one of the contrastive stage; else h.

    Raises:
        UserError: as of `mbsd.model.load.load_model`; or contrastive vectors of a model that has no projections.
    """
    saved = saved_config(folder)
    held = (saved.architectures or ["?"])[0]
    of_stage: dict[str, Vector] = {
        MbsdForMaskedModelling.__name__: "h" if saved.cross_modal else "mean",
        MbsdForMaskedPatches.__name__: "mean",
        MbsdForGeneration.__name__: "mean",
        MbsdForContrastive.__name__: "contrastive",
    }
    chosen: Vector = of_stage.get(held, "h") if vector == "auto" else vector
    if chosen != "contrastive":
        return Embedder(load_model(MbsdForClassification, folder, image_size).mbsd, chosen)
    if held != MbsdForContrastive.__name__:
        raise UserError(
            f"{folder}: holds a {held} without projections, so that it has no contrastive vectors; name a model of the "
            "contrastive stage, or ask for the vector h or mean"
        )
    head: Any = load_model(MbsdForContrastive, folder, image_size, with_head=True)
    return Embedder(head.mbsd, chosen, head)
