"""What a study's cells answered row by row, for metrics that `launchers/evaluate.py` does not report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.errors import UserError
from mbsd.io.files import digest_of
from mbsd.scoring.paired import RankedScores
from mbsd.tools.studies.chains import Cell, pair_table
from mbsd.tools.studies.settings import StudyConfig
from mbsd.tools.studies.study import read_scores, shop_of


@dataclass(frozen=True)
class Answers:
    """The scored test rows of attribute prediction that a metric reads.

    Attributes:
        rows: of the task table, int64 [n].
        items: of each row, int64 [n].
        labels: 0 or 1, int64 [n].
        probabilities: of label 1: view, or missing_RATE -> [n].
    """

    rows: NDArray[np.int64]
    items: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: Mapping[str, NDArray[Any]]

    def roc_auc(self, name: str) -> float:
        """Return the ROC-AUC of a view, or of missing_RATE."""
        return RankedScores(self.probabilities[name], self.labels).roc_auc(np.ones(len(self.labels)))


def read_answers(cell: Cell, evaluation: str, attributes: tuple[str, ...] | None = None) -> Answers:
    """Read the answers of a cell's evaluation.

    Args:
        cell: of the study.
        evaluation: its name.
        attributes: those whose rows are read; None: all.

    Raises:
        UserError: the file is not the one the scores were written with, or no row of both labels is of an attribute.
    """
    path = cell.scores(evaluation).with_suffix(".parquet")
    table = answers_of(cell.scores(evaluation))
    if attributes is not None:
        texts = table["text"].to_pylist()
        table = table.filter(np.array([text.partition(":")[0] in attributes for text in texts], dtype=bool))
    labels = np.array([label == "yes" for label in table["label"].to_pylist()], dtype=np.int64)
    if not 0 < labels.sum() < len(labels):
        of = f"of the attributes {', '.join(attributes)}" if attributes is not None else "of all"
        raise UserError(
            f"{path}: the test rows {of} have one label only, or are none, so there is no ROC-AUC; use a larger table"
        )
    start = "probability_"
    columns = {name: table[name].to_numpy() for name in table.column_names}
    found = {name.removeprefix(start): column for name, column in columns.items() if name.startswith(start)}
    return Answers(columns["row"], columns["item"], labels, found)


def answers_of(scores: Path) -> Any:
    """The answers beside the JSON of an evaluation, a pyarrow Table.

    Raises:
        UserError: the file is not the one the scores were written with.
    """
    path = scores.with_suffix(".parquet")
    if not path.exists() or digest_of(path) != read_scores(scores)["answers_sha256"]:
        raise UserError(f"{path}: not the answers that {scores} was written with; remove {scores}, and start again")
    return pq.read_table(path)


def withheld_attributes(config: StudyConfig) -> tuple[str, ...] | None:
    """Return the attributes that no query of a study's pair table named; None where it does not ask for them.

    Raises:
        UserError: the table does not say; it is not from `mbsd pairs derive --withhold`.
    """
    if not config.withheld:
        return None
    catalog, pairs = pair_table(config, shop_of(config))
    withheld = Table(pairs, Catalog(catalog), "pairs").made.get("withheld")
    if not withheld:
        raise UserError(
            f"table {pairs}: says of no attribute that its queries do not name it, and withheld=true asks for these; "
            "make it with `mbsd pairs derive --withhold ATTRIBUTE`"
        )
    return tuple(withheld)
