"""Kaleido-BERT's pre-training: masked words, image-text matching, a puzzle at each of five scales (Zhuge et al. 2021).

The loss is the sum of the seven means, as the paper writes it and the authors' code has it, which does all five puzzles
to every picture. Left out are the saliency network that cuts the picture to the product, and the attention maps that
align words with crops before: words and crops are masked at random, not where the two are aligned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.batch import Batch
from mbsd.config.run import PretrainConfig
from mbsd.config.stages import KaleidoTasks, MaskingConfig
from mbsd.data.inputs import Inputs
from mbsd.data.spec import Masked, Needs, PuzzleSpec
from mbsd.metrics.board import Charts
from mbsd.model.config import BackboneConfig
from mbsd.model.crop_heads import MbsdForPuzzles, PuzzlesOutput
from mbsd.model.load import start_model
from mbsd.objectives.crops import crop_feature_loss, puzzle_loss, puzzles_solved
from mbsd.stages.crop_parts import counted, filled, require_crops, right_of, sums_of, whole_counts
from mbsd.stages.stage import Losses, Objective, Stage, Validation
from mbsd.stages.vilt import paired_samples

NAMES = ("mlm", "itm", "rotation", "jigsaw", "camouflage", "grey", "blank")  # the order of K = 7 losses
ANSWERED = ("word", "match", "rotation", "jigsaw", "camouflage")  # those of a right answer, in the same order


class KaleidoObjective(Objective):
    """Masked words, matching and five puzzles."""

    def contexts(self, batches: Sequence[Batch]) -> Sequence[Tensor]:
        """[K] each: what the global batch asks for, divided by (ranks x micro-steps)."""
        counts_K = whole_counts([_counts(batch, self.device) for batch in batches])
        return [counts_K / (dist.get_world_size() * len(batches))] * len(batches)

    def forward(self, batch: Batch, context: Tensor | None = None) -> Losses:
        """The sum of the seven means, and each of them."""
        shares_K = context if context is not None else whole_counts([_counts(batch, self.device)], False)
        losses_K = _sums(self.model(batch), batch) / shares_K
        named = {f"loss_{name}": loss for name, loss in zip(NAMES, losses_K.unbind(), strict=True)}
        return {"loss": losses_K.sum(), **named}

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> Validation:
        """The seven losses as means over all that is asked for, and shares of right answers."""
        totals = torch.zeros(2 * len(NAMES) + len(ANSWERED), dtype=torch.float64, device=self.device)
        for batch in batches:
            output: PuzzlesOutput = self.model(batch)
            parts = _sums(output, batch), _counts(batch, self.device), _right(output, batch)
            totals += torch.cat([part.double() for part in parts])
        dist.all_reduce(totals)
        sums_K, counts_K, right = totals.split([len(NAMES), len(NAMES), len(ANSWERED)])
        losses = (sums_K / counts_K.clamp_min(1)).tolist()
        accuracies = (right / counts_K[: len(ANSWERED)].clamp_min(1)).tolist()
        named = {f"loss_{name}": loss for name, loss in zip(NAMES, losses, strict=True)}
        named |= {f"{name}_accuracy": share for name, share in zip(ANSWERED, accuracies, strict=True)}
        return Validation({"loss": sum(losses), **named})


def _sums(output: PuzzlesOutput, batch: Batch) -> Tensor:
    """[K]: the losses of a micro-batch, summed over what is asked for."""
    of_classes = [puzzle_loss(logits, labels) for logits, labels in _classes(output, batch)]
    of_features = [crop_feature_loss(*features) for features in (output.grey, output.blank)]
    return torch.stack([*sums_of(output, batch), *of_classes, *of_features])


def _right(output: PuzzlesOutput, batch: Batch) -> Tensor:
    """Right answers, in the order of ANSWERED."""
    solved = [puzzles_solved(logits, labels) for logits, labels in _classes(output, batch)]
    return torch.cat([right_of(output, batch), torch.stack(solved)])


def _classes(output: PuzzlesOutput, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of the real pictures."""
    puzzles = batch.puzzles
    assert puzzles is not None
    labels = (puzzles.rotation_I, puzzles.jigsaw_I, puzzles.camouflage_I)
    logits = (output.rotation_I4, output.jigsaw_I24, output.camouflage_I9)
    return [(of, label[: puzzles.num_images]) for of, label in zip(logits, labels, strict=True)]


def _counts(batch: Batch, device: torch.device) -> Tensor:
    """[K]: how much of each kind a micro-batch asks for."""
    puzzles = batch.puzzles
    assert puzzles is not None
    images, grey, blank = puzzles.num_images, puzzles.grey_IG.shape[1], puzzles.blank_IG.shape[1]
    return torch.cat([
        counted(batch, device),
        filled((images, images, puzzles.num_camouflaged, images * grey, images * blank), device),
    ])  # fmt: skip


def _needs(config: PretrainConfig) -> Needs:
    require_crops(config.model.architecture, "kaleido", ("kaleido",))
    settings = config.kaleido or KaleidoTasks()
    return Needs(
        ("full",),
        Masked(
            MaskingConfig(settings.mlm_probability),
            patches=False,
            mismatched=settings.mismatched,
            puzzles=PuzzleSpec(settings.grey, settings.blank),
        ),
    )


def _objective(config: PretrainConfig, inputs: Inputs) -> KaleidoObjective:
    return KaleidoObjective(start_model(MbsdForPuzzles, config, len(inputs.tokenizer), inputs.weights))


def _outline(config: PretrainConfig, model: BackboneConfig) -> KaleidoObjective:
    return KaleidoObjective(MbsdForPuzzles(model))


KALEIDO = Stage(
    needs=_needs,
    objective=_objective,
    outline=_outline,
    samples=paired_samples,
    charts=Charts(
        {
            "watch": {
                "loss terms": (r"train/loss_(mlm|itm)",),
                "puzzles": (r"train/loss_(rotation|jigsaw|camouflage|grey|blank)",),
                "held out: accuracy": (r"validation/(word|match)_accuracy",),
                "held out: puzzles solved": (r"validation/(rotation|jigsaw|camouflage)_accuracy",),
            }
        },
        held_out=("loss", *(f"{name}_accuracy" for name in ANSWERED)),
    ),
)
