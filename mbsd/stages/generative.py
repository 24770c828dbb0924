"""The generative stage: captioning and image-based text denoising, by which M6 and OFA are pre-trained."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.batch import Batch
from mbsd.config.run import PretrainConfig
from mbsd.config.stages import GenerativeConfig
from mbsd.data.inputs import Inputs
from mbsd.data.spec import Generated, Needs
from mbsd.errors import UserError
from mbsd.metrics.board import Charts
from mbsd.model.backbone import Writer
from mbsd.model.baselines.ofa import CAPTION_PROMPT, DENOISING_PROMPT
from mbsd.model.config import BackboneConfig
from mbsd.model.families import FAMILIES
from mbsd.model.generation import MbsdForGeneration, WrittenOutput
from mbsd.model.load import start_model
from mbsd.objectives.generative import next_token_losses, tokens_right
from mbsd.stages.stage import Losses, Objective, Stage, Validation


class GenerativeObjective(Objective):
    """Every token of a title, from what is shown and the tokens before it."""

    def contexts(self, batches: Sequence[Batch]) -> Sequence[Tensor]:
        """[2] each: tokens of captioning and of denoising in the global batch, divided by (ranks x micro-steps)."""
        counts = _counts(batches, self.device)
        dist.all_reduce(counts)
        return [counts / (dist.get_world_size() * len(batches))] * len(batches)

    def forward(self, batch: Batch, context: Tensor | None = None) -> Losses:
        """The mean over all tokens of the global batch; and over those of each task, which are 0 where it has none."""
        counts = context if context is not None else _counts([batch], self.device)
        sums = self._sums(self.model(batch), batch)
        captioning, denoising = (sums / counts.clamp_min(1e-9)).unbind()
        loss = sums.sum() / counts.sum().clamp_min(1e-9)
        return {"loss": loss, "loss_captioning": captioning.detach(), "loss_denoising": denoising.detach()}

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> Validation:
        """Mean losses over all tokens, of both tasks, and the share of tokens that are predicted right."""
        totals = torch.zeros(5, dtype=torch.float64, device=self.device)
        for batch in batches:
            assert batch.generation is not None
            output: WrittenOutput = self.model(batch)
            right = tokens_right(output.rows_WD, output.table, batch.generation.labels_W)
            parts = [self._sums(output, batch), right[None], _counts([batch], self.device)]
            totals += torch.cat([part.double() for part in parts])
        dist.all_reduce(totals)
        captioning, denoising, right_ones, captioned, denoised = totals.tolist()
        tokens = max(captioned + denoised, 1)
        return Validation({
            "loss": (captioning + denoising) / tokens,
            "loss_captioning": captioning / max(captioned, 1),
            "loss_denoising": denoising / max(denoised, 1),
            "token_accuracy": right_ones / tokens,
        })  # fmt: skip

    def _sums(self, output: WrittenOutput, batch: Batch) -> Tensor:
        """[2]: the summed losses of captioning and of denoising."""
        assert batch.generation is not None
        losses_W = next_token_losses(output.rows_WD, output.table, batch.generation.labels_W)
        captioned_W = batch.generation.captioned_W
        return torch.stack([torch.where(chosen, losses_W, 0.0).sum() for chosen in (captioned_W, ~captioned_W)])

    def vectors(self, batch: Batch) -> Tensor:
        """[B, D]: means over tokens, for this stage trains no h."""
        means_BD: Tensor = self.model.mbsd.encode(batch).token_means(batch)[0]
        return means_BD


def _counts(batches: Iterable[Batch], device: torch.device) -> Tensor:
    """[2] float: tokens of captioning and of denoising; from host integers, and filled on the device, not copied."""
    written = [batch.generation for batch in batches if batch.generation is not None]
    counts = (sum(w.num_captioned for w in written), sum(w.num_denoised for w in written))
    return torch.stack([torch.full((), float(count), device=device) for count in counts])


def _needs(config: PretrainConfig) -> Needs:
    """The view full, and titles to write.

    Raises:
        UserError: a model that writes no text, or settings of the data that leave no whole title.
    """
    architecture, data = config.model.architecture, config.data
    writers = [name for name, family in FAMILIES.items() if issubclass(family.backbone, Writer)]
    if architecture not in writers:
        raise UserError(
            f"model.architecture={architecture}: stage=generative trains a model that writes text; expected "
            f"{' or '.join(writers)}"
        )
    if data.word_dropout:
        raise UserError(
            f"data.word_dropout={data.word_dropout}: stage=generative asks for whole titles, and hides words of them "
            "itself (generative.noise); remove it"
        )
    if data.token_bucket > 1:
        raise UserError(
            f"data.token_bucket={data.token_bucket}: stage=generative does not fill its batches up; remove it"
        )
    settings = config.generative or GenerativeConfig()
    defaults = (CAPTION_PROMPT, DENOISING_PROMPT) if architecture == "ofa" else ("", "")
    given = (settings.caption_prompt, settings.denoising_prompt)
    prompts = [default if prompt is None else prompt for prompt, default in zip(given, defaults, strict=True)]
    return Needs(("full",), Generated(settings, *prompts))


def _objective(config: PretrainConfig, inputs: Inputs) -> GenerativeObjective:
    return GenerativeObjective(start_model(MbsdForGeneration, config, len(inputs.tokenizer), inputs.weights))


def _outline(config: PretrainConfig, model: BackboneConfig) -> GenerativeObjective:
    return GenerativeObjective(MbsdForGeneration(copy.deepcopy(model)))


GENERATIVE = Stage(
    needs=_needs,
    objective=_objective,
    outline=_outline,
    charts=Charts(
        {
            "watch": {
                "loss terms": (r"train/loss_(captioning|denoising)",),
                "held out: loss terms": (r"validation/loss_(captioning|denoising)",),
                "held out: accuracy": ("validation/token_accuracy",),
            }
        },
        held_out=("loss", "loss_captioning", "loss_denoising", "token_accuracy"),
    ),
)
