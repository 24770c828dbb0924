"""FashionBERT's pre-training: masked words, features of masked crops, text-image alignment (Gao et al. 2020).

The three losses are weighed by their own sizes (`mbsd.objectives.adaptive_weights`). The weights are those of the
global batch's losses: with one micro-batch a step `forward` adds its losses to the other ranks'; with more, `contexts`
runs all of them once without graph before. Either way nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.batch import Batch
from mbsd.config.run import PretrainConfig
from mbsd.config.stages import FashionBertTasks, MaskingConfig
from mbsd.data.inputs import Inputs
from mbsd.data.spec import Masked, Needs
from mbsd.metrics.board import Charts
from mbsd.model.config import BackboneConfig
from mbsd.model.crop_heads import CropsOutput, MbsdForMaskedCrops
from mbsd.model.load import start_model
from mbsd.objectives.adaptive_weights import adaptive_loss, adaptive_weights, share_of_loss
from mbsd.objectives.crops import crop_feature_loss
from mbsd.stages.crop_parts import counted, filled, require_crops, right_of, sums_of, whole_counts
from mbsd.stages.stage import Losses, Objective, Stage, Validation
from mbsd.stages.two_pass import RandomState
from mbsd.stages.vilt import paired_samples

NAMES = ("mlm", "tia", "mpm")  # words, alignment, crops: the order of K = 3 losses


@dataclass(frozen=True)
class Counted:
    """What a step's only micro-batch of this rank has to know.

    Attributes:
        shares_K: what its sums are divided by: the global batch's counts, divided by ranks x micro-steps.
    """

    shares_K: Tensor


@dataclass(frozen=True)
class Known:
    """What one of several micro-batches has to know: the global batch's losses too, of a first pass.

    Attributes:
        losses_K: of the global batch.
        start: the random state before this micro-batch, for dropout to draw the same.
        end: the random state to leave behind; None: that of its own end.
    """

    shares_K: Tensor
    losses_K: Tensor
    start: RandomState
    end: RandomState | None


class FashionBertObjective(Objective):
    """Masked words, alignment and masked crops, weighed."""

    def __init__(self, model: MbsdForMaskedCrops, settings: FashionBertTasks) -> None:
        super().__init__(model)
        self.settings = settings

    def contexts(self, batches: Sequence[Batch]) -> Sequence[Counted | Known]:
        """The counts of the global batch; of several micro-batches whose losses are weighed, its losses too."""
        counts_K = whole_counts([self._counts(batch) for batch in batches])
        shares_K = counts_K / (dist.get_world_size() * len(batches))
        if len(batches) == 1 or self.settings.weights == "equal":
            return [Counted(shares_K)] * len(batches)
        sums_K, states = torch.zeros_like(counts_K), [RandomState.now(self.device)]
        with torch.no_grad():
            for batch in batches:
                sums_K += self._sums(self.model(batch), batch)
                states.append(RandomState.now(self.device))
        dist.all_reduce(sums_K)
        ends = [None] * (len(batches) - 1) + [states[-1]]
        return [Known(shares_K, sums_K / counts_K, start, end) for start, end in zip(states[:-1], ends, strict=True)]

    def forward(self, batch: Batch, context: Counted | Known | None = None) -> Losses:
        """The weighted loss of the global batch, with this micro-batch's share of its gradient; and its three terms."""
        if isinstance(context, Known):
            context.start.restore()
        sums_K = self._sums(self.model(batch), batch)
        if isinstance(context, Known) and context.end is not None:
            context.end.restore()
        losses_K = sums_K / (context.shares_K if context is not None else whole_counts([self._counts(batch)], False))
        named = {f"loss_{name}": loss for name, loss in zip(NAMES, losses_K.unbind(), strict=True)}
        if self.settings.weights == "equal":
            return {"loss": losses_K.mean(), **named}
        if isinstance(context, Known):
            whole_K = context.losses_K
        else:
            whole_K = losses_K.detach().clone()
            if context is not None:
                dist.all_reduce(whole_K)
                whole_K /= dist.get_world_size()
        loss = share_of_loss(*adaptive_loss(whole_K, self.settings.weight_gradient), losses_K)
        return {"loss": loss, **named, **_weights(whole_K)}

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> Validation:
        """The three losses as means over all that is asked for, weighed; shares of words and matches that are right."""
        totals = torch.zeros(2 * len(NAMES) + 2, dtype=torch.float64, device=self.device)
        for batch in batches:
            output: CropsOutput = self.model(batch)
            parts = self._sums(output, batch), self._counts(batch), right_of(output, batch)
            totals += torch.cat([part.double() for part in parts])
        dist.all_reduce(totals)
        sums_K, counts_K, right = totals.split([len(NAMES), len(NAMES), 2])
        losses_K = sums_K / counts_K.clamp_min(1)
        adaptive = self.settings.weights == "adaptive"
        loss = adaptive_loss(losses_K, False)[0] if adaptive else losses_K.mean()
        metrics = {"loss": loss, **{f"loss_{name}": x for name, x in zip(NAMES, losses_K.unbind(), strict=True)}}
        metrics |= {"word_accuracy": right[0] / counts_K[0].clamp_min(1)}
        metrics |= {"match_accuracy": right[1] / counts_K[1].clamp_min(1)}
        return Validation({name: float(value) for name, value in metrics.items()})

    def vectors(self, batch: Batch) -> Tensor:
        """[B, D]: h of title and picture, of which no crop is hidden."""
        h_BD: Tensor = self.model.mbsd.represent(dataclasses.replace(batch, masks=None))[0]
        return h_BD

    def _sums(self, output: CropsOutput, batch: Batch) -> Tensor:
        """[K]: the losses of a micro-batch, summed over what is asked for."""
        return torch.stack([*sums_of(output, batch), crop_feature_loss(output.predicted_QF, output.true_QF)])

    def _counts(self, batch: Batch) -> Tensor:
        """[K]: how many words, matches and crops are asked for."""
        assert batch.masks is not None
        return torch.cat([counted(batch, self.device), filled((batch.masks.num_patches,), self.device)])


def _weights(losses_K: Tensor) -> Losses:
    return {f"weight_{name}": w for name, w in zip(NAMES, adaptive_weights(losses_K).unbind(), strict=True)}


def _needs(config: PretrainConfig) -> Needs:
    require_crops(config.model.architecture, "fashionbert", ("fashionbert", "kaleido"))
    settings = config.fashionbert or FashionBertTasks()
    masking = MaskingConfig(settings.mlm_probability, settings.mpm_probability)
    return Needs(("full",), Masked(masking, mismatched=settings.mismatched))


def _objective(config: PretrainConfig, inputs: Inputs) -> FashionBertObjective:
    model = start_model(MbsdForMaskedCrops, config, len(inputs.tokenizer), inputs.weights)
    return FashionBertObjective(model, config.fashionbert or FashionBertTasks())


def _outline(config: PretrainConfig, model: BackboneConfig) -> FashionBertObjective:
    return FashionBertObjective(MbsdForMaskedCrops(model), config.fashionbert or FashionBertTasks())


FASHIONBERT = Stage(
    needs=_needs,
    objective=_objective,
    outline=_outline,
    samples=paired_samples,
    charts=Charts(
        {
            "watch": {
                "loss terms": (r"train/loss_(mlm|tia|mpm)",),
                "weights of the losses": (r"train/weight_(mlm|tia|mpm)",),
                "held out: accuracy": (r"validation/(word|match)_accuracy",),
            }
        },
        held_out=("loss", "word_accuracy", "match_accuracy"),
    ),
)
