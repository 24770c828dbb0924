"""The contract of a task that is measured on vectors: nothing is trained, and no model is asked.

A task says which items and texts it needs vectors of, and measures arrays: those of a model
(`mbsd.scoring.item_vectors`) or of anything else that has one vector an item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.several import Items
from mbsd.catalog.tables import Kind, Table
from mbsd.config.scoring import EvaluateConfig
from mbsd.errors import UserError
from mbsd.stages.labelled import TaskMetrics

Int64 = NDArray[np.int64]
Vectors = NDArray[np.floating[Any]]
Encode = Callable[[Sequence[str]], Vectors]
"""Texts [t] -> unit vectors [t, E] of the text tower."""

VIEWS = ("text", "image", "mean", "full")


@dataclass(frozen=True)
class ItemVectors:
    """The vectors of n items in some views.

    Attributes:
        items: int64 [n]; item numbers, rising.
        vectors: view -> [n, E]; unit vectors, or zeros for an item that shows nothing in the view.
        present: view -> bool [n]; which show something.
    """

    items: Int64
    vectors: Mapping[str, Any]
    present: Mapping[str, NDArray[np.bool_]]

    @property
    def views(self) -> tuple[str, ...]:
        """In which there are vectors."""
        return tuple(self.vectors)

    def at(self, items: Int64) -> ItemVectors:
        """The same of some of the items, in any order and as often as they are named."""
        rows = np.searchsorted(self.items, items)
        assert np.array_equal(self.items[rows], items), "a task says first which items it needs"
        return ItemVectors(
            items,
            {view: of_view[rows] for view, of_view in self.vectors.items()},
            {view: of_view[rows] for view, of_view in self.present.items()},
        )


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        catalog: of the items.
        table: of the task; None where it reads none.
        settings: of the evaluation.
        rows: int64 [n]; rows of the table that are scored; without a table, item numbers.
        items: int64, rising; the items of these rows, from which titles or pictures are taken away. Without a table:
            all of the split.
    """

    catalog: Items
    table: Table | None
    settings: EvaluateConfig
    rows: Int64
    items: Int64

    @property
    def labels(self) -> Table:
        """The table of a task that has one."""
        assert self.table is not None, "VectorTask.kind"
        return self.table


@dataclass(frozen=True)
class Encoded:
    """The vectors that a task asked for.

    Attributes:
        rows: of the subject's items, as they are measured: some may have lost a title or a picture.
        others: of the items that `VectorTask.others` named, whole.
        texts: of texts that `VectorTask.texts` named.
    """

    rows: ItemVectors
    others: ItemVectors
    texts: Encode


@dataclass(frozen=True)
class Measured:
    """Scores in one view, and how they become metrics: the frame adds 95 % intervals over the scored rows.

    Attributes:
        metrics: (scores, labels) -> named values, of all rows or any of them.
        scores: [q, …]
        labels: int64 [q]
        more: further lines of the report.
        groups: name -> [q]; metrics are broken down by these values too.
        rows: int64 [q]; which of the subject's rows the answers are of, counted from 0.
        answers: column -> [q]; what was answered, for the Parquet file.
    """

    metrics: TaskMetrics
    scores: NDArray[Any]
    labels: Int64
    more: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    rows: Int64 | None = None
    answers: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def _none(_: Subject) -> Any:
    return ()


@dataclass(frozen=True)
class VectorTask:
    """A task that is measured on vectors; the functions are of its own file.

    Attributes:
        name: as `task` has it.
        kind: of its table; None: it reads the catalogue alone.
        measure: (subject, its vectors) -> name of a view -> what was measured. Called on one rank.
        views: that it can measure.
        compares: it compares texts with items, or titles with pictures, so that it takes vectors of one space; else any
            model's will do.
        others: items beside the subject's that it needs: training rows, a pool. On every rank, as the next two.
        texts: that it needs vectors of.
        check: raises UserError where it cannot be measured.
    """

    name: str
    kind: Kind | None
    measure: Callable[[Subject, Encoded], Mapping[str, Measured]]
    views: tuple[str, ...] = VIEWS
    compares: bool = False
    others: Callable[[Subject], Iterable[int] | Int64] = _none
    texts: Callable[[Subject], Sequence[str]] = _none
    check: Callable[[Subject], None] = _none


def items_of(table: Table, rows: Int64) -> Int64:
    """The item numbers of some rows of a table, rising, each once: int64."""
    columns = ("item_a", "item_b") if table.kind == "alignment" else ("item",)
    found: Int64 = np.unique(np.concatenate([np.asarray(table.column(name))[rows] for name in columns]))
    return found.astype(np.int64)


def split_rows(table: Table, split: str) -> Int64:
    """The rows of a split.

    Raises:
        UserError: there are none.
    """
    rows = table.rows(split)
    if len(rows) == 0:
        raise UserError(f"table {table.path}: its {split} split is empty; use a table with rows of that split")
    return np.asarray(rows, dtype=np.int64)
