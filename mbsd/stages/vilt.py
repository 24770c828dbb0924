"""ViLT's pre-training (Kim et al. 2021): masked words and image-text matching, of any model that reads the view full.

One forward answers both. The authors run matching again on words that are not masked; here all samples are masked
alike, so that a [MASK] says nothing of whether the picture is the title's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.batch import Batch
from mbsd.catalog.several import Items
from mbsd.catalog.tables import Table
from mbsd.config.run import PretrainConfig
from mbsd.config.stages import ItmConfig, MaskingConfig
from mbsd.data.inputs import Inputs, split_samples
from mbsd.data.samples import Samples
from mbsd.data.spec import Masked, Needs
from mbsd.errors import UserError
from mbsd.metrics.binary import BINARY, binary_metrics
from mbsd.metrics.board import Charts
from mbsd.metrics.table_scores import Scores, TableScores, gather_scores
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import MbsdForPairedPictures, PairedOutput
from mbsd.model.load import start_model
from mbsd.objectives.masked import masked_word_loss_in_chunks, words_right
from mbsd.objectives.matches import match_sum, matches_right, num_asked
from mbsd.stages.masked import refuse_unread
from mbsd.stages.negatives import SHOWN, alikeness, compared_by, labels_of, with_negatives
from mbsd.stages.stage import Losses, Objective, Stage, Validation

MISMATCHED = 0.5  # as in ViLT


class ViltObjective(Objective):
    """Masked words + image-text matching; with hard negatives where the batch says of no sample whose picture it is."""

    def contexts(self, batches: Sequence[Batch]) -> Sequence[Tensor]:
        """[2] each: masked words and questions of the global batch, divided by (ranks x micro-steps)."""
        counts = torch.stack([_counts(batch) for batch in batches]).sum(0)
        dist.all_reduce(counts)
        counts = (counts / (dist.get_world_size() * len(batches))).clamp_min(1e-9)
        return [counts] * len(batches)

    def forward(self, batch: Batch, context: Tensor | None = None) -> Losses:
        """The mean over masked words plus the mean over questions; and the share of these that is answered right."""
        counts = context if context is not None else _counts(batch).clamp_min(1e-9)
        labels_VB, batch = labels_of(batch), self._shown(batch)
        output: PairedOutput = self.model(batch)
        labels_VB = labels_VB[: len(output.logits)]
        assert batch.masks is not None
        mlm = masked_word_loss_in_chunks(*output.words, batch.masks.mlm_labels_K) / counts[0]
        itm = match_sum(output.logits, labels_VB) / counts[1]
        right = matches_right(output.logits.detach(), labels_VB) / counts[1]
        return {"loss": mlm + itm, "loss_mlm": mlm, "loss_itm": itm, "accuracy_full": right}

    def _shown(self, batch: Batch) -> Batch:
        """What the model is shown: the batch's view full, and in it hard negatives where they are to be found."""
        if batch.labels_B is not None:
            return batch
        if not len(batch.images):
            return dataclasses.replace(batch, views=batch.views.alone(0))
        with torch.no_grad():
            alike_BB = alikeness(self.model.mbsd.represent(compared_by(batch)))
        return with_negatives(batch, alike_BB, self.model.config.num_image_tokens)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> Validation:
        """Mean losses over all masked words and all questions, which are of random negatives; the five metrics."""
        mine, words = Scores(), torch.zeros(3, dtype=torch.float64, device=self.device)
        for batch in batches:
            assert batch.masks is not None and batch.labels_B is not None
            output: PairedOutput = self.model(batch)
            labels_K = batch.masks.mlm_labels_K
            loss, right = masked_word_loss_in_chunks(*output.words, labels_K), words_right(*output.words, labels_K)
            words += torch.stack([loss, right, torch.full_like(loss, float(batch.masks.num_words))]).double()
            mine.add(batch, output.logits)
        totals = dict(zip(("loss", "right", "words"), words.tolist(), strict=True))
        scores = _asked(gather_scores(mine, totals))
        num_words = max(scores.totals["words"], 1)
        mlm = scores.totals["loss"] / num_words
        logits_n, labels_n = (torch.from_numpy(values).double() for values in (scores.logits[0], scores.labels))
        itm = float(match_sum(logits_n, labels_n)) / max(len(labels_n), 1)
        metrics = {"loss": mlm + itm, "loss_mlm": mlm, "loss_itm": itm}
        metrics["word_accuracy"] = scores.totals["right"] / num_words
        if len(labels_n):
            found = binary_metrics(scores.logits[0], scores.labels)
            metrics |= {f"{name}_full": value for name, value in found.items()}
        return Validation(metrics, scores if len(labels_n) else None)


def _asked(scores: TableScores) -> TableScores:
    """Without the samples of which nothing is asked."""
    asked = np.flatnonzero(scores.labels >= 0)
    return TableScores(scores.views, scores.logits[:, asked], scores.labels[asked], scores.totals)


def _counts(batch: Batch) -> Tensor:
    """[2] float: masked words, from shapes, and questions, which the device counts."""
    assert batch.masks is not None
    asked = num_asked(labels_of(batch)).float()
    return torch.stack([torch.full_like(asked, float(batch.masks.num_words)), asked])


def _needs(config: PretrainConfig) -> Needs:
    masking = config.masking or MaskingConfig()
    refuse_unread(masking, "stage=vilt", words=True, patches=False)
    random = Masked(masking, patches=False, mismatched=MISMATCHED)
    if (config.itm or ItmConfig()).negatives == "random":
        return Needs(("full",), random)
    # What a held-out sample is asked must not depend on its neighbours, which are others on other numbers of ranks.
    hard = Masked(masking, patches=False, keyed=True)
    return Needs(SHOWN, hard, validation_views=("full",), validation_targets=random)


def paired_samples(config: PretrainConfig, catalog: Items, table: Table | None, split: str) -> Samples:
    """The catalogue's items; refused where none has both a title and a picture."""
    samples = split_samples(config, catalog, table, split)
    items = catalog.indices(split)
    if not catalog.is_complete()[items].any():
        raise UserError(
            f"catalogue {catalog.path}: none of the {len(items)} items of its {split} split has both a title and a "
            f"picture; stage={config.stage} asks whether the two belong together: build the catalogue with both"
        )
    return samples


def _objective(config: PretrainConfig, inputs: Inputs) -> ViltObjective:
    return ViltObjective(start_model(MbsdForPairedPictures, config, len(inputs.tokenizer), inputs.weights))


def _outline(config: PretrainConfig, model: BackboneConfig) -> ViltObjective:
    return ViltObjective(MbsdForPairedPictures(model))


VILT = Stage(
    needs=_needs,
    objective=_objective,
    outline=_outline,
    samples=paired_samples,
    charts=Charts(
        {
            "watch": {
                "loss terms": (r"train/loss_(mlm|itm)",),
                "right within the batch: does the picture belong to the title": ("modality/accuracy_full",),
                "held out: accuracy": ("validation/word_accuracy", "validation/accuracy_full"),
                "held out: ROC-AUC": ("validation/roc_auc_full",),
            }
        },
        held_out=("loss", "word_accuracy", *(f"{name}_full" for name in BINARY)),
    ),
)
