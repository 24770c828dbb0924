"""The head of the generative stage: which token follows each token of a title."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mbsd.batch import Batch
from mbsd.errors import UserError
from mbsd.model.backbone import Writer
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import Head


@dataclass(frozen=True)
class WrittenOutput:
    """What the generative stage predicts, at the tokens of titles alone.

    Attributes:
        rows_WD: with `table` they make the logits of the W tokens that follow, which are left to the loss: all of them
            at once may be gigabytes.
        table: [vocabulary, D]; the word table.
    """

    rows_WD: Tensor
    table: Tensor


class MbsdForGeneration(Head):
    """Titles, token after token; the vocabulary projection is the word table."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        if not isinstance(self.mbsd, Writer):
            raise UserError(f"model.architecture={config.architecture} writes no text: expected m6 or ofa")
        self.freeze_unread()
        self.post_init()

    def freeze_unread(self) -> None:
        """What no written token reads."""
        self.mbsd.freeze_for_writing()

    def forward(self, batch: Batch) -> WrittenOutput:
        """Of `batch.generation`."""
        return WrittenOutput(self.mbsd.decode(batch), self.mbsd.get_input_embeddings().weight)
