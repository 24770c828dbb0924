"""Which checkpoint of a run is its result: the best by its validations. No torch.

Each checkpoint stores its own validation score in `run.json` (`mbsd.training.early_stopping`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.checkpoint import store
from mbsd.errors import UserError


@dataclass(frozen=True)
class BestValidation:
    """The best validation of a run that looked for one.

    Attributes:
        metric: its name, as of `best.metric`.
        value: None: it never was a number.
    """

    metric: str
    higher_is_better: bool
    value: float | None
    step: int


def best_validation(run: Path) -> BestValidation:
    """As the newest checkpoint of `run` knows it.

    Raises:
        UserError: the run has no checkpoint, or looked for no best one (pre-training).
    """
    newest = store.folders(store.root_of(str(run)))[0]
    selection = _selection(newest)
    if selection is None:
        raise UserError(f"{newest}: holds no validation score; name a fine-tuning run")
    return BestValidation(selection["metric"], selection["higher_is_better"], selection["best"], selection["best_step"])


def result(
    root: Path, *, below: str = "", checksums: bool = True, say: Callable[[str], None] | None = None
) -> Path | None:
    """The checkpoint below `root` that stands for its run: the best of those whose files (that begin with `below`) are
    as they were written; where none was validated, the newest; None: there is none.

    Every checkpoint stores its own validation score; if the best one is missing or damaged, the next best is used.

    Args:
        checksums: False: that the files are there at their sizes is enough.
        say: prints a line about each better one that is damaged.
    """
    by_value = sorted(store.folders(root), key=lambda folder: (*_rank(folder), store.step_of(folder)))
    for folder in by_value:
        broken = store.broken_files(folder, checksums=checksums, below=below)
        if not broken:
            return folder
        if say is not None:
            say(f"WARNING: {folder} is not taken: {broken[0]}")
    return None


def validated(folder: Path) -> tuple[str, float] | None:
    """(metric, value) of the validation that a checkpoint was saved after; None where there was none."""
    selection = _selection(folder)
    if selection is None or selection["seen"] != selection["of_step"] or selection["value"] is None:
        return None
    return selection["metric"], selection["value"]


def _rank(folder: Path) -> tuple[bool, float]:
    """Sorts checkpoints: validated ones first, the best of them first; then the newest."""
    found, selection = validated(folder), _selection(folder)
    if found is None or selection is None:
        return True, -store.step_of(folder)
    return False, -found[1] if selection["higher_is_better"] else found[1]


def _selection(folder: Path) -> dict[str, Any] | None:
    """The state of the run's EarlyStopping; None: it has none, or one of an older version, or a broken file."""
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        selection = facts.get("selection")
    except (OSError, ValueError, AttributeError):
        return None  # verifying its checksums reports that
    known = {"metric", "higher_is_better", "best", "best_step", "seen", "value"}
    return {**selection, "of_step": facts.get("step")} if selection and known <= selection.keys() else None
