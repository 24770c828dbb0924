"""The rounds in which negatives are drawn; each is one pass over the log, for all that the round draws."""

from __future__ import annotations

import pyarrow as pa

from mbsd.catalog.mining import sql, sql_matched
from mbsd.catalog.mining.report import MiningReport
from mbsd.catalog.mining.settings import MiningSettings
from mbsd.catalog.mining.sql_engine import Engine, number, rows
from mbsd.catalog.queries import MAX_QUERY_CHARACTERS

EMPTY = [("item", pa.int64()), ("source", pa.string()), ("text", pa.string()), ("replaced", pa.string())]
FEW = 10_000  # items
CHOSEN = pa.schema([*EMPTY, ("slot", pa.int64()), ("slot_of", pa.string())])


def draw_negatives(engine: Engine, settings: MiningSettings, report: MiningReport) -> None:
    """Make the table `chosen`: a negative for every slot that has one; count them in the report.

    The tables `bought` (which is dropped), `positives`, `items`, `asked`, `open_terms`, `own_values` and
    `ranked_values` have to be there.
    """
    amounts = {"rewrites": settings.rewrites_per_positive, "negatives": settings.negatives_per_positive}
    if settings.split == "time":
        engine.stage("slots", sql.SLOTS.format(**amounts))
    engine.load("chosen_0", CHOSEN.empty_table())
    engine.view("chosen", "SELECT * FROM chosen_0")
    if settings.match:
        _draw_matched(engine, settings, report)
    else:
        engine.stage("pool", sql.POOL)
        engine.stage("pool_sizes", sql.POOL_SIZES)
        engine.drop("bought")
        engine.stage("short", sql.SHORT.format(**amounts))
    while number(engine, "SELECT count(*) FROM short"):
        engine.stage("turns", sql.TURNS)
        _rewrites(engine)
        engine.stage("same_category", sql.SAME_CATEGORY)
        _pick(engine, report, sql.PICKED_REWRITES, sql.PICKED)
        engine.stage("still_short", sql.STILL_SHORT)
        engine.stage("short", "SELECT * FROM still_short")
    _count(engine, settings, report)


def _draw_matched(engine: Engine, settings: MiningSettings, report: MiningReport) -> None:
    """Draw negatives that are like their positives; `short` is then what is to be drawn as without `match`."""
    by_frequency = "frequency" in settings.match
    amounts = {
        "rewrites": settings.rewrites_per_positive,
        "negatives": settings.negatives_per_positive,
        # Where frequency is not compared, a rewrite is as long as its positive, and none is replaced.
        "replaced": settings.rewrites_per_positive if by_frequency and settings.replace_rewrites else 0,
    }
    _measure_category(engine, settings)
    engine.drop("bought")
    engine.stage("nearby", sql_matched.NEARBY.format(looks=sql_matched.LOOKS, near=sql_matched.NEAR))
    none = "" if by_frequency else " AND false"
    engine.stage("turns", sql_matched.TURNS.format(**amounts) + none)
    engine.drop("nearby")
    _rewrites(engine)
    engine.stage("short", sql_matched.SHORT.format(**amounts))
    while number(engine, "SELECT count(*) FROM short") or number(engine, "SELECT count(*) FROM rewrites"):
        engine.stage("same_category", sql_matched.SAME_CATEGORY)
        _pick(engine, report, sql_matched.PICKED_REWRITES.format(**amounts), sql_matched.PICKED)
        engine.stage("still_short", sql_matched.STILL_SHORT)
        engine.stage("short", "SELECT * FROM still_short")
        engine.stage("rewrites", "SELECT * FROM rewrites WHERE false")
    engine.stage("short", sql_matched.LAST_SHORT.format(short=sql.SHORT.format(**amounts)))


def _measure_category(engine: Engine, settings: MiningSettings) -> None:
    """Make the tables `pool`, `pool_sizes` and `anchors` of queries that are in a row by what is compared."""
    window = 6 + 2 * settings.negatives_per_positive  # with the query itself, and some that have behaviour
    by_length = "length" in settings.match
    measures = {
        "words": sql_matched.WORDS.format(text="d.text") if by_length else "0",
        "characters": "length(d.text)" if by_length else "0",
        "frequency": "a.n" if "frequency" in settings.match else "0",
    }
    engine.stage("pool", sql_matched.POOL.format(band=sql_matched.BAND * window, **measures))
    engine.stage("pool_sizes", sql.POOL_SIZES)
    engine.stage("anchors", sql_matched.ANCHORS.format(window=window))


def _rewrites(engine: Engine) -> None:
    """Make the table `rewrites` of `turns`, which is dropped."""
    engine.stage("rewrites", sql.REWRITES.format(longest=MAX_QUERY_CHARACTERS))
    engine.drop("turns")


def _pick(engine: Engine, report: MiningReport, picked_rewrites: str, picked: str) -> None:
    """Add to `chosen` those of `rewrites` and `same_category` that are due and have no behaviour, as `picked` too."""
    report.rounds += 1
    engine.view("candidates", sql.CANDIDATES)
    engine.stage("keys", sql.KEYS)
    engine.stage("due", sql.DUE)
    few = number(engine, "SELECT count(*) FROM due") <= FEW
    if few:
        engine.stage("rows_due", sql.ROWS_DUE)
    engine.stage("hit", sql.HIT.format(log="rows_due" if few else "log"))
    engine.drop("keys")
    engine.stage("free", sql.FREE)
    engine.stage("picked_rewrites", picked_rewrites)
    engine.stage("picked", picked)
    engine.drop("free")
    engine.stage(f"chosen_{report.rounds}", "SELECT * FROM picked")
    parts = [f"SELECT * FROM chosen_{n}" for n in range(report.rounds + 1)]
    engine.view("chosen", " UNION ALL ".join(parts))


def _count(engine: Engine, settings: MiningSettings, report: MiningReport) -> None:
    counted = "SELECT source, slot_of, count(*) AS n FROM chosen GROUP BY source, slot_of"
    counts = {(row["source"], row["slot_of"]): int(row["n"]) for row in rows(engine, counted)}
    report.same_category = counts.get(("same-category", "same-category"), 0)
    report.rewrites = counts.get(("rewrite", "rewrite"), 0)
    report.rewrites_replaced = counts.get(("same-category", "rewrite"), 0)
    report.same_category_asked = report.positives * settings.negatives_per_positive
    report.rewrites_asked = report.positives * settings.rewrites_per_positive
    report.same_category_short = report.same_category_asked - report.same_category
    report.rewrites_short = report.rewrites_asked - report.rewrites - report.rewrites_replaced
