"""What of a task table nothing can be learned from, or the model would not see: refused before a run starts."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.tables import Table
from mbsd.config.data import DataConfig
from mbsd.errors import UserError
from mbsd.tasks.task import Labels, Task, shortened


def check_training_table(task: Task, table: Table, labels: Labels) -> None:
    """Refuse a table that nothing can be learned from, or that asks for what was never shown.

    Raises:
        UserError: an empty split; one label in all of train or validation; a class of validation or test without a
            row in train, naming the row.
    """
    of_row = labels.of[table.column("label")]
    for split in ("train", "validation"):
        found = np.unique(of_row[table.rows(split)])
        if len(found) == 0:
            raise UserError(f"table {table.path}: its {split} split is empty; use more items")
        if len(found) == 1:
            raise UserError(
                f"table {table.path}: all rows of its {split} split have the label {labels.names[found[0]]!r}; there "
                "is nothing to tell apart: use more items, or a table with both"
            )
    trained = np.unique(of_row[table.rows("train")])
    for split in ("validation", "test"):
        rows = table.rows(split)
        unseen = np.flatnonzero(~np.isin(of_row[rows], trained))
        if len(unseen):
            row = int(rows[unseen[0]])
            raise UserError(
                f"table {table.path}, row {row + 1}: class {labels.names[of_row[row]]!r} of the {split} split has no "
                "row in train; move some of its rows there, or take the class out of the table"
            )


def check_tags(table: Table, splits: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
    """Refuse a tag that the text limit would cut: two tags could become one.

    Raises:
        UserError: naming the first row with such a tag.
    """
    if table.kind != "attributes":
        return
    room = min(data.max_query_tokens, data.max_text_tokens) - 2
    tags, lengths = table.column("text"), {}
    for split in splits:
        for row in table.rows(split).tolist():
            tag = tags[row]
            if tag not in lengths:
                lengths[tag] = len(tokenizer.tokenize(normalise_query(tag)))
            if lengths[tag] > room:
                raise UserError(
                    f"table {table.path}, row {row + 1}: the tag {shortened(tag)!r} has {lengths[tag]} tokens, and "
                    f"data.max_query_tokens={data.max_query_tokens} leaves room for {room}; shorten it, or raise "
                    "data.max_query_tokens (and data.max_text_tokens)"
                )
