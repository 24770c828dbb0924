"""Where a run's numbers go: metrics.jsonl, TensorBoard and the screen, from rank 0 alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mbsd.io.files import replace_text
from mbsd.metrics.board import MIRROR_FAILURES, Board, Charts, tag_of
from mbsd.metrics.progress import Progress


class MetricsWriter:
    """Writes one object a logged step; a no-op on other ranks.

    Args:
        folder: the run folder.
        start_step, total_steps: of this start of the run. What an earlier start logged past `start_step` is taken back:
            those steps are done again.
        enabled: rank 0.
        settings: of the run, for TensorBoard's page "hparams".
        charts: of the stage.

    Attributes:
        board: TensorBoard, on rank 0.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        total_steps: int,
        enabled: bool,
        settings: Mapping[str, bool | int | float | str] | None = None,
        charts: Charts = Charts(),  # noqa: B008 (frozen)
    ) -> None:
        self.enabled, self._charts = enabled, charts
        if not enabled:
            return
        self._path = folder / "metrics.jsonl"
        _drop_lines_after(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self.board = Board(folder / "tensorboard", start_step + 1, settings or {})
        self._progress = Progress(start_step, total_steps)

    def advance(self) -> None:
        """One step is done."""
        if self.enabled:
            self._progress.advance()

    def log(
        self, step: int, values: Mapping[str, float], prefix: str = "train", curves: Mapping[str, float] | None = None
    ) -> None:
        """Write `values` of `step`; validation values get the prefix `validation`.

        Args:
            curves: tag -> value, for TensorBoard alone: what is too much for a line of metrics.jsonl.
        """
        if not self.enabled:
            return
        named = values if prefix == "train" else {f"{prefix}/{name}": value for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **named}) + "\n")
        self._file.flush()
        tagged = {tag_of(name, prefix): value for name, value in values.items()} | dict(curves or {})
        self.board.scalars(step, tagged)
        if prefix == "train":
            self.board.layout(list(tagged), self._charts)
        facts = {}
        if "loss" in values:
            facts[f"{'' if prefix == 'train' else prefix + ' '}loss"] = f"{values['loss']:.4f}"
        if "data_wait" in values:
            facts["data wait"] = f"{values['data_wait']:.0%}"
        if values.get(MIRROR_FAILURES):
            facts["copies failed"] = f"{values[MIRROR_FAILURES]:.0f}"
        self._progress.show(facts)

    def precision_recall(
        self, step: int, labels: NDArray[np.int64], probabilities: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """TensorBoard's PR curve of each view over all held-out samples that were scored."""
        if self.enabled:
            for view, of_view in probabilities.items():
                self.board.precision_recall(step, f"precision_recall/{view}", labels, of_view)

    def __enter__(self) -> MetricsWriter:
        """The writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files; what was logged stays."""
        if self.enabled:
            self._progress.close()
            self.board.close()
            self._file.close()


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    replace_text(path, "".join(line + "\n" for line in kept))  # killed in between, the old lines still stand
