"""The contrastive stage: an item's title and picture are pulled together, other products of the global batch apart.

With one micro-batch a step, `forward` does it all. With more, `contexts` runs the first of two passes
(`mbsd.stages.two_pass`). Either way the gradient is that of the loss of the whole global batch.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.batch import Batch
from mbsd.catalog.several import Items
from mbsd.catalog.tables import Table
from mbsd.config.run import PretrainConfig
from mbsd.config.stages import ContrastiveConfig
from mbsd.data.inputs import Inputs, split_samples
from mbsd.data.samples import Samples
from mbsd.data.spec import Needs, SameProduct
from mbsd.errors import UserError
from mbsd.metrics.board import Board, Charts
from mbsd.model.config import BackboneConfig
from mbsd.model.embedder import Embedder
from mbsd.model.heads import EmbedsOutput, MbsdForContrastive
from mbsd.model.load import start_model
from mbsd.objectives.anchors import NUM_STATISTICS
from mbsd.objectives.contrastive import Rule
from mbsd.stages.global_batch import Solved, Vectors, in_order, solve
from mbsd.stages.nearest import FOUND, retrieval, show_nearest
from mbsd.stages.showcase import HeldOut
from mbsd.stages.stage import Losses, Objective, Stage, Validation, WholeBatch
from mbsd.stages.two_pass import RandomState, Share, shares

FLOAT, INT = 4, 8  # bytes
Context = Share | Literal["gather"] | None


class ContrastiveObjective(Objective):
    """Titles against pictures over the whole global batch."""

    def __init__(self, model: MbsdForContrastive, settings: ContrastiveConfig) -> None:
        super().__init__(model)
        self.settings = settings
        self.rule = Rule(settings.loss, settings.targets, settings.chunk)
        if settings.temperature != "learned":
            model.logit_scale.requires_grad_(False).fill_(math.log(settings.temperature))

    def contexts(self, batches: Sequence[Batch]) -> Sequence[Context]:
        """Of one micro-batch: that `forward` is to gather. Of more: the first pass, and a share of it for each."""
        if len(batches) == 1:
            return ["gather"]
        parts, states = [], [RandomState.now(self.device)]
        with torch.no_grad():
            for batch in batches:
                parts.append(Vectors.of(self.model(batch), batch))
                states.append(RandomState.now(self.device))
            return self._shares(parts, states, dist.get_rank(), dist.get_world_size())

    def _shares(
        self, parts: Sequence[Vectors], states: Sequence[RandomState], rank: int, num_ranks: int
    ) -> Sequence[Share]:
        solved = solve(Vectors.joined(parts).of_all_ranks(rank, num_ranks), *self._scale_and_bias(), self.rule)
        return shares(solved, parts, states, num_ranks)

    @torch.no_grad()
    def whole_batch(self, batch: Batch, micro_steps: int, num_ranks: int) -> WholeBatch:
        """The gather of vectors and keys, the loss and its gradient."""
        keys_BK, has_B = batch.keys_BK, batch.has_text
        assert keys_BK is not None and has_B is not None, "the contrastive stage asks for both"
        rows, width, state = batch.num_samples, self.model.config.projection_dim, RandomState.now(self.device)
        vectors = [torch.empty(2, rows, width, device=self.device) for _ in range(micro_steps)]
        parts = [Vectors(image, text, keys_BK, has_B, has_B) for image, text in vectors]
        contexts = self._shares(parts, [state] * (micro_steps + 1), 0, num_ranks)
        numbers = 2 * width + 2 * NUM_STATISTICS  # two vectors, and the statistics of two directions
        row = FLOAT * numbers + INT * (keys_BK.shape[1] + 2)
        return WholeBatch(contexts, num_ranks * micro_steps * rows * row, encodes_first=True)

    def forward(self, batch: Batch, context: Context = None) -> Losses:
        """The loss of the global batch, whose gradient is this micro-batch's share of the whole one."""
        if isinstance(context, Share):
            return self._second_pass(batch, context)
        output: EmbedsOutput = self.model(batch)
        with torch.no_grad():
            mine = Vectors.of(output, batch)
            rows = mine.of_all_ranks(dist.get_rank(), dist.get_world_size()) if context == "gather" else mine.alone()
            solved = solve(rows, *self._scale_and_bias(), self.rule)
        return self._losses(output, solved, dist.get_world_size() if context == "gather" else 1)

    def _second_pass(self, batch: Batch, share: Share) -> Losses:
        share.start.restore()
        output: EmbedsOutput = self.model(batch)
        if share.end is not None:
            share.end.restore()
        if self.settings.check_passes:
            share.require_same(output)
        return self._losses(output, share.solved, share.num_shares)

    def _losses(self, output: EmbedsOutput, solved: Solved, num_shares: int) -> Losses:
        """Eq. (10): a loss with the global batch's value, and with the gradient that was solved for.

        The engine takes the mean over `num_shares` of them: vectors have their gradient in one share each, scale and
        bias have it in all.
        """
        surrogate = num_shares * (
            (solved.text_nE * output.text_embeds).sum() + (solved.image_nE * output.image_embeds).sum()
        )
        if self.settings.temperature == "learned":
            surrogate = surrogate + (self._log_scale_gradient(solved) * self._precise(self.model.logit_scale)).sum()
        if self.model.logit_bias is not None:
            surrogate = surrogate + (solved.bias * self._precise(self.model.logit_bias)).sum()
        return {**solved.values, "loss": solved.values["loss"] + (surrogate - surrogate.detach())}

    def _log_scale_gradient(self, solved: Solved) -> Tensor:
        """None where the scale is at its most and would be raised further: it can come back."""
        at_most = self._precise(self.model.logit_scale) >= math.log(self.settings.temperature_max)
        return torch.where(at_most & (solved.log_scale < 0), 0, solved.log_scale)

    def _scale_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """[1] each. The scale is held below its most where it is used: a clamped half copy would not reach the float32
        weights that ZeRO keeps."""
        log_scale = self._precise(self.model.logit_scale)
        if self.settings.temperature == "learned":
            scale = log_scale.clamp(max=math.log(self.settings.temperature_max)).exp()
        else:
            scale = torch.full_like(log_scale, self.settings.temperature)
        bias = self.model.logit_bias
        return scale, self._precise(bias) if bias is not None else None

    def _precise(self, parameter: Tensor) -> Tensor:
        return parameter.to(torch.promote_types(parameter.dtype, torch.float32))

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> Validation:
        """The loss over all held-out samples as ONE global batch, so that it rises with their number; and retrieval."""
        rows = in_order([Vectors.of(self.model(batch), batch) for batch in batches], self.device)
        solved = solve(rows.alone(), *self._scale_and_bias(), self.rule)
        values = {name: float(value) for name, value in solved.values.items() if name != "empty_steps"}
        return Validation({**values, **retrieval(rows)})

    def vectors(self, batch: Batch) -> Tensor:
        """[B, E]: the direction between title and picture, or of the one that there is."""
        embedder = Embedder(self.model.mbsd, "contrastive", self.model)
        return embedder.of_views(batch, ("mean",))["mean"].vectors_BE

    def show(self, board: Board, step: int, few: HeldOut) -> None:
        """The nearest pictures to a few titles, and the nearest titles to their pictures."""
        show_nearest(self.model, board, step, few)


def _needs(config: PretrainConfig) -> Needs:
    settings = config.contrastive or ContrastiveConfig()
    return Needs(("text", "image"), SameProduct(settings.same, required=settings.targets != "own"))


def _samples(config: PretrainConfig, catalog: Items, table: Table | None, split: str) -> Samples:
    """The catalogue's items; refused where no title can be compared with any picture."""
    samples = split_samples(config, catalog, table, split)
    items = catalog.indices(split)
    for what, has in zip(("title", "picture"), catalog.shown(), strict=True):
        if not has[items].any():
            raise UserError(
                f"catalogue {catalog.path}: none of the {len(items)} items of its {split} split has a {what}; "
                "stage=contrastive compares titles with pictures: build the catalogue with both"
            )
    return samples


def _objective(config: PretrainConfig, inputs: Inputs) -> ContrastiveObjective:
    settings = config.contrastive or ContrastiveConfig()
    model = start_model(MbsdForContrastive, config, len(inputs.tokenizer), inputs.weights, _head(settings))
    if settings.temperature_start is not None:  # weights of an earlier contrastive run bring their own
        with torch.no_grad():
            model.logit_scale.fill_(math.log(settings.temperature_start))
    return ContrastiveObjective(model, settings)


def _outline(config: PretrainConfig, model: BackboneConfig) -> ContrastiveObjective:
    settings = config.contrastive or ContrastiveConfig()
    shaped = copy.deepcopy(model)
    for name, value in _head(settings).items():
        setattr(shaped, name, value)
    # A plan has no passes to compare, and a benchmark is of the step without the comparison.
    return ContrastiveObjective(MbsdForContrastive(shaped), dataclasses.replace(settings, check_passes=False))


def _head(settings: ContrastiveConfig) -> dict[str, Any]:
    """Of BackboneConfig."""
    return {
        "projection_dim": settings.dim,
        "projection": settings.projection,
        "logit_scale_start": settings.temperature_start or (1 / 0.07 if settings.loss == "softmax" else 10.0),
        "logit_bias": settings.loss == "sigmoid",
    }


CONTRASTIVE = Stage(
    needs=_needs,
    objective=_objective,
    outline=_outline,
    samples=_samples,
    charts=Charts(
        {
            "watch": {
                "loss terms": (r"train/loss_(image|text)",),
                "right within the batch": (r"modality/accuracy_(image|text)",),
                "held out: found first": (r"validation/r1_(text_to_image|image_to_text)",),
                "held out: found among ten": (r"validation/r10_(text_to_image|image_to_text)",),
            },
            "towers": {
                "temperature": ("train/temperature",),
                "products of a batch: positives of a sample": ("train/positives",),
                "share of incomplete samples": ("train/incomplete",),
                "how far the towers' means are apart": ("modality/modality_gap",),
                "distance of title and picture": ("train/alignment",),
                "uniformity of each tower": (r"train/uniformity_(image|text)",),
                "steps without any pair": ("train/empty_steps",),
            },
        },
        held_out=("loss", "loss_image", "loss_text", *FOUND),
    ),
    monitor="r1_mean",
    least_batch=2,
)
