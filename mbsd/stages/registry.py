"""The stages of pre-training by their name in `stage`."""

from __future__ import annotations

from mbsd.errors import UserError
from mbsd.stages.contrastive import CONTRASTIVE
from mbsd.stages.fashionbert import FASHIONBERT
from mbsd.stages.kaleido import KALEIDO
from mbsd.stages.masked import MASKED
from mbsd.stages.matching import MATCHING
from mbsd.stages.stage import Stage
from mbsd.stages.vilt import VILT

STAGES: dict[str, Stage] = {
    "masked": MASKED, "contrastive": CONTRASTIVE, "matching": MATCHING, "vilt": VILT, "fashionbert": FASHIONBERT,
    "kaleido": KALEIDO,
}  # fmt: skip


def find_stage(name: str) -> Stage:
    """The stage of this name.

    Raises:
        UserError: there is none.
    """
    if name not in STAGES:
        raise UserError(f"stage={name}: expected one of {', '.join(STAGES)}", shared=True)
    return STAGES[name]
