"""Retrieval: an item's picture by its title, the other way round, others of its product, and items by their category.

Measured twice: every item of the same product is right (items that share a key, see `mbsd.catalog.keys`), and under
`_own` the item itself alone. Where query and candidates are vectors of one kind, the query's own item is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.keys import open_keys
from mbsd.metrics.ranking import METRICS, Identified, Int64, Ranking, ranking
from mbsd.stages.labelled import TaskMetrics
from mbsd.tasks.names import shown_name, templated, text_vectors
from mbsd.tasks.vector_task import Encoded, ItemVectors, Measured, Subject, VectorTask

ACROSS = (("text", "image"), ("image", "text"))
WITHIN = ("text", "image", "mean", "full")  # views in which others of a product are looked for
CATEGORY_VIEWS = ("text", "image", "mean")
CATEGORY_METRICS = ("p1", "p10", "mrr")


@dataclass(frozen=True)
class Pool:
    """Who may be found, and who asks.

    Attributes:
        vectors: of the candidates.
        keys: int64 [candidates, K]; of the same product.
        asking: bool [candidates]; which of them are queries.
        categories: [candidates]; names, "" where there is none.
    """

    vectors: ItemVectors
    keys: Int64
    asking: NDArray[np.bool_]
    categories: Sequence[str] = ()


def retrieved(pool: Pool) -> Iterator[tuple[str, Ranking, Int64]]:
    """Name of a direction, how it fared, and the candidates' rows that asked: each direction that the views allow.

    This asks for arrays alone: vectors of a floor are measured as those of a model.
    """
    for query, candidate in ACROSS:
        if {query, candidate} <= set(pool.vectors.views):
            asked, found = _side(pool, query, pool.asking), _side(pool, candidate)
            name = f"{query}->{candidate}"
            yield name, *_ranked(asked, found)
            yield f"{name}_own", *_ranked((asked[0].own_pairs(), asked[1]), (found[0].own_pairs(), found[1]))
    for view in WITHIN:
        if view in pool.vectors.views:
            yield f"{view}->{view}", *_ranked(_side(pool, view, pool.asking), _side(pool, view), exclude_own=True)


def by_category(pool: Pool, names: Sequence[str], of_names: Any) -> Iterator[tuple[str, Ranking]]:
    """The same of categories: each name looks for the candidates that are of it, in each view.

    Args:
        names: the categories that ask.
        of_names: [names, E]; their vectors.
    """
    number = {name: k for k, name in enumerate(names)}
    of_item = np.array([number.get(name, -1) for name in pool.categories], dtype=np.int64)[:, None]
    asked = Identified(of_names, np.full(len(names), -1, dtype=np.int64), np.arange(len(names))[:, None])
    for view in CATEGORY_VIEWS:
        if view in pool.vectors.views:
            there = np.flatnonzero(pool.vectors.present[view])
            found = Identified(pool.vectors.vectors[view], pool.vectors.items, of_item).where(there)
            yield f"category->{view}", ranking(asked, found)


def _side(pool: Pool, view: str, chosen: NDArray[np.bool_] | None = None) -> tuple[Identified, Int64]:
    """The vectors of a view, of the items that show something in it (and are `chosen`), and their rows in the pool."""
    there = pool.vectors.present[view] if chosen is None else pool.vectors.present[view] & chosen
    rows = np.flatnonzero(there)
    return Identified(pool.vectors.vectors[view], pool.vectors.items, pool.keys).where(rows), rows


def _ranked(
    asked: tuple[Identified, Int64], found: tuple[Identified, Int64], *, exclude_own: bool = False
) -> tuple[Ranking, Int64]:
    result = ranking(asked[0], found[0], exclude_own=exclude_own)
    return result, asked[1][result.rows]


def _category_names(subject: Subject) -> list[str]:
    """The categories of the items that ask."""
    index = subject.catalog.table()["category"].take(subject.rows)
    return sorted({name for name in index.to_pylist() if name})


def _said(subject: Subject) -> list[str]:
    names = subject.settings.names
    return templated([shown_name(name, names.show) for name in _category_names(subject)], names.templates)


def _others(subject: Subject) -> Int64:
    """The items of the pool that are not of the split."""
    if subject.settings.retrieval.pool == "split":
        return np.zeros(0, dtype=np.int64)
    return np.setdiff1d(subject.catalog.indices(None), subject.items)


def _together(rows: ItemVectors, others: ItemVectors) -> ItemVectors:
    """The vectors of both, by rising item."""
    if not len(others.items):
        return rows
    items = np.concatenate([rows.items, others.items])
    order = np.argsort(items)

    def joined(of: Mapping[str, Any], and_of: Mapping[str, Any]) -> dict[str, Any]:
        return {view: np.concatenate([of[view], and_of[view]])[order] for view in rows.views}

    return ItemVectors(items[order], joined(rows.vectors, others.vectors), joined(rows.present, others.present))


def _check(subject: Subject) -> None:
    open_keys(subject.catalog, subject.settings.retrieval.same, required=True)


def _measure(subject: Subject, encoded: Encoded) -> Mapping[str, Measured]:
    vectors = _together(encoded.rows, encoded.others)
    keys = open_keys(subject.catalog, subject.settings.retrieval.same, required=True)
    categories = subject.catalog.table()["category"].take(vectors.items).to_pylist()
    pool = Pool(vectors, keys.of(vectors.items), np.isin(vectors.items, subject.rows), categories)
    found = {}
    for name, result, of_pool in retrieved(pool):
        if len(result.rows):
            answers = {"rank": result.values["rank"].astype(np.int64)}
            at = np.searchsorted(subject.rows, vectors.items[of_pool])
            found[name] = _lines(result, METRICS, at, answers)
    names = _category_names(subject)
    settings = subject.settings.names
    if names:
        of_names = text_vectors([shown_name(name, settings.show) for name in names], settings.templates, encoded.texts)
        for name, result in by_category(pool, names, of_names):
            if len(result.rows):
                found[name] = _lines(result, CATEGORY_METRICS)
    return found


def retrieved_within(subject: Subject, vectors: ItemVectors) -> Mapping[str, Measured]:
    """Others of the items' products in each view by itself, for vectors whose views are of different spaces."""
    keys = open_keys(subject.catalog, subject.settings.retrieval.same, required=True).of(vectors.items)
    found = {}
    for view in vectors.views:
        alone = ItemVectors(vectors.items, {view: vectors.vectors[view]}, {view: vectors.present[view]})
        for name, result, _ in retrieved(Pool(alone, keys, np.isin(vectors.items, subject.rows))):
            if len(result.rows):
                found[name] = _lines(result, METRICS)
    return found


def _lines(
    result: Ranking,
    names: tuple[str, ...],
    rows: Int64 | None = None,
    answers: Mapping[str, NDArray[Any]] | None = None,
) -> Measured:
    """A ranking as the frame takes it: its queries are the rows whose intervals are drawn."""
    columns = ["rank" if name == "median_rank" else name for name in names]
    more = {
        "chance": result.expected(names),
        "queries": len(result.rows),
        "without_a_right_one": result.left_out,
        "candidates": result.candidates,
    }
    return Measured(
        metrics=ranking_metrics(names),
        scores=np.stack([result.values[column] for column in columns], axis=1),
        labels=np.zeros(len(result.rows), dtype=np.int64),
        more=more,
        rows=rows,
        answers=answers or {},
    )


def ranking_metrics(names: tuple[str, ...]) -> TaskMetrics:
    """The metrics [n, names] of queries -> their means, and the median of the rank."""

    def metrics(values: NDArray[Any], _: Int64) -> dict[str, float]:
        return {
            name: float((np.median if name == "median_rank" else np.mean)(values[:, column]))
            for column, name in enumerate(names)
        }

    return metrics


RETRIEVAL = VectorTask(
    name="retrieval",
    kind=None,
    measure=_measure,
    compares=True,
    others=_others,
    texts=_said,
    check=_check,
)
