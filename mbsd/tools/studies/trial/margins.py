"""How far a model is above a floor on the same test rows: the difference, with an interval over the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from mbsd.scoring.intervals import intervals

RESAMPLES = 200
Metric = Callable[[NDArray[np.int64], NDArray[Any]], float]  # of labels and what was answered


def _macro_f1(labels: NDArray[np.int64], answers: NDArray[Any]) -> float:
    return float(f1_score(labels, answers, average="macro", zero_division=0.0))


# Metrics by name, each with the columns that it reads: the answered label, or the probability of yes.
METRICS: dict[str, tuple[str, Metric]] = {
    "accuracy": ("answer", accuracy_score),
    "macro_f1": ("answer", _macro_f1),
    "roc_auc": ("probability", roc_auc_score),
}


@dataclass(frozen=True)
class Answers:
    """What a model or floor answered to all test rows: a column of the Parquet file beside its scores."""

    file: Path
    column: str

    def read(self, what: str) -> NDArray[Any]:
        """Answers or probabilities, one a row."""
        found: NDArray[Any] = pq.read_table(self.file, columns=[f"{what}_{self.column}"]).column(0).to_numpy()
        return found


def margin(models: Sequence[Answers], floor: Answers, metric: str) -> dict[str, Any]:
    """{"value": the mean of the models less the floor, "interval": 95 % of the paired bootstrap over rows, or None}.

    Args:
        models: of the same rows, one a seed.
        metric: of METRICS.
    """
    what, score = METRICS[metric]
    columns = [one.read(what) for one in (floor, *models)]
    true = pq.read_table(floor.file, columns=["label"]).column(0).to_numpy()
    if what == "answer":
        names, numbers = np.unique(np.concatenate([true, *columns]), return_inverse=True)
        true, *columns = np.split(numbers, len(columns) + 1)
    else:
        true = (true == "yes").astype(np.int64)

    def above(scores: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
        if metric == "roc_auc" and len(np.unique(labels)) < 2:
            return {}
        of_floor, *of_models = (score(labels, scores[:, at]) for at in range(scores.shape[1]))
        return {metric: float(np.mean(of_models) - of_floor)}

    scores = np.stack(columns, axis=1)
    value = above(scores, true)
    bounds = intervals(above, scores, true, RESAMPLES, 0) if value else {}
    return {"value": value.get(metric), "interval": bounds.get(metric)}
