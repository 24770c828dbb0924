"""The rows of a log as an engine's tables: queries in their normal form, and why rows are left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from mbsd.catalog.mining import sql, sql_matched
from mbsd.catalog.mining.dialect import UndecodableText
from mbsd.catalog.mining.log_files import LogFiles, LogPart, check_columns, fixed_columns
from mbsd.catalog.mining.log_rewrite import PLACE
from mbsd.catalog.mining.report import MiningReport
from mbsd.catalog.mining.settings import MiningSettings
from mbsd.catalog.mining.sql_engine import Engine, rows
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS, normalise_query
from mbsd.catalog.row_count import RowCount
from mbsd.errors import UserError

KINDS_IN_REPORT = 50


def open_log(engine: Engine, files: LogFiles, settings: MiningSettings, report: MiningReport) -> None:
    """Make the views `log` and `purchases` and the tables `respelled` and `asked`; count the rows in the report.

    The table `items` has to be there.

    Raises:
        UserError: the files cannot be read, or lack a column.
    """
    words = {"longest": MAX_QUERY_CHARACTERS, "timed": str(settings.split == "time").lower()}
    try:
        files = make_log(engine, files)
        engine.stage("spellings", sql.SPELLINGS.format(of="", **words))
    except UndecodableText:
        as_bytes = files.as_bytes()
        if as_bytes is None:
            raise
        files = make_log(engine, as_bytes)
        engine.stage("spellings", sql.SPELLINGS.format(of="", **words))
    kinds = rows(engine, "SELECT coalesce(kind, 'null') AS kind, count(*) AS n FROM log GROUP BY 1")
    engine.stage("strangers", sql.STRANGERS)
    engine.stage("of_strangers", sql.SPELLINGS.format(of=sql.OF_STRANGERS, **words))
    # Once for each spelling, and in Python: the engines fold case in different ways.
    distinct = "SELECT DISTINCT raw FROM spellings WHERE raw IS NOT NULL"
    report.distinct_queries = engine.changed("respelled", distinct, normalise_query)
    engine.view("purchases", sql.PURCHASES.format(**words))
    _count(rows(engine, sql.COUNTS.format(**words)), files, report)
    by_kind = Counter({row["kind"]: int(row["n"]) for row in kinds})
    frequent = sorted(by_kind, key=lambda kind: (-by_kind[kind], kind))[:KINDS_IN_REPORT]
    report.rows_by_kind, report.kinds = {kind: by_kind[kind] for kind in frequent}, len(by_kind)
    engine.stage("asked", sql_matched.ASKED)
    engine.drop("spellings")


def make_log(engine: Engine, files: LogFiles) -> LogFiles:
    """Make the views `log` and `placed_log`, which has each row's place too, of all parts of a log.

    Their columns are user_id, query, item_id, kind, micros (0 where no time is read), undecodable, and the place.

    Returns:
        The files; those at a URL with what the engine has found there.

    Raises:
        UserError: the files cannot be read, or lack a column.
    """
    if not files.parts:
        files = _at_url(engine, files)
    selected: list[str] = []
    for number, part in enumerate(files.parts):
        engine.open_part(part, number)
        text = {ours: engine.text(column) for ours, column in part.columns.items() if ours != "time"}
        micros = engine.micros(part.columns["time"]) if "time" in part.columns else "CAST(0 AS BIGINT)"
        undecodable = " OR ".join(bad for _, bad in text.values())
        selected.append(
            f"SELECT {text['user'][0]} AS user_id, {text['query'][0]} AS query, {text['item'][0]} AS item_id, "
            f"{text['kind'][0]} AS kind, {micros} AS micros, {undecodable} AS undecodable"
        )
    plain = [f"{select} FROM raw_{number}" for number, select in enumerate(selected)]
    placed = [f"{select}, {PLACE} AS place FROM placed_{number}" for number, select in enumerate(selected)]
    engine.view("log", " UNION ALL ".join(plain))
    engine.view("placed_log", " UNION ALL ".join(placed))
    return files


def _at_url(engine: Engine, files: LogFiles) -> LogFiles:
    """Return the parts of a log at a URL: its files are read alike, but for what their folders' names hold."""
    paths, columns = engine.list_url(files.name)
    names, kind_of = [name for name, _ in columns], dict(columns)
    parts: list[LogPart] = []
    for number, path in enumerate(paths):
        fixed = fixed_columns(path, files.columns, names)
        given = {ours: theirs for ours, theirs in files.columns.items() if ours not in fixed}
        check_columns(path, given, names)
        for ours, theirs in given.items():
            if kind_of[theirs] == "" or (kind_of[theirs] in ("time", "nanos") and ours != "time"):
                raise UserError(
                    f"log {files.name}: the column {theirs!r} is neither text nor whole numbers, and is read as one of "
                    "these at a URL; copy the log to a disk, where other numbers are read too"
                )
        found = {**{ours: (theirs, kind_of[theirs]) for ours, theirs in given.items()}, **fixed}
        if parts and parts[-1].columns == found:
            parts[-1] = replace(parts[-1], paths=(*parts[-1].paths, path))
        else:
            parts.append(LogPart((path,), found, number))
    return replace(files, parts=tuple(parts), sources=tuple((path, "row") for path in paths))


def _count(faults: list[dict[str, Any]], files: LogFiles, report: MiningReport) -> None:
    """Write the account of all rows into the report: those that were read, and the others by their first reason."""
    count, used = files.count, 0
    first: dict[str, int] = {}
    rejected: Counter[str] = Counter()
    for row in faults:
        # A row without a query or an item is counted as that, whatever else is wrong with it.
        of_query = sql.QUERY_FAULTS[row["query_fault"]] if row["fault"] not in (1, 2, 3) else ""
        reason = of_query or sql.FAULTS[row["fault"]]
        report.bad_times += int(row["bad_times"])
        if not reason:
            used += int(row["n"])
            continue
        rejected[reason] += int(row["n"])
        if row["first"] is not None:
            first[reason] = min(first.get(reason, int(row["first"])), int(row["first"]))
    if files.rows is not None:
        given = RowCount(used=used, left_out=rejected)
        given.reconcile(files.rows, f"log {files.name}")
    count.used = used
    for reason in rejected:
        if rejected[reason]:
            count.leave_out(reason, files.where(first[reason]), rejected[reason])
    report.log_rows = count.read
    report.rejected = {reason: count.left_out[reason] for reason in sorted(count.left_out)}
    report.rejected_first = {reason: count.first[reason] for reason in sorted(count.left_out)}
    report.notes = list(count.notes)
