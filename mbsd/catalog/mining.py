"""A shop's behaviour log -> the pair table of stage 2: purchases, and two kinds of hard negatives (section 3.5).

    positives        (query, item) with at least `min_buyers` distinct buyers; clicks never make one
    same-category    a query that led to purchases in the item's category
    rewrite          a positive's query with one term replaced by another value of the same attribute

Nobody has done anything at all with a negative's item under its query, not even clicked.

Every draw is a hash of (seed, what is drawn for), ties are broken by the text, and the hash is md5, so that the table
is the same for any number of threads, any order of the log and any engine. Negatives are drawn by rotation: a hash
gives the place in a hash-ordered list where an item starts to read. The work is then items x draws, where a join of
items with all queries of their category would be thousands of times that.
"""

from __future__ import annotations

import json
import tempfile
import time
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import write_table
from mbsd.errors import UserError

LOG_COLUMNS = ("user", "query", "item", "kind")
FIRST_WINDOW = 8  # places of a rotation read in the first round; each further round reads twice as many


@dataclass
class MiningReport:
    """What was found; `*_short` are negatives that were asked for and do not exist."""

    log_rows: int = 0
    unknown_rows: int = 0  # of items that the catalogue does not have, or without query
    positives: int = 0
    same_category: int = 0
    rewrites: int = 0
    same_category_short: int = 0
    rewrites_short: int = 0
    items: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Term:
    """A value of attribute `name` in a query: the query is head + value + tail."""

    name: str
    value: str
    head: str
    tail: str


def normalise_query(text: str) -> str:
    """NFKC, case folded, runs of white space as one space: two spellings of a query are one query."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def mine_pairs(
    log: Path,
    catalog: Catalog,
    out: Path,
    *,
    min_buyers: int = 2,
    negatives_per_positive: int = 1,
    rewrites_per_positive: int = 1,
    seed: int = 0,
    threads: int = 0,
) -> MiningReport:
    """Write the table of kind `pairs` for a log: rows in the order of (item, text).

    Args:
        log: a Parquet file, or a folder of them, with columns user, query, item (the item's id) and kind; kind
            `purchase` makes positives, any other is behaviour (such as `click`).
        catalog: its items' categories and attributes steer the negatives.
        out: the table's file.
        min_buyers: distinct users who bought the item under the query.
        negatives_per_positive: same-category negatives for each positive of an item.
        rewrites_per_positive: rewritten queries for each positive. A term is rewritten only where the item's own value
            of that attribute is known, and neither contains the new value nor is contained in it ("navy blue", "blue").
        seed: of all draws.
        threads: of the engine; 0 = its default. The result does not depend on it.

    Raises:
        UserError: the log cannot be read, lacks a column, or holds no positive.
    """
    started = time.monotonic()
    least = {"min_buyers": 1, "negatives_per_positive": 0, "rewrites_per_positive": 0, "threads": 0}
    given = (min_buyers, negatives_per_positive, rewrites_per_positive, threads)
    for (name, lowest), value in zip(least.items(), given, strict=True):
        if value < lowest:
            raise UserError(f"{name} is {value}; expected at least {lowest}")
    report = MiningReport()
    with tempfile.TemporaryDirectory(prefix="mbsd-mining-") as spill, duckdb.connect(":memory:") as engine:
        engine.execute(f"SET temp_directory = '{spill}'; SET preserve_insertion_order = false")
        if threads:
            engine.execute(f"SET threads = {threads}")
        engine.execute(f"CREATE MACRO draw(s) AS ('0x' || substr(md5('{int(seed)}' || chr(9) || s), 1, 15))::BIGINT")
        _load(engine, log, catalog, report)
        _positives(engine, log, min_buyers, report)
        values = _load_terms(engine, catalog)
        longest = max((len(of_name) for of_name in values.values()), default=0)
        # Rewrites first: they have fewer places to come from.
        engine.execute(_REWRITE_NEEDS.format(per_positive=rewrites_per_positive))
        report.rewrites, report.rewrites_short = _fill(engine, _REWRITE_CANDIDATES, "rewrite", longest)
        engine.execute(_CATEGORY_POOL + _CATEGORY_NEEDS.format(per_positive=negatives_per_positive))
        largest = _number(engine, "SELECT coalesce(max(n), 0) FROM pool_sizes")
        report.same_category, report.same_category_short = _fill(engine, _CATEGORY_CANDIDATES, "same-category", largest)
        report.items = _number(engine, "SELECT count(DISTINCT item) FROM positives")
        write_table("pairs", engine.sql(_PAIRS).to_arrow_reader().read_all(), catalog, out)
    report.seconds = time.monotonic() - started
    return report


def tag_terms(query: str, names_of_value: dict[str, tuple[str, ...]]) -> list[Term]:
    """The terms of a normalised query: per attribute its longest value that occurs, the leftmost of equals.

    A value inside a longer one is no term ("blue" in "navy blue"), nor is one cut out of a Latin word or number; in
    Chinese, where words touch, any place can begin or end a term.

    Args:
        query: normalised.
        names_of_value: normalised value -> the attributes that have it.
    """
    lengths = sorted({len(value) for value in names_of_value}, reverse=True)
    spans = [
        (start, start + length)
        for start in range(len(query))
        for length in lengths
        if query[start : start + length] in names_of_value
        and start + length <= len(query)
        and not _inside_word(query, start)
        and not _inside_word(query, start + length)
    ]
    outer = [(a, b) for a, b in spans if not any(c <= a and b <= d and (c, d) != (a, b) for c, d in spans)]
    best: dict[str, tuple[int, int]] = {}
    for start, end in outer:
        for name in names_of_value[query[start:end]]:
            if name not in best or end - start > best[name][1] - best[name][0]:
                best[name] = (start, end)
    return [Term(name, query[a:b], query[:a], query[b:]) for name, (a, b) in sorted(best.items())]


def _inside_word(text: str, place: int) -> bool:
    """Whether the cut before text[place] falls between two Latin letters or digits."""
    return 0 < place < len(text) and all(c.isalnum() and c < "\u0250" for c in text[place - 1 : place + 1])


def _load(engine: Any, log: Path, catalog: Catalog, report: MiningReport) -> None:
    """Tables `items` (item, item_id, category, split) and `events` (text, item, user, bought)."""
    files = sorted(log.rglob("*.parquet")) if log.is_dir() else [log]
    if not files or not files[0].is_file():
        raise UserError(f"log {log}: no such Parquet file, or a folder without one")
    try:
        source = engine.read_parquet([str(file) for file in files], union_by_name=True)
        found = source.columns
    except duckdb.Error as error:
        raise UserError(f"log {log}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    for name in LOG_COLUMNS:
        if name not in found:
            raise UserError(f"log {log}: no column {name!r}; found {', '.join(found)}; needs {', '.join(LOG_COLUMNS)}")
    source.create_view("log")
    items = catalog.table().select(["item_id", "category", "split"])
    _create(engine, "items", items.append_column("item", pa.array(range(len(catalog)), pa.int64())))
    # The engines fold case in different ways, so the text of a query is normalised here, once for each spelling.
    raw = [row[0] for row in engine.execute("SELECT DISTINCT query::VARCHAR FROM log").fetchall() if row[0]]
    _create(engine, "queries", pa.table({"raw": raw, "text": [normalise_query(text) for text in raw]}, _QUERIES))
    engine.execute(_EVENTS)
    report.log_rows = _number(engine, "SELECT count(*) FROM log")
    report.unknown_rows = report.log_rows - _number(engine, "SELECT count(*) FROM events")


def _positives(engine: Any, log: Path, min_buyers: int, report: MiningReport) -> None:
    engine.execute(_POSITIVES.format(min_buyers=min_buyers))
    report.positives = _number(engine, "SELECT count(*) FROM positives")
    if report.positives == 0:
        known = report.log_rows - report.unknown_rows
        bought = _number(engine, "SELECT count(*) FROM events WHERE bought")
        raise UserError(
            f"log {log}: no query led {min_buyers} users to buy the same item ({report.log_rows} rows, {known} of "
            f"items in the catalogue, {bought} of them of kind 'purchase'); check the item ids or lower min_buyers"
        )


def _load_terms(engine: Any, catalog: Catalog) -> dict[str, list[str]]:
    """Tables `item_values`, `value_ranks` and `terms` (of the positives' queries); return the values by attribute."""
    values = {
        name: sorted({normalise_query(value) for value in of_name} - {""})
        for name, of_name in catalog.attribute_values().items()
    }
    names_of_value: dict[str, tuple[str, ...]] = {}
    for name, of_name in values.items():
        for value in of_name:
            names_of_value[value] = (*names_of_value.get(value, ()), name)
    text = pa.string()
    item_values = [
        (item, name, normalise_query(value))
        for item, attributes in enumerate(catalog.table()["attributes"].to_pylist())
        for name, value in json.loads(attributes).items()
    ]
    _create_rows(engine, "item_values", item_values, [("item", pa.int64()), ("name", text), ("value", text)])
    all_values = [(name, value) for name, of_name in values.items() for value in of_name]
    _create_rows(engine, "all_values", all_values, [("name", text), ("value", text)])
    queries = [row[0] for row in engine.execute("SELECT DISTINCT text FROM positives").fetchall()]
    terms = [(q, t.name, t.value, t.head, t.tail) for q in queries for t in tag_terms(q, names_of_value)]
    columns = [(name, text) for name in ("text", "name", "value", "head", "tail")]
    _create_rows(engine, "terms", terms, columns)
    engine.execute(_VALUE_RANKS)
    return values


def _fill(engine: Any, candidates: str, source: str, longest: int) -> tuple[int, int]:
    """Draw for every row of `needs` (item, origin, need) until it is filled or all places of its rotation are read.

    Returns (drawn, short); the drawn are appended to `chosen`.
    """
    start, width = 0, FIRST_WINDOW
    while start < longest and _number(engine, "SELECT count(*) FROM needs WHERE need > 0"):
        engine.execute(candidates.format(start=start, end=start + width) + _CHOOSE.format(source=source))
        # Two origins of an item may reach the same text, and the one that was given it may have preferred another:
        # the same places are read again until that gives nothing more.
        if not _number(engine, _SHARED_ORIGINS) or not _number(engine, "SELECT count(*) FROM picked"):
            start, width = start + width, 2 * width
    return (
        _number(engine, f"SELECT count(*) FROM chosen WHERE source = '{source}'"),
        _number(engine, "SELECT coalesce(sum(need), 0)::BIGINT FROM needs"),
    )


def _create(engine: Any, name: str, table: Any) -> None:
    engine.register("incoming", table)
    engine.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
    engine.unregister("incoming")


def _create_rows(engine: Any, name: str, rows: Iterable[tuple[Any, ...]], columns: list[tuple[str, Any]]) -> None:
    columns_of = list(zip(*rows, strict=True)) or [()] * len(columns)
    arrays = [pa.array(list(values), kind) for values, (_, kind) in zip(columns_of, columns, strict=True)]
    _create(engine, name, pa.table(arrays, names=[column for column, _ in columns]))


def _number(engine: Any, query: str) -> int:
    return int(engine.execute(query).fetchall()[0][0])


_QUERIES = pa.schema([("raw", pa.string()), ("text", pa.string())])

_EVENTS = """
CREATE TABLE events AS
SELECT q.text, i.item, l."user", l.kind = 'purchase' AS bought
FROM log l JOIN queries q ON l.query::VARCHAR = q.raw JOIN items i ON l.item::VARCHAR = i.item_id
WHERE q.text <> '';
"""

_POSITIVES = """
CREATE TABLE positives AS
SELECT text, item, count(DISTINCT "user") AS buyers FROM events WHERE bought
GROUP BY text, item HAVING count(DISTINCT "user") >= {min_buyers};
CREATE TABLE chosen (item BIGINT, origin VARCHAR, text VARCHAR, source VARCHAR);
"""

_VALUE_RANKS = """
CREATE TABLE value_ranks AS
SELECT name, value, row_number() OVER (PARTITION BY name ORDER BY draw(name || chr(9) || value), value) - 1 AS r,
       count(*) OVER (PARTITION BY name) AS n
FROM all_values;
"""

# A need's origin is the positive's query of a rewrite, and empty for same-category negatives, which an item pools.
_REWRITE_NEEDS = """
CREATE OR REPLACE TABLE needs AS
SELECT item, text AS origin, {per_positive}::BIGINT AS need FROM positives;
"""

_REWRITE_CANDIDATES = """
CREATE OR REPLACE TABLE candidates AS
WITH rotated AS (
    SELECT d.item, d.origin, t.name, t.head, t.tail, t.value AS old, own.value AS own, sizes.n,
           draw(d.item || chr(9) || d.origin || chr(9) || t.name) % sizes.n AS o
    FROM needs d
    JOIN terms t ON t.text = d.origin
    JOIN item_values own ON own.item = d.item AND own.name = t.name
    JOIN (SELECT DISTINCT name, n FROM value_ranks) sizes ON sizes.name = t.name
    WHERE d.need > 0
)
SELECT c.item, c.origin, c.head || v.value || c.tail AS text,
       draw(c.item || chr(9) || c.origin || chr(9) || c.head || v.value || c.tail) AS place
FROM rotated c
JOIN (SELECT unnest(range({start}, {end})) AS j) w ON w.j < c.n
JOIN value_ranks v ON v.name = c.name AND v.r = (c.o + w.j) % c.n
WHERE v.value <> c.old AND NOT contains(c.own, v.value) AND NOT contains(v.value, c.own);
"""

_CATEGORY_POOL = """
CREATE TABLE pool AS
SELECT category, text,
       row_number() OVER (PARTITION BY category ORDER BY draw(category || chr(9) || text), text) - 1 AS r
FROM (SELECT DISTINCT i.category, e.text FROM events e JOIN items i USING (item) WHERE e.bought AND i.category <> '');
CREATE TABLE pool_sizes AS SELECT category, count(*) AS n FROM pool GROUP BY category;
"""

_CATEGORY_NEEDS = """
CREATE OR REPLACE TABLE needs AS
SELECT item, '' AS origin, count(*) * {per_positive} AS need FROM positives GROUP BY item;
"""

_CATEGORY_CANDIDATES = """
CREATE OR REPLACE TABLE candidates AS
WITH rotated AS (
    SELECT d.item, d.origin, i.category, s.n, draw(d.item || chr(9) || i.category) % s.n AS o
    FROM needs d JOIN items i USING (item) JOIN pool_sizes s USING (category)
    WHERE d.need > 0
)
SELECT c.item, c.origin, p.text, w.j AS place
FROM rotated c
JOIN (SELECT unnest(range({start}, {end})) AS j) w ON w.j < c.n
JOIN pool p ON p.category = c.category AND p.r = (c.o + w.j) % c.n;
"""

# One pass over the log for all candidates of a round: first what of the log concerns them, then what it rules out.
_CHOOSE = """
CREATE OR REPLACE TABLE picked AS
WITH hit AS (
    SELECT DISTINCT e.text, e.item FROM events e SEMI JOIN candidates c ON c.text = e.text AND c.item = e.item
),
free AS (
    SELECT c.* FROM candidates c
    ANTI JOIN hit h ON h.text = c.text AND h.item = c.item
    ANTI JOIN chosen k ON k.text = c.text AND k.item = c.item
),
once AS (
    SELECT * FROM free QUALIFY row_number() OVER (PARTITION BY item, text ORDER BY place, origin) = 1
)
SELECT o.item, o.origin, o.text FROM once o JOIN needs d ON d.item = o.item AND d.origin = o.origin
QUALIFY row_number() OVER (PARTITION BY o.item, o.origin ORDER BY o.place, o.text) <= d.need;
INSERT INTO chosen SELECT item, origin, text, '{source}' FROM picked;
UPDATE needs SET need = need - p.n
FROM (SELECT item, origin, count(*) AS n FROM picked GROUP BY item, origin) p
WHERE p.item = needs.item AND p.origin = needs.origin;
"""

_SHARED_ORIGINS = """
SELECT count(*) FROM (SELECT item, text FROM candidates GROUP BY item, text HAVING count(DISTINCT origin) > 1)
"""

_PAIRS = """
SELECT pair.*, i.split FROM (
    SELECT text, item, 1 AS label, 'purchase' AS source, buyers AS evidence FROM positives
    UNION ALL
    SELECT text, item, 0, source, 0 FROM chosen
) pair JOIN items i ON i.item = pair.item
ORDER BY pair.item, pair.text
"""
