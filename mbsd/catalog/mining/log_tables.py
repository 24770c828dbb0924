"""The rows of a log as an engine's tables: queries in their normal form, and why rows are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mbsd.catalog.mining import sql
from mbsd.catalog.mining.dialect import UndecodableText
from mbsd.catalog.mining.log_files import LogFiles, check_columns
from mbsd.catalog.mining.report import MiningReport
from mbsd.catalog.mining.settings import MiningSettings
from mbsd.catalog.mining.sql_engine import Engine, rows
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS, normalise_query

KINDS_IN_REPORT = 50


def open_log(
    engine: Engine, files: LogFiles, columns: Mapping[str, str], settings: MiningSettings, report: MiningReport
) -> None:
    """Make the views `log` and `purchases` and the table `respelled`; count the rows, good and bad, in the report.

    The table `items` has to be there.

    Raises:
        UserError: the files cannot be read, or lack a column.
    """
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
        # A row without a query or an item is counted as that, whatever else is wrong with it.
        of_query = sql.QUERY_FAULTS[row["query_fault"]] if row["fault"] not in (1, 2, 3) else ""
        rejected[of_query or fault] += number_of_rows
        report.bad_times += int(row["bad_times"])
    report.log_rows = rejected.total()
    report.rejected = {reason: rejected[reason] for reason in sorted(rejected) if reason and rejected[reason]}
    by_kind = Counter({row["kind"]: int(row["n"]) for row in kinds})
    frequent = sorted(by_kind, key=lambda kind: (-by_kind[kind], kind))[:KINDS_IN_REPORT]
    report.rows_by_kind, report.kinds = {kind: by_kind[kind] for kind in frequent}, len(by_kind)
