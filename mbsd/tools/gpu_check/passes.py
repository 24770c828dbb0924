"""The contrastive stage's two passes on the GPU: the same bits in both, and the losses of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mbsd.tools.gpu_check.figures import PRECISIONS, Figure, measured
from mbsd.tools.gpu_check.place import NotMeasuredError, Place
from mbsd.tools.gpu_check.runs import Shop, train

STEPS = 6
SHORT = ("--run.max_steps", STEPS, "--run.log_every", 1, "--run.validate_every", 0)
CHECKED = ("--contrastive.check_passes", "true")
DIFFERS = "the second pass differs"  # `Share.require_same`
NO_DROPOUT = ("--model.dropout", 0.0)  # two passes draw it in another order than one


def measure_passes(place: Place, shop: Shop, precisions: Sequence[str] = PRECISIONS) -> dict[str, Figure]:
    """A few steps in one pass and in two of half the micro-batch, of the same samples; and two with dropout.

    A run with contrastive.check_passes ends at the first number of a vector that differs.
    """
    figures: dict[str, Figure] = {}
    for precision in precisions:
        same, deviation = (f"passes_{precision}_{kind}" for kind in ("same", "deviation"))
        how = f"{STEPS} steps with contrastive.check_passes in two micro-steps, with dropout and without"
        try:
            _run(place, shop, precision, "dropout", *CHECKED)
            two = _run(place, shop, precision, "two", *CHECKED, *NO_DROPOUT)
            figures[same] = Figure(True, how)
            one = _run(place, shop, precision, "one", *NO_DROPOUT)
            apart = [abs(a["loss"] - b["loss"]) / max(abs(a["loss"]), 1e-30) for a, b in zip(one, two, strict=True)]
            figures[deviation] = measured(max(apart), f"{STEPS} steps in one pass and in two, without dropout")
        except NotMeasuredError as error:
            found = False if DIFFERS in str(error) else None
            figures = {same: Figure(found, how, str(error)), deviation: Figure(None, reason=str(error)), **figures}
    return figures


def _run(place: Place, shop: Shop, precision: str, name: str, *words: object) -> list[dict[str, Any]]:
    micro_steps = 1 if name == "one" else 2
    name = f"{precision}_passes_{name}"
    return train(place, shop, precision, "contrastive", name, *SHORT, *words, micro_steps=micro_steps)
