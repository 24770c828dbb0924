"""The terms that rewrites are drawn from: in the positives' queries, of their items, and what may replace them."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from mbsd.catalog.mining import sql
from mbsd.catalog.mining.gazetteer import Tagger
from mbsd.catalog.mining.memory import give_back_memory
from mbsd.catalog.mining.sql_engine import Engine
from mbsd.catalog.queries import normalise_query
from mbsd.catalog.reader import Catalog


def load_terms(engine: Engine, catalog: Catalog, tagger: Tagger) -> None:
    """Make the tables `terms` (of the positives' queries) and `own_values` (of their items).

    So are `ranked_values` and `open_terms`, which follow from them. The table `positives` has to be there.
    """
    # Each in its own function, so that nothing of one is held while the next is made, nor while the engine joins.
    script = {value: _script(value) for of_name in tagger.values.values() for value in of_name}
    engine.load("terms", _terms(engine, tagger, script))
    engine.load("own_values", _values_of_items(engine, catalog, tagger))
    values = [(name, script[value], value) for name, of_name in tagger.values.items() for value in of_name]
    columns = [pa.array([row[column] for row in values], pa.string()) for column in range(3)]
    engine.load("term_values", pa.table(columns, names=["type", "script", "value"]))
    give_back_memory()
    engine.stage("ranked_values", sql.RANKED_VALUES)
    engine.stage("open_terms", sql.OPEN_TERMS)


def _terms(engine: Engine, tagger: Tagger, script: dict[str, str]) -> Any:
    """Return the terms of the positives' queries as a pyarrow Table."""
    schema = [("text", pa.string()), ("type", pa.string()), ("script", pa.string()), ("value", pa.string())]
    schema += [("first", pa.int64()), ("behind", pa.int64())]
    terms = [pa.RecordBatch.from_pylist([], pa.schema(schema))]
    for batch in engine.batches("SELECT DISTINCT text FROM positives"):
        queries = batch.column(0).to_pylist()
        found = [
            (query, span.type, script.get(span.value) or _script(span.value), span.value, span.start, span.end)
            for query, spans in zip(queries, tagger.tag(queries), strict=True)
            for span in spans
        ]
        if found:
            terms.append(
                pa.RecordBatch.from_arrays(list(map(pa.array, zip(*found, strict=True))), schema=pa.schema(schema))
            )
    return pa.Table.from_batches(terms)


def _values_of_items(engine: Engine, catalog: Catalog, tagger: Tagger) -> Any:
    """Return the canonical values of the positives' items as a pyarrow Table."""
    known: dict[tuple[str, str], list[str]] = {}
    items = engine.batches("SELECT DISTINCT item FROM positives")
    return pa.Table.from_batches([_own_values(catalog, batch.column(0), tagger, known) for batch in items])


def _own_values(catalog: Catalog, items: Any, tagger: Tagger, known: dict[tuple[str, str], list[str]]) -> Any:
    """Return the canonical values of some items as a record batch (item, type, value); of "red / blue" both.

    `known` caches the canonical values of each (type, value as it is written): many items share few spellings.
    """
    attributes = [json.loads(text) for text in catalog.table()["attributes"].take(items).to_pylist()]
    new = sorted({pair for of_item in attributes for pair in of_item.items()} - known.keys())
    for (name, value), spans in zip(new, tagger.tag([normalise_query(value) for _, value in new]), strict=True):
        meant = {tagger.canonical(name, value), *(span.value for span in spans if span.type == name)}
        known[name, value] = sorted(meant - {""})
    rows = [
        (item, name, own)
        for item, of_item in zip(items.to_pylist(), attributes, strict=True)
        for name, value in of_item.items()
        for own in known[name, value]
    ]
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    schema = pa.schema([("item", pa.int64()), ("type", pa.string()), ("value", pa.string())])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _script(value: str) -> str:
    """Return "east" for a value with a Chinese, Japanese or Korean character, else "west"; terms keep their script."""
    return (
        "east" if any("\u2e80" <= character <= "\uffdc" or character >= "\U00020000" for character in value) else "west"
    )
