"""What a model answered, row by row: the file that `evaluate.py` writes beside its metrics."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit, softmax

from mbsd.catalog.tables import Table
from mbsd.io.files import replacing
from mbsd.metrics.table_scores import TableScores
from mbsd.tasks.task import Int64, Labels


def answers(scores: Iterable[tuple[str, TableScores]], table: Table, rows: Int64, labels: Labels) -> Any:
    """A pyarrow Table with one row a scored row, in the table's order.

    Columns: row (of the task table), of several catalogues catalog (its name), item (or item_a, item_b), text (a tag),
    label (its name), and for each pass and view answer_NAME, the label that is thought likeliest, probability_NAME,
    that of 1 of a yes/no task, else that of the answer, and label_probability_NAME, that of the true label.

    Args:
        scores: (name, scores of `rows`); a pass of several views has a column of each.
        table: the task's.
        rows: row numbers of the table.
        labels: the task's.
    """
    names = np.array(labels.names, dtype=object)
    columns: dict[str, Any] = {"row": rows, **table.addresses(rows)}
    if "text" in table.column_names:
        texts = table.column("text")
        columns["text"] = [texts[row] for row in rows.tolist()]
    true = labels.of[table.column("label")[rows]]
    columns["label"] = names[true]
    for prefix, of_pass in scores:
        for view, logits in zip(of_pass.views, of_pass.logits, strict=True):
            if logits.ndim == 1:
                probability, answer = expit(logits), (logits > 0).astype(np.int64)
                of_label = np.where(true == 1, probability, 1 - probability)
            else:
                answer = logits.argmax(-1)
                of_class = softmax(logits.astype(np.float64), axis=-1)
                probability, of_label = (of_class[np.arange(len(answer)), which] for which in (answer, true))
            columns[f"answer_{prefix or view}"] = names[answer]
            columns[f"probability_{prefix or view}"] = probability.astype(np.float32)
            columns[f"label_probability_{prefix or view}"] = of_label.astype(np.float32)
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def write_answers(found: Any, out: Path) -> None:
    """Write them as Parquet."""
    with replacing(out) as beside:
        pq.write_table(found, beside, compression="zstd")
