"""What the stages of FashionBERT and Kaleido-BERT have in common: masked words, and does the picture fit the title.

Losses are sums over what is asked for, divided by what the global batch asks for: neither ranks nor micro-steps change
the mean. Counts that shapes or the batch's plain integers tell are filled in on the device; labels are counted there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mbsd.batch import Batch
from mbsd.errors import UserError
from mbsd.model.crop_heads import CropsOutput, PuzzlesOutput
from mbsd.model.families import FAMILIES
from mbsd.objectives.masked import masked_word_loss_in_chunks, words_right
from mbsd.objectives.matches import match_sum, matches_right, num_asked

NONE_ASKED = 1e-9  # in place of a count of 0, whose sum is 0 too


def require_crops(architecture: str, stage: str, wanted: tuple[str, ...]) -> None:
    """Raise UserError where a model has not the crops that a stage asks for."""
    if architecture not in wanted:
        others = ", ".join(name for name in FAMILIES if name not in wanted)
        raise UserError(
            f"model.architecture={architecture}: stage={stage} predicts features of crops as {' and '.join(wanted)} "
            f"cut{'s' if len(wanted) == 1 else ''} them, which none of {others} does; set model.architecture="
            f"{wanted[0]}, or choose another stage"
        )


def whole_counts(counts: Sequence[Tensor], of_all_ranks: bool = True) -> Tensor:
    """The sum over micro-batches and ranks, at least `NONE_ASKED` (collective, but where `of_all_ranks` is False)."""
    total = torch.stack(list(counts)).sum(0)
    if of_all_ranks:
        dist.all_reduce(total)
    return total.clamp_min(NONE_ASKED)


def filled(counts: Sequence[int], device: torch.device) -> Tensor:
    """Plain integers as float32 on the device, where they are made: a copy from the host would be waited for."""
    return torch.stack([torch.full((), float(count), device=device) for count in counts])


def counted(batch: Batch, device: torch.device) -> Tensor:
    """[2]: masked words, and samples that are asked whether their picture fits their title."""
    assert batch.masks is not None and batch.labels_B is not None
    asked = num_asked(batch.labels_B).float()
    return torch.cat([filled((batch.masks.num_words,), device), asked[None]])


def sums_of(output: CropsOutput | PuzzlesOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """The losses of the masked words and of the matches, summed."""
    assert batch.masks is not None and batch.labels_B is not None
    words = masked_word_loss_in_chunks(*output.words, batch.masks.mlm_labels_K)
    return words, match_sum(output.match_B, batch.labels_B)


def right_of(output: CropsOutput | PuzzlesOutput, batch: Batch) -> Tensor:
    """[2]: words and matches that are answered right."""
    assert batch.masks is not None and batch.labels_B is not None
    words = words_right(*output.words, batch.masks.mlm_labels_K)
    return torch.stack([words, matches_right(output.match_B, batch.labels_B)])
