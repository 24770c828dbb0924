"""Stage 2: does the query hold for the item, with SDMI (Eq. 3-11): all views that are trained on in one forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.config.run import PretrainConfig
from mbsd.config.stages import SdmiConfig
from mbsd.data.inputs import Inputs
from mbsd.data.spec import Labelled, Needs
from mbsd.metrics.binary import BINARY, binary_metrics
from mbsd.metrics.board import Board, Charts
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import MbsdForMatching, ViewsOutput
from mbsd.model.load import start_model
from mbsd.objectives.sdmi import match_loss, sdmi_loss
from mbsd.stages.labelled import show_cards, validate_labelled
from mbsd.stages.showcase import HeldOut
from mbsd.stages.stage import Losses, Objective, Stage, Validation


class MatchingObjective(Objective):
    """Query-item matching with SDMI."""

    def __init__(self, model: MbsdForMatching, sdmi: SdmiConfig) -> None:
        super().__init__(model)
        self.sdmi = sdmi

    def forward(self, batch: Batch, context: None = None) -> Losses:
        """Eq. 11."""
        assert batch.labels_B is not None
        return self.losses(self.model(batch), batch.labels_B)

    def losses(self, output: ViewsOutput, labels_B: Tensor) -> Losses:
        """The loss, its terms, each view's accuracy and how unequal the modalities are; of the full view alone, L_QI.

        text_stronger, image_stronger: shares of samples; sdmi_weight: mean w_i; modality_gap: the text view's accuracy
        less the image view's.
        """
        right_V = ((output.logits > 0) == (labels_B > 0.5)).float().mean(1)
        if output.logits.shape[0] == 1:
            loss = match_loss(output.logits[0], labels_B)
            return {"loss": loss, "loss_qi": loss, "accuracy_full": right_V[0]}
        terms = sdmi_loss(output.logits, output.h_VBD, labels_B, **asdict(self.sdmi))
        return {
            "loss": terms.loss,
            "loss_qi": terms.qi,
            "loss_qt": terms.qt,
            "loss_qv": terms.qv,
            "loss_kl": terms.kl,
            "loss_rs": terms.rs,
            "text_stronger": terms.text_stronger,
            "image_stronger": 1 - terms.text_stronger,
            "sdmi_weight": terms.weight,
            **{f"accuracy_{name}": right for name, right in zip(VIEW_NAMES, right_V, strict=True)},
            "modality_gap": right_V[1] - right_V[2],
        }

    def validate(self, batches: Iterable[Batch]) -> Validation:
        """Loss terms as sample means, and the five metrics of each view."""
        return validate_labelled(self, self.losses, binary_metrics, batches)

    def show(self, board: Board, step: int, few: HeldOut) -> None:
        """Product cards with each view's probability."""
        show_cards(self.model, board, step, few)


def _needs(config: PretrainConfig) -> Needs:
    """All three views; without unimodal losses and distillation, the full one alone (Table 6, row 6)."""
    sdmi = config.sdmi or SdmiConfig()
    views = VIEW_NAMES if sdmi.unimodal_losses or sdmi.distillation else ("full",)
    return Needs(views, Labelled(torch.float32), table="pairs", validation_views=VIEW_NAMES)


def _objective(config: PretrainConfig, inputs: Inputs) -> MatchingObjective:
    model = start_model(MbsdForMatching, config, len(inputs.tokenizer), inputs.weights)
    return MatchingObjective(model, config.sdmi or SdmiConfig())


def _outline(config: PretrainConfig, model: BackboneConfig) -> MatchingObjective:
    return MatchingObjective(MbsdForMatching(model), config.sdmi or SdmiConfig())


MATCHING = Stage(
    needs=_needs,
    objective=_objective,
    outline=_outline,
    charts=Charts(
        {
            "watch": {
                "loss terms": (r"train/loss_(qi|qt|qv|kl|rs)",),
                "held out: accuracy": (r"validation/accuracy_(full|text|image)",),
            },
            "modality gap": {
                "accuracy of each view": (r"modality/accuracy_(full|text|image)",),
                "which modality is the stronger, mean weight w": (
                    r"modality/(text_stronger|image_stronger|sdmi_weight)",
                ),
                "accuracy of text less image": ("modality/modality_gap", "validation/modality_gap"),
                "held out: ROC-AUC": (r"validation/roc_auc_(full|text|image)",),
            },
        },
        held_out=("loss", *(f"{name}_{view}" for view in VIEW_NAMES for name in BINARY)),
    ),
    paper_batch=1024,
)
