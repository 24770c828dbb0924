"""The heads of FashionBERT's and Kaleido-BERT's own pre-training: words, does the picture belong to the title, crops.

What is predicted of a crop are the ResNet's features, and the ResNet is held fixed: the authors computed them once and
kept them on disk, and a ResNet that learned would soon give the same features of all crops, which are easy to predict.
So it runs without graph, and a step is that of the stream behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mbsd.batch import NO_PATCH, Batch
from mbsd.model.backbone import Encoded
from mbsd.model.baselines.kaleido import SCALES, KaleidoBert
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import WordHead
from mbsd.model.patchify import normalise_pixels

NUM_ROTATIONS, NUM_ORDERS = 4, 24  # classes: quarter turns, orders of four crops


@dataclass(frozen=True)
class CropsOutput:
    """What FashionBERT is asked for.

    Attributes:
        words: rows [K, D], word table [vocabulary, D] and bias, which make the logits of masked words.
        match_B: logits of whether title and picture belong together.
        predicted_QF, true_QF: features of hidden crops.
    """

    words: tuple[Tensor, Tensor, Tensor]
    match_B: Tensor
    predicted_QF: Tensor
    true_QF: Tensor


@dataclass(frozen=True)
class PuzzlesOutput:
    """What Kaleido-BERT is asked for: `words` and `match_B` as `CropsOutput` has them, and a task at each scale.

    Attributes:
        rotation_I4, jigsaw_I24, camouflage_I9: logits over the classes of `batch.Puzzles`, of the real pictures alone.
        grey, blank: predicted and true features of the crops that were grey or not shown: [I * G, F] each.
    """

    words: tuple[Tensor, Tensor, Tensor]
    match_B: Tensor
    rotation_I4: Tensor
    jigsaw_I24: Tensor
    camouflage_I9: Tensor
    grey: tuple[Tensor, Tensor]
    blank: tuple[Tensor, Tensor]


class CropHead(WordHead):
    """Masked words and the match of title and picture, over a backbone whose crops' features are fixed."""

    answer_layer = "match"

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.match = nn.Linear(config.hidden_size, 1)

    def freeze_unread(self) -> None:
        """What no head on h reads, and the ResNet."""
        super().freeze_unread()
        self.mbsd.crops.requires_grad_(False)

    def match_logits(self, encoded: Encoded) -> Tensor:
        """[B], of the first view."""
        logits_B: Tensor = self.match(encoded.h_VBD[0])[..., 0]
        return logits_B


class MbsdForMaskedCrops(CropHead):
    """FashionBERT's pre-training: masked words, features of masked crops, text-image alignment."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.crop_decoder = nn.Linear(config.hidden_size, config.crop_features, bias=False)
        self.freeze_unread()
        self.post_init()

    def forward(self, batch: Batch) -> CropsOutput:
        """A masked crop's features are zeros, as in the authors' code, so that its place alone is known of it."""
        masks = batch.masks
        assert masks is not None and masks.patch_source is not None, "FashionBERT hides crops"
        pixels = normalise_pixels(batch.images, self.dtype)
        with torch.no_grad():
            features_IPF = self.mbsd.crops(pixels)
            rows = features_IPF.flatten(0, 1)
            shown = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[masks.patch_source].view(features_IPF.shape)
        encoded = self.mbsd.encode_features(batch, shown, pixels)
        predicted = self.crop_decoder(encoded.hidden_TD[masks.mpm_index_Q])
        true = rows[masks.mpm_patch_Q.clamp_min(0)]
        if masks.num_fill_patches:  # equal to the prediction: no loss, no gradient
            true = torch.where((masks.mpm_patch_Q == NO_PATCH)[:, None], predicted.detach(), true)
        return CropsOutput(self.words_of(encoded, masks), self.match_logits(encoded), predicted, true)


class MbsdForPuzzles(CropHead):
    """Kaleido-BERT's pre-training: masked words, image-text matching and a puzzle at each of five scales.

    As in the authors' code a class is read from all crops of its scale, features from the crop's own place.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.rotation = nn.Linear(width, NUM_ROTATIONS)
        self.jigsaw = nn.Linear(4 * width, NUM_ORDERS)
        self.camouflage = nn.Linear(9 * width, 9)
        self.grey_decoder = nn.Linear(width, config.crop_features, bias=False)
        self.blank_decoder = nn.Linear(width, config.crop_features, bias=False)
        self.freeze_unread()
        self.post_init()

    def forward(self, batch: Batch) -> PuzzlesOutput:
        """Pictures that only fill up are encoded, and asked for nothing."""
        masks, puzzles = batch.masks, batch.puzzles
        assert masks is not None and puzzles is not None, "Kaleido-BERT is given masked words and puzzles"
        backbone: KaleidoBert = self.mbsd
        pixels = normalise_pixels(batch.images, self.dtype)
        with torch.no_grad():
            features = backbone.puzzled_features(pixels, puzzles)
        encoded = backbone.encode_features(batch, features.shown_IPF, pixels)
        asked = puzzles.num_images
        places = torch.arange(sum(scale**2 for scale in SCALES), device=pixels.device)
        hidden_IPD = encoded.hidden_TD[puzzles.first_I[:asked, None] + places]
        one, four, nine, sixteen, many = hidden_IPD.split([scale**2 for scale in SCALES], dim=1)
        return PuzzlesOutput(
            words=self.words_of(encoded, masks),
            match_B=self.match_logits(encoded),
            rotation_I4=self.rotation(one.flatten(1)),
            jigsaw_I24=self.jigsaw(four.flatten(1)),
            camouflage_I9=self.camouflage(nine.flatten(1)),
            grey=_told(self.grey_decoder, sixteen, puzzles.grey_IG[:asked], features.grey_IGF[:asked]),
            blank=_told(self.blank_decoder, many, puzzles.blank_IG[:asked], features.blank_IGF[:asked]),
        )


def _told(decoder: nn.Linear, hidden_InD: Tensor, places_IG: Tensor, true_IGF: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted and true features, [I * G, F] each, of some of the n crops of a scale."""
    rows = torch.arange(hidden_InD.shape[0], device=hidden_InD.device)[:, None]
    return decoder(hidden_InD[rows, places_IG].flatten(0, 1)), true_IGF.flatten(0, 1)
