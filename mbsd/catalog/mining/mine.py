"""A shop's behaviour log -> the pair table of stage 2: purchases, and two kinds of hard negatives (section 3.5).

    positives        (query, item) with at least `min_buyers` distinct buyers; clicks never make one
    same-category    a query that led to purchases in the item's category
    rewrite          a positive's query with one term replaced by another of the same type

Nobody has done anything at all with a negative's item under its query, not even clicked.

Every draw is a hash of (seed, what is drawn for), ties are broken by the text, and the hash is md5, so that the table
is the same for any number of threads, any order of the log and either engine. Negatives are drawn by rotation: a hash
gives the place in a random list where an item starts to read. The work is then items x draws, where a join of items
with all queries of their category would be thousands of times that. The SQL is in `mining_sql`, in the order of
`mine_pairs`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mbsd.catalog.layout import SPLITS
from mbsd.catalog.mining import sql
from mbsd.catalog.mining.engines import open_engine
from mbsd.catalog.mining.gazetteer import Tagger
from mbsd.catalog.mining.log_files import LogFiles, check_columns, find_log
from mbsd.catalog.mining.report import MiningReport
from mbsd.catalog.mining.settings import LOG_COLUMNS, MiningSettings, bound
from mbsd.catalog.mining.sql_engine import Engine, UndecodableText, number, rows
from mbsd.catalog.mining.taggers import make_tagger
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS, normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.catalog.table_file import write_batches
from mbsd.errors import UserError

__all__ = ["LOG_COLUMNS", "MiningReport", "MiningSettings", "mine_pairs"]

KINDS_IN_REPORT = 50


def mine_pairs(
    log: Path | str,
    catalog: Catalog,
    out: Path,
    settings: MiningSettings | None = None,
    tagger: Tagger | None = None,
) -> MiningReport:
    """Write the table of kind `pairs` for a log: rows in the order of (item, text).

    Args:
        log: Parquet, CSV or JSONL: a file, a folder of them, a glob, or the URL of Parquet that the engine can read;
            columns user, query, item (the item's id), kind (`purchase` makes positives, any other is behaviour) and,
            for a split by time, time.
        catalog: its items' categories and attributes steer the negatives.
        out: the table's file.
        settings: None = the defaults.
        tagger: finds the terms that can be replaced; None = the gazetteer of the catalogue's attributes. A term is
            replaced only where the item's own value of its type is known, never by a value that the item has, nor by
            one that contains its own or is contained in it ("navy blue", "blue").

    Raises:
        UserError: the log cannot be read, lacks a column, or holds no positive; or the engine cannot do it.
    """
    settings = settings or MiningSettings()
    started = time.monotonic()
    bounds = [
        bound(name, getattr(settings, name)) for name in ("validation_from", "test_from") if settings.split == "time"
    ]
    tagger = tagger or make_tagger("gazetteer", catalog)
    report = MiningReport(settings=asdict(replace(settings, columns=dict(settings.columns))))
    if settings.spill:
        Path(settings.spill).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mbsd-mining-", dir=settings.spill or None) as folder:
        columns = {name: settings.columns.get(name, name) for name in LOG_COLUMNS if name != "time"}
        if settings.split == "time" or "time" in settings.columns:
            columns["time"] = settings.columns.get("time", "time")
        files = find_log(log, columns, Path(folder))
        engine = open_engine(
            settings.engine, seed=settings.seed, folder=Path(folder), threads=settings.threads,
            memory_limit=settings.memory_limit, master=settings.master,
        )  # fmt: skip
        try:
            report.engine = engine.version
            items = catalog.table().select(["item_id", "category", "split"])
            engine.load("items", items.append_column("item", pa.array(np.arange(len(catalog)))))
            open_log(engine, files, columns, settings, report)
            declared = load_positives(engine, files.name, settings, bounds, report)
            _load_terms(engine, catalog, tagger)
            _draw_negatives(engine, settings, report)
            split_by = json.dumps({"by": settings.split, **declared})
            splits = sql.SPLITS_OF_SLOTS if settings.split == "time" else sql.SPLITS_OF_ITEMS
            report.split_rows = dict.fromkeys(SPLITS, 0)
            write_batches(
                "pairs",
                _counted(engine.batches(sql.PAIRS.format(splits=splits)), report),
                catalog,
                out,
                split_by=split_by,
            )
        finally:
            engine.close()
    report.seconds = time.monotonic() - started
    return report


def open_log(
    engine: Engine, files: LogFiles, columns: dict[str, str], settings: MiningSettings, report: MiningReport
) -> None:
    """Views `log` and `purchases`, tables `spellings` and `respelled`; counts of the rows, good and bad."""
    words = {"longest": MAX_QUERY_CHARACTERS, "timed": str(settings.split == "time").lower()}
    for as_bytes in (False, True):
        found = engine.open_log(files.paths, as_bytes=as_bytes)
        check_columns(files.name, columns, [name for name, _ in found])
        kind_of = dict(found)
        text = {name: engine.text((theirs, kind_of[theirs])) for name, theirs in columns.items() if name != "time"}
        times = columns.get("time", "time")
        micros = engine.micros((times, kind_of[times])) if times in kind_of else "CAST(0 AS BIGINT)"
        undecodable = " OR ".join(bad for _, bad in text.values())
        engine.view(
            "log",
            f"SELECT {text['user'][0]} AS user_id, {text['query'][0]} AS query, {text['item'][0]} AS item_id, "
            f"{text['kind'][0]} AS kind, {micros} AS micros, {undecodable} AS undecodable FROM raw_log",
        )
        try:
            engine.stage("spellings", sql.SPELLINGS.format(of="", **words))
            kinds = rows(engine, "SELECT coalesce(kind, 'null') AS kind, count(*) AS n FROM log GROUP BY 1")
        except UndecodableText:
            if as_bytes:
                raise
            continue
        break
    engine.stage("strangers", sql.STRANGERS)
    engine.stage("of_strangers", sql.SPELLINGS.format(of=sql.OF_STRANGERS, **words))
    # Once for each spelling, and in Python: the engines fold case in different ways.
    distinct = "SELECT DISTINCT raw FROM spellings WHERE raw IS NOT NULL"
    report.distinct_queries = engine.changed("respelled", distinct, normalise_query)
    engine.view("purchases", sql.PURCHASES.format(**words))
    _count(rows(engine, sql.COUNTS.format(**words)), kinds, files.unreadable, report)
    engine.drop("spellings")


def _count(faults: list[dict[str, Any]], kinds: list[dict[str, Any]], unreadable: int, report: MiningReport) -> None:
    rejected = Counter({"unreadable line": unreadable})
    for row in faults:
        number_of_rows, fault = int(row["n"]), sql.FAULTS[row["fault"]]
        # A row without a query or an item is that, whatever else is wrong with it.
        of_query = sql.QUERY_FAULTS[row["query_fault"]] if row["fault"] not in (1, 2, 3) else ""
        rejected[of_query or fault] += number_of_rows
        report.bad_times += int(row["bad_times"])
    report.log_rows = rejected.total()
    report.rejected = {reason: rejected[reason] for reason in sorted(rejected) if reason and rejected[reason]}
    by_kind = Counter({row["kind"]: int(row["n"]) for row in kinds})
    frequent = sorted(by_kind, key=lambda kind: (-by_kind[kind], kind))[:KINDS_IN_REPORT]
    report.rows_by_kind, report.kinds = {kind: by_kind[kind] for kind in frequent}, len(by_kind)


def load_positives(
    engine: Engine, name: str, settings: MiningSettings, bounds: list[float | int], report: MiningReport
) -> dict[str, int]:
    """Tables `bought` and `positives` (text, item, buyers, split); return a time split's bounds in microseconds."""
    by_time = settings.split == "time"
    engine.stage("bought", (sql.BOUGHT_WITH_TIME if by_time else sql.BOUGHT).format(min_buyers=settings.min_buyers))
    engine.view("found", sql.FOUND.format(min_buyers=settings.min_buyers))
    report.positives_found = number(engine, "SELECT count(*) FROM found")
    if report.positives_found == 0:
        left_out = ", ".join(f"{count} {reason}" for reason, count in report.rejected.items()) or "no row left out"
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.rows_by_kind.items())
        raise UserError(
            f"log {name}: no query led {settings.min_buyers} users to buy the same item ({report.log_rows} rows: "
            f"{kinds}; {left_out}); check the item ids and the kind 'purchase', or lower min_buyers"
        )
    declared: dict[str, int] = {}
    split = sql.SPLIT_OF_ITEM
    if by_time:
        validation, test = _resolve(engine, bounds)
        declared = {"validation_from": validation, "test_from": test}
        split = sql.SPLIT_OF_TIME.format(validation=validation, test=test)
    engine.stage("positives", sql.POSITIVES.format(split=split, cap=settings.positives_per_item()))
    report.positives = number(engine, "SELECT count(*) FROM positives")
    report.items = number(engine, "SELECT count(*) FROM (SELECT DISTINCT item FROM positives) AS sold")
    return declared


def _resolve(engine: Engine, bounds: list[float | int]) -> tuple[int, int]:
    batches = list(engine.batches("SELECT micros FROM found"))
    times = np.sort(np.concatenate([batch.column(0).to_numpy() for batch in batches]))
    validation, test = (
        int(times[min(int(value * len(times)), len(times) - 1)]) if isinstance(value, float) else value
        for value in bounds
    )
    if validation > test:
        raise UserError(f"validation begins at {validation} and test at {test} microseconds since 1970; test is last")
    return validation, test


def _load_terms(engine: Engine, catalog: Catalog, tagger: Tagger) -> None:
    """Tables `terms` (of the positives' queries), `own_values` (of their items), `ranked_values` and `open_terms`."""
    schema = [("text", pa.string()), ("type", pa.string()), ("script", pa.string()), ("value", pa.string())]
    schema += [("first", pa.int64()), ("behind", pa.int64())]
    script = {value: _script(value) for of_name in tagger.values.values() for value in of_name}
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
    engine.load("terms", pa.Table.from_batches(terms))
    known: dict[tuple[str, str], list[str]] = {}
    items = engine.batches("SELECT DISTINCT item FROM positives")
    owned = [_own_values(catalog, batch.column(0), tagger, known) for batch in items]
    engine.load("own_values", pa.Table.from_batches(owned))
    values = [(name, script[value], value) for name, of_name in tagger.values.items() for value in of_name]
    columns = [pa.array([row[place] for row in values], pa.string()) for place in range(3)]
    engine.load("term_values", pa.table(columns, names=["type", "script", "value"]))
    engine.stage("ranked_values", sql.RANKED_VALUES)
    engine.stage("open_terms", sql.OPEN_TERMS)


def _own_values(catalog: Catalog, items: Any, tagger: Tagger, known: dict[tuple[str, str], list[str]]) -> Any:
    """The canonical values of some items, as a record batch (item, type, value); of "red / blue" both.

    `known` keeps what each (type, value as it is written) means, since few are written in many items.
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
    """Which values may replace which: those with a character of Chinese, Japanese or Korean, and the others."""
    return (
        "east" if any("\u2e80" <= character <= "\uffdc" or character >= "\U00020000" for character in value) else "west"
    )


def _draw_negatives(engine: Engine, settings: MiningSettings, report: MiningReport) -> None:
    """Table `chosen`: a negative for every place that has one, in one pass over the log a round."""
    amounts = {"rewrites": settings.rewrites_per_positive, "negatives": settings.negatives_per_positive}
    if settings.split == "time":
        engine.stage("slots", sql.SLOTS.format(**amounts))
    engine.stage("pool", sql.POOL)
    engine.stage("pool_sizes", sql.POOL_SIZES)
    engine.drop("bought")
    engine.stage("short", sql.SHORT.format(**amounts))
    empty = [("item", pa.int64()), ("source", pa.string()), ("text", pa.string()), ("replaced", pa.string())]
    engine.load("chosen_0", pa.schema([*empty, ("slot", pa.int64())]).empty_table())
    engine.view("chosen", "SELECT * FROM chosen_0")
    while number(engine, "SELECT count(*) FROM short"):
        report.rounds += 1
        engine.stage("turns", sql.TURNS)
        engine.stage("rewrites", sql.REWRITES.format(longest=MAX_QUERY_CHARACTERS))
        engine.drop("turns")
        engine.stage("same_category", sql.SAME_CATEGORY)
        engine.view("candidates", sql.CANDIDATES)
        engine.stage("keys", sql.KEYS)
        engine.stage("hit", sql.HIT)
        engine.drop("keys")
        engine.stage("free", sql.FREE)
        engine.stage("picked_rewrites", sql.PICKED_REWRITES)
        engine.stage("picked", sql.PICKED)
        engine.stage(f"chosen_{report.rounds}", "SELECT * FROM picked")
        parts = [f"SELECT * FROM chosen_{n}" for n in range(report.rounds + 1)]
        engine.view("chosen", " UNION ALL ".join(parts))
        engine.stage("still_short", sql.STILL_SHORT)
        engine.stage("short", "SELECT * FROM still_short")
        engine.drop("free")
    counts = {
        row["source"]: int(row["n"]) for row in rows(engine, "SELECT source, count(*) AS n FROM chosen GROUP BY source")
    }
    report.rewrites, report.same_category = counts.get("rewrite", 0), counts.get("same-category", 0)
    report.rewrites_asked = report.positives * settings.rewrites_per_positive
    report.same_category_asked = report.positives * settings.negatives_per_positive
    report.rewrites_short = report.rewrites_asked - report.rewrites
    report.same_category_short = report.same_category_asked - report.same_category


def _counted(batches: Iterator[Any], report: MiningReport) -> Iterator[Any]:
    for batch in batches:
        for count in pc.value_counts(batch.column("split")).to_pylist():
            report.split_rows[count["values"]] += count["counts"]
        yield batch
