"""What each floor answered, row by row: the file that `mbsd floors --answers` writes, in the form of a model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.tables import Table
from mbsd.metrics.table_scores import TableScores
from mbsd.scoring.answers import answers, write_answers
from mbsd.tasks.task import Labels


def write_floor_answers(logits: Mapping[str, NDArray[Any]], table: Table, out: Path) -> None:
    """Write a Parquet file with one row a test row, its columns those of `mbsd.scoring.answers` for each floor.

    Args:
        logits: floor -> [n] of an attribute table's n test rows, or [n, C] of a category table's C classes.
        table: that the floors were fitted on.
    """
    rows = np.asarray(table.rows("test"))
    names = tuple(table.class_names) if table.kind == "categories" else ("no", "yes")
    scores = TableScores(tuple(logits), np.stack(list(logits.values())), table.column("label")[rows], {})
    write_answers(answers([("", scores)], table, rows, Labels(names, np.arange(len(names)))), out)
