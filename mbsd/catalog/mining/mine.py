"""A shop's behaviour log -> the pair table of stage 2: purchases, and two kinds of hard negatives (section 3.5).

    positives        (query, item) with at least `min_buyers` distinct buyers; clicks never make one
    same-category    a query that led to purchases in the item's category
    rewrite          a positive's query with one term replaced by another of the same type

Both are drawn for a positive, and are like its query in length and frequency as far as there are such (`match`).
Under a negative's query nobody has done anything with its item, not even clicked.

Every draw is an md5 of (seed, what is drawn for) and ties are broken by the text, so the table is the same for any
number of threads, any order of the log and either engine. Negatives are drawn by rotation: a hash gives the position in
a random list at which an item begins to read. The work is then items x draws, where a join of items with all queries of
their category would be thousands of times that. The statements are in `sql`, in the order of `mine_pairs`, and those
that `match` puts in their place in `sql_matched`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mbsd.catalog.groups import find_groups
from mbsd.catalog.layout import SPLITS
from mbsd.catalog.mining import sql
from mbsd.catalog.mining.draws import draw_negatives
from mbsd.catalog.mining.gazetteer import Tagger, gazetteer
from mbsd.catalog.mining.log_files import find_log
from mbsd.catalog.mining.log_tables import open_log
from mbsd.catalog.mining.memory import give_back_memory
from mbsd.catalog.mining.report import MiningReport
from mbsd.catalog.mining.settings import LOG_COLUMNS, MiningSettings
from mbsd.catalog.mining.shortcuts import length_and_frequency
from mbsd.catalog.mining.sql_engine import Engine, number, open_engine
from mbsd.catalog.mining.terms import load_terms
from mbsd.catalog.reader import Catalog
from mbsd.catalog.table_file import write_batches
from mbsd.errors import UserError

__all__ = ["LOG_COLUMNS", "MiningReport", "MiningSettings", "mine_pairs"]


def mine_pairs(
    log: Path | str,
    catalog: Catalog,
    out: Path,
    settings: MiningSettings | None = None,
    tagger: Tagger | None = None,
) -> MiningReport:
    """Write the table of kind `pairs` for a log, its rows in the order of (item, text); return its counts.

    Args:
        log: Parquet, CSV or JSONL: a file, a folder of them, a glob, or the URL of Parquet that the engine can read;
            columns user, query, item (the item's id), kind (`purchase` makes positives, any other is behaviour) and,
            for a split by time, time. No other column is read. One may be in the folders' names (`kind=click/`).
        catalog: its items' categories and attributes decide which negatives there are.
        out: the table's file.
        settings: None = the defaults.
        tagger: finds the terms that can be replaced; None = the gazetteer of the catalogue's attributes. A term is
            replaced only where the item's own value of its type is known, never by a value that the item has, nor by
            one that contains its own or is contained in it ("navy blue", "blue").

    A row's split is that of its item's group (see `groups`), or, by time, of its purchase.

    Raises:
        UserError: the log cannot be read, lacks a column, or holds no positive; or the engine cannot do it.
    """
    settings = settings or MiningSettings()
    started = time.monotonic()
    report = MiningReport(settings=asdict(replace(settings, columns=dict(settings.columns))))
    splits: Any = None
    split_by: dict[str, Any] = {}
    if settings.split == "item":
        groups = find_groups(catalog, settings.group)
        splits, report.groups = pa.array(groups.splits(), pa.string()), groups.describe()
        split_by = settings.group.described()
        del groups
    tagger = tagger or gazetteer(catalog)
    if settings.spill:
        Path(settings.spill).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mbsd-mining-", dir=settings.spill or None) as folder:
        columns = {name: settings.columns.get(name, name) for name in LOG_COLUMNS if name != "time"}
        if settings.split == "time" or "time" in settings.columns:
            columns["time"] = settings.columns.get("time", "time")
        files = find_log(log, columns, Path(folder), settings.max_record_lines)
        give_back_memory()
        engine = open_engine(settings, Path(folder))
        try:
            report.engine = engine.version
            engine.load("items", _items(catalog, splits))
            catalog.release()  # an engine that fills its limit leaves no room for the index beside it
            open_log(engine, files, settings, report)
            bounds = load_positives(engine, files.name, settings, report)
            load_terms(engine, catalog, tagger)
            catalog.release()
            draw_negatives(engine, settings, report)
            report.length_and_frequency = length_and_frequency(engine)
            report.split_rows = dict.fromkeys(SPLITS, 0)
            of = sql.SPLITS_OF_SLOTS if settings.split == "time" else sql.SPLITS_OF_ITEMS
            pairs = _counted(engine.batches(sql.PAIRS.format(splits=of)), report)
            write_batches("pairs", pairs, catalog, out, split_by=split_by or {"by": "time", **bounds})
        finally:
            engine.close()
    report.seconds = time.monotonic() - started
    return report


def _items(catalog: Catalog, splits: Any) -> Any:
    """The engine's table of items: item_id, category, split (`splits`, or its own) and item, its number."""
    items = catalog.table().select(["item_id", "category", "split"])
    if splits is not None:
        items = items.set_column(2, "split", splits)
    return items.append_column("item", pa.array(np.arange(len(catalog))))


def load_positives(engine: Engine, name: str, settings: MiningSettings, report: MiningReport) -> dict[str, int]:
    """Make the tables `bought` and `positives` (text, item, buyers, split), and count them in the report.

    Returns:
        A time split's bounds, in microseconds since 1970; {} for a split by item.

    Raises:
        UserError: the log `name` holds no positive, or a time split's bounds are in the wrong order.
    """
    by_time = settings.split == "time"
    engine.stage("bought", (sql.BOUGHT_WITH_TIME if by_time else sql.BOUGHT).format(min_buyers=settings.min_buyers))
    engine.view("found", sql.FOUND.format(min_buyers=settings.min_buyers))
    report.positives_found = number(engine, "SELECT count(*) FROM found")
    if report.positives_found == 0:
        left_out = f"left out: {report.describe_left_out()}"
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.rows_by_kind.items())
        raise UserError(
            f"log {name}: no query led {settings.min_buyers} users to buy the same item ({report.log_rows} rows: "
            f"{kinds}; {left_out}); check the item ids and the kind 'purchase', or lower min_buyers"
        )
    bounds: dict[str, int] = {}
    split = sql.SPLIT_OF_ITEM
    if by_time:
        validation, test = _bounds_in_micros(engine, settings)
        bounds = {"validation_from": validation, "test_from": test}
        split = sql.SPLIT_OF_TIME.format(validation=validation, test=test)
    engine.stage("positives", sql.POSITIVES.format(split=split, cap=settings.positives_per_item()))
    report.positives = number(engine, "SELECT count(*) FROM positives")
    report.items = number(engine, "SELECT count(*) FROM (SELECT DISTINCT item FROM positives) AS sold")
    return bounds


def _bounds_in_micros(engine: Engine, settings: MiningSettings) -> tuple[int, int]:
    """Return where validation and test begin; shares are of the positives found, in order of time."""
    batches = list(engine.batches("SELECT micros FROM found"))
    times = np.sort(np.concatenate([batch.column(0).to_numpy() for batch in batches]))
    validation, test = (
        int(times[min(int(value * len(times)), len(times) - 1)]) if isinstance(value, float) else value
        for value in settings.bounds()
    )
    if validation > test:
        raise UserError(f"validation begins at {validation} and test at {test} microseconds since 1970; test is last")
    return validation, test


def _counted(batches: Iterator[Any], report: MiningReport) -> Iterator[Any]:
    for batch in batches:
        for count in pc.value_counts(batch.column("split")).to_pylist():
            report.split_rows[count["values"]] += count["counts"]
        yield batch
