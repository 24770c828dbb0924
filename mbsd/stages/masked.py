"""Stage 1: masked words and masked patches (Eq. 1, 2), as far as a model reads words and has such patches.

With `masking.cross_modal` the views are asked for whole titles and pictures besides (`mbsd.objectives.cross_modal`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.config.run import PretrainConfig
from mbsd.config.stages import MaskingConfig
from mbsd.data.inputs import Inputs
from mbsd.data.spec import Masked, Needs
from mbsd.errors import UserError
from mbsd.metrics.board import Board, Charts
from mbsd.metrics.pictures import grid
from mbsd.model.config import BackboneConfig
from mbsd.model.gradients import draw_gradients, gradient_targets
from mbsd.model.heads import (
    MaskedAndWholeOutput,
    MaskedOutput,
    MbsdForMaskedModelling,
    MbsdForMaskedPatches,
    PatchHead,
    WordHead,
)
from mbsd.model.load import start_model
from mbsd.model.patchify import denormalise_pixels, normalise_pixels, patches_to_pixels, pixels_of_patches
from mbsd.objectives.cross_modal import picture_loss, title_loss
from mbsd.objectives.masked import masked_patch_loss, masked_word_loss_in_chunks, words_right
from mbsd.stages.showcase import HeldOut
from mbsd.stages.stage import Losses, Objective, Stage, Validation

NUM_REBUILT = 6  # pictures that are shown
WITH_PATCHES = ("mbsd", "vit", "vilt")  # architectures whose image tokens are squares of pixels
PATCH_SETTINGS = ("mpm_probability", "mpm_corruption", "mpm_target")
# Loss -> which of the counts it is a mean over: masked words, masked patches, samples with title and picture.
COUNTED = {
    "loss_mlm": 0, "loss_mpm": 1,
    "loss_title": 2, "loss_picture_full": 2, "loss_picture_text": 2,
}  # fmt: skip


class MaskedObjective(Objective):
    """Masked words + masked patches; of a model that reads no words, or has no patches, the others alone.

    With `masking.cross_modal` + what each view is asked of the whole title and picture.
    """

    def contexts(self, batches: Sequence[Batch]) -> Sequence[Tensor]:
        """[3] each: the counts of the global batch, divided by (ranks x micro-steps).

        A micro-batch's sum over this is its share of the global mean: the engine averages over ranks and micro-steps.
        """
        counts = _counts(batches, self.device)
        dist.all_reduce(counts)
        counts = (counts / (dist.get_world_size() * len(batches))).clamp_min(1e-9)
        return [counts] * len(batches)

    def forward(self, batch: Batch, context: Tensor | None = None) -> Losses:
        """Eq. 1 + Eq. 2, or the one of them that the model is asked for; and the cross-modal losses."""
        assert batch.masks is not None
        counts = context if context is not None else _counts([batch], self.device).clamp_min(1e-9)
        sums = self._sums(self.model(batch), batch)
        terms = {name: total / counts[COUNTED[name]] for name, total in sums.items()}
        return {"loss": functools.reduce(torch.add, terms.values()), **terms}

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> Validation:
        """Mean losses over all that is counted, and the share of words predicted right."""
        totals = torch.zeros(len(COUNTED) + 4, dtype=torch.float64, device=self.device)
        for batch in batches:
            assert batch.masks is not None
            output: MaskedOutput = self.model(batch)
            sums, nothing = self._sums(output, batch), torch.zeros((), device=self.device)
            right = nothing if output.words is None else words_right(*output.words, batch.masks.mlm_labels_K)
            losses = [sums.get(name, nothing) for name in COUNTED]
            totals += torch.stack([*losses, right, *_counts([batch], self.device)]).double()
        dist.all_reduce(totals)
        *all_sums, num_right, num_words, num_patches, num_items = totals.tolist()
        counts = [max(count, 1) for count in (num_words, num_patches, num_items)]
        means = {name: total / counts[COUNTED[name]] for name, total in zip(COUNTED, all_sums, strict=True)}
        found = {name: mean for name, mean in means.items() if name in self._asked}
        metrics = {"loss": sum(found.values()), **found}
        if "loss_mlm" in found:
            metrics["word_accuracy"] = num_right / counts[0]
        return Validation(metrics)

    @property
    def _asked(self) -> tuple[str, ...]:
        """Of COUNTED, what the model predicts."""
        has = isinstance(self.model, WordHead), self.model.patch_decoder is not None, self.model.config.cross_modal
        return tuple(name for name, count in COUNTED.items() if has[count])

    def _sums(self, output: MaskedOutput, batch: Batch) -> Losses:
        """Of COUNTED, what the model predicts: sums over what is counted."""
        assert batch.masks is not None
        sums: Losses = {}
        if output.words is not None:
            sums["loss_mlm"] = masked_word_loss_in_chunks(*output.words, batch.masks.mlm_labels_K)
        if output.patch_values is not None and output.patch_target is not None:
            error: Literal["absolute", "squared"] = "squared" if self.model.config.mpm_target == "hog" else "absolute"
            sums["loss_mpm"] = masked_patch_loss(output.patch_values, output.patch_target, error)
        if isinstance(output, MaskedAndWholeOutput):
            assert batch.cross_modal is not None
            whole = output.cross_modal
            sums["loss_title"] = title_loss(whole.title_logits, batch.cross_modal)
            for view, values in whole.picture_values.items():
                sums[f"loss_picture_{view}"] = picture_loss(values, whole.picture_targets, batch.cross_modal)
        return sums

    def vectors(self, batch: Batch) -> Tensor:
        """[B, D]: means over tokens, or h where it is trained, of the first view."""
        encoded = self.model.mbsd.encode(batch, self.model.mask_D)
        vectors_VBD: Tensor = encoded.h_VBD if self.model.config.cross_modal else encoded.token_means(batch)
        return vectors_VBD[0]

    def show(self, board: Board, step: int, few: HeldOut) -> None:
        """A few pictures as the model sees them, as it rebuilds them and as they are."""
        if "loss_mpm" not in self._asked:
            return
        samples = few.with_image(NUM_REBUILT)
        rebuilt = rebuild(self.model, few.batch(samples)) if samples else []
        if rebuilt:  # none, where all of them are damaged
            board.picture(step, "masked_patches", grid(rebuilt))


def rebuild(model: PatchHead, batch: Batch) -> list[list[NDArray[np.uint8]]]:
    """Return for each image: as the model sees it (masked patches grey), as it rebuilds it, and as it is.

    Each uint8 [h, w, 3]; the rebuilt one keeps the patches that were not masked. Of gradients there are four: the
    gradients as they are, drawn, come before the picture.
    """
    assert batch.masks is not None
    config: Any = model.config
    predicted, side = model(batch).patch_values.float(), config.patch_side
    patches = pixels_of_patches(normalise_pixels(batch.images, torch.float32), side)
    true = patches
    if config.mpm_target == "hog":
        everywhere = torch.arange(len(patches), device=patches.device)
        true = draw_gradients(gradient_targets(batch.images, side, everywhere), side)
        predicted = draw_gradients(predicted, side)
    hidden, rebuilt = patches.clone(), true.clone()
    hidden[batch.masks.mpm_patch_Q] = 0.0  # the mean of all pixels: grey
    rebuilt[batch.masks.mpm_patch_Q] = predicted
    shown = [hidden, rebuilt, true] if true is patches else [hidden, rebuilt, true, patches]
    columns = [_as_bytes(patches_to_pixels(rows, side, batch.images.shape[-2:])) for rows in shown]
    return [list(row) for row in zip(*columns, strict=True)]


def _as_bytes(pixels: Tensor) -> Iterator[NDArray[np.uint8]]:
    images = (denormalise_pixels(pixels).clamp(0, 1) * 255).round().to(torch.uint8)
    return iter(images.permute(0, 2, 3, 1).cpu().numpy())


def _counts(batches: Sequence[Batch], device: torch.device) -> Tensor:
    """[3] float: masked words, masked patches, samples that are asked for title and picture.

    Of host integers, so the device is not asked, and filled there, not copied.
    """
    masks = [batch.masks for batch in batches if batch.masks is not None]
    items = sum(batch.cross_modal.num_asked for batch in batches if batch.cross_modal is not None)
    counts = (sum(m.num_words for m in masks), sum(m.num_patches for m in masks), items)
    return torch.stack([torch.full((), float(count), device=device) for count in counts])


def _needs(config: PretrainConfig) -> Needs:
    """Of a model of one modality its own view, and masks of what it reads."""
    architecture = config.model.architecture
    if architecture == "two_tower":
        raise UserError(
            "model.architecture=two_tower: stage=masked tells hidden words and patches from the rest of one stream, "
            "and here no stream has both; pre-train bert and vit each by itself, or choose stage=contrastive"
        )
    words, patches = architecture != "vit", architecture in WITH_PATCHES
    masking = config.masking or MaskingConfig()
    refuse_unread(masking, f"stage=masked of model.architecture={architecture}", words=words, patches=patches)
    view = "text" if architecture == "bert" else "full" if words else "image"
    return Needs(VIEW_NAMES if masking.cross_modal else (view,), Masked(masking, words=words, patches=patches))


def refuse_unread(masking: MaskingConfig, reader: str, *, words: bool, patches: bool) -> None:
    """Raise UserError where a setting is of words or of patches, and `reader` masks none."""
    defaults = MaskingConfig()
    for names, read, what in ((("mlm_probability",), words, "words"), (PATCH_SETTINGS, patches, "patches")):
        for name in names:
            value = getattr(masking, name)
            if not read and value != getattr(defaults, name):
                raise UserError(f"masking.{name}={value}: {reader} masks no {what} and does not read it; remove it")
    if masking.cross_modal and not (words and patches):
        raise UserError(f"masking.cross_modal=true: {reader} does not read words and patches; remove it")


def _model_class(architecture: str) -> type[MbsdForMaskedModelling] | type[MbsdForMaskedPatches]:
    return MbsdForMaskedPatches if architecture == "vit" else MbsdForMaskedModelling


def _objective(config: PretrainConfig, inputs: Inputs) -> MaskedObjective:
    kind: Any = _model_class(config.model.architecture)
    return MaskedObjective(start_model(kind, config, len(inputs.tokenizer), inputs.weights, _head(config)))


def _outline(config: PretrainConfig, model: BackboneConfig) -> MaskedObjective:
    shaped = copy.deepcopy(model)
    for name, value in _head(config).items():
        setattr(shaped, name, value)
    return MaskedObjective(_model_class(model.architecture)(shaped))


def _head(config: PretrainConfig) -> dict[str, Any]:
    """Of BackboneConfig."""
    masking = config.masking or MaskingConfig()
    return {"mpm_target": masking.mpm_target, "cross_modal": masking.cross_modal}


MASKED = Stage(
    needs=_needs,
    objective=_objective,
    outline=_outline,
    charts=Charts(
        {
            "watch": {
                "loss terms": (r"train/loss_(mlm|mpm|title|picture_.*)",),
                "held out: accuracy": ("validation/word_accuracy",),
            }
        },
        held_out=("loss", "word_accuracy"),
    ),
    paper_batch=2048,
)
