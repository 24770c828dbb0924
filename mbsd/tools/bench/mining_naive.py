"""The alternative that `mbsd bench mining` measures: join every item with all queries of its category, then draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from mbsd.catalog.mining.log_files import find_log
from mbsd.catalog.mining.log_tables import open_log
from mbsd.catalog.mining.mine import load_positives
from mbsd.catalog.mining.report import MiningReport
from mbsd.catalog.mining.settings import MiningSettings
from mbsd.catalog.mining.sql import POOL
from mbsd.catalog.mining.sql_engine import number, open_engine
from mbsd.catalog.reader import Catalog

BEHAVIOUR = """
SELECT DISTINCT coalesce(q.text, l.query) AS text, i.item
FROM log l JOIN items i ON i.item_id = l.item_id LEFT JOIN respelled q ON q.raw = l.query
"""
DRAWN = """
SELECT c.item, c.text FROM (
    SELECT p.item, p.need, q.text, row_number() OVER (
        PARTITION BY p.item ORDER BY draw(p.item || chr(9) || q.text), q.text
    ) AS place
    FROM (SELECT item, count(*) AS need FROM positives GROUP BY item) p
    JOIN items i ON i.item = p.item JOIN pool q ON q.category = i.category
    ANTI JOIN behaviour b ON b.item = p.item AND b.text = q.text
) c WHERE c.place <= c.need
"""


def mine_naively(log: Path, catalog: Catalog, settings: MiningSettings) -> int:
    """Draw the same-category negatives of a log by a join of whole categories; return their number.

    Raises:
        UserError: the engine runs out of memory, which large logs are measured for.
    """
    columns = {name: name for name in ("user", "query", "item", "kind")}
    report = MiningReport()
    engine = open_engine(settings, Path(settings.spill))
    try:
        items = catalog.table().select(["item_id", "category", "split"])
        engine.load("items", items.append_column("item", pa.array(np.arange(len(catalog)))))
        files = find_log(log, columns, Path(settings.spill))
        open_log(engine, files, settings, report)
        load_positives(engine, files.name, settings, report)
        engine.stage("pool", POOL)
        engine.stage("behaviour", BEHAVIOUR)
        engine.stage("drawn", DRAWN)
        return number(engine, "SELECT count(*) FROM drawn")
    finally:
        engine.close()
