"""Kaleido-BERT: FashionBERT with crops at five scales, 1² + 2² + 3² + 4² + 5² = 55 (Zhuge et al. 2021).

The authors first cut the picture to what a saliency network finds in it; that step is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from mbsd.batch import Puzzles
from mbsd.model.baselines.fashionbert import FashionBert, FashionBertConfig
from mbsd.model.patchify import IMAGE_MEAN, IMAGE_STD, normalise_pixels

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601), as PIL makes pictures grey
SCALES = (1, 2, 3, 4, 5)  # of the puzzles, a task each


@strict
class KaleidoConfig(FashionBertConfig):
    """FashionBERT's with 55 crops."""

    model_type = "mbsd_kaleido"

    crop_grids: list[int] | tuple[int, ...] = SCALES

    def backbone(self) -> KaleidoBert:
        """A new one."""
        return KaleidoBert(self)


@dataclass(frozen=True)
class PuzzledFeatures:
    """Features of crops to which puzzles were done, and of those that are to be told.

    Attributes:
        shown_IPF: of the crops as they are shown.
        grey_IGF: of the crops that are shown grey, in colour.
        blank_IGF: of those that are not shown.
    """

    shown_IPF: Tensor
    grey_IGF: Tensor
    blank_IGF: Tensor


class KaleidoBert(FashionBert):
    """Kaleido-BERT; h is the pooled [CLS]."""

    config_class = KaleidoConfig

    def puzzled_features(self, pixels: Tensor, puzzles: Puzzles) -> PuzzledFeatures:
        """The ResNet's features of what the puzzles make of pictures: 55 crops and the grey ones in colour, no more.

        Which crop is turned, exchanged, grey or blank is read by index on the device: the host waits for nothing.

        Args:
            pixels: normalised, [I, 3, h, w].
        """
        one, four, nine, sixteen, many = (self.crops.cut(pixels, grid) for grid in SCALES)
        rows = torch.arange(pixels.shape[0], device=pixels.device)
        turned = torch.stack([one.rot90(turns, (-2, -1)) for turns in range(4)])[puzzles.rotation_I, rows]
        mixed = four[rows[:, None], puzzles.order_I4]
        others = self.crops.cut(normalise_pixels(puzzles.others, pixels.dtype), 3)
        camouflaged = torch.where(_chosen(puzzles.camouflage_I[:, None], nine), others, nine)
        greyed = torch.where(_chosen(puzzles.grey_IG, sixteen), _without_colour(sixteen), sixteen)
        coloured = sixteen[rows[:, None], puzzles.grey_IG]
        shown = torch.cat([turned, mixed, camouflaged, greyed, many], dim=1)
        features = self.crops.features(torch.cat([shown, coloured], dim=1))
        shown_IPF, grey_IGF = features.split([shown.shape[1], coloured.shape[1]], dim=1)
        whole, of_many = shown_IPF.split([shown.shape[1] - many.shape[1], many.shape[1]], dim=1)
        blanked = of_many.masked_fill(_chosen(puzzles.blank_IG, many)[..., 0, 0], 0.0)
        true_IGF = of_many[rows[:, None], puzzles.blank_IG]
        return PuzzledFeatures(torch.cat([whole, blanked], dim=1), grey_IGF, true_IGF)


def _chosen(places_IG: Tensor, crops: Tensor) -> Tensor:
    """bool [I, n, 1, 1, 1]: which of the n crops of each picture are among `places_IG`."""
    places = torch.arange(crops.shape[1], device=crops.device)
    return (places_IG[:, :, None] == places).any(1)[..., None, None, None]


def _without_colour(pixels: Tensor) -> Tensor:
    """Normalised pixels [..., 3, h, w] in their luminance, in the same normalisation."""
    normalised = list(zip(IMAGE_MEAN, IMAGE_STD, strict=True))
    red, green, blue = (x * std + mean for x, (mean, std) in zip(pixels.unbind(-3), normalised, strict=True))
    grey = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return torch.stack([(grey - mean) / std for mean, std in normalised], dim=-3)
