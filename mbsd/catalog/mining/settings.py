"""The settings of mining, checked before the log is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Literal

from mbsd.catalog.groups import GroupOptions
from mbsd.errors import UserError

EngineName = Literal["duckdb", "spark"]

LOG_COLUMNS = ("user", "query", "item", "kind", "time")
MAX_COPIES = 1000
MATCHES = ("length", "frequency")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class MiningSettings:
    """How to mine. The table depends on all settings before `engine`, and on none after it.

    Attributes:
        min_buyers: number of distinct users who bought the item under the query that makes the pair a positive.
        negatives_per_positive: same-category negatives for each positive of an item.
        rewrites_per_positive: rewritten queries for each positive of an item.
        max_pairs_per_item: most rows of an item in the table; 0 = no limit. The positives with the most buyers stay.
        match: in what negatives are like the positive that they are drawn for (see `sql_matched`): length (words and
            characters of the query), frequency (rows of the log with the query), both, or () for neither.
        replace_rewrites: where frequency is compared and a positive has too few rewrites that are as frequent, queries
            of its category that are stand for them; False: rewrites of any frequency, mostly never searched, do.
        seed: seed of all draws.
        columns: our name of a column -> the log's, where it is another.
        max_record_lines: of a CSV log, the most lines of one row. Where a quote stays open longer, it was none: the
            line with it is left out and counted, and reading goes on behind it.
        split: item (a row's split is that of its item's group) or time (that of the `min_buyers`th buyer's purchase).
        group: for a split by item: which items are one group (see `groups`).
        validation_from: for a time split: a date in ISO 8601 (UTC), or a share of the positives in order of time.
        test_from: the same, for the test split.
        engine: duckdb or spark.
        master: Spark's master, such as spark://host:7077; empty = this machine.
        memory_limit: the engine's, such as 4GB; empty = its default.
        spill: folder for what does not fit into memory, and for files that are rewritten (see `log_rewrite`): with a
            Spark cluster, on a disk that all its machines see; empty = the system's temporary one.
        threads: 0 = one per core; for Spark, of a local master.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    min_buyers: int = 2
    negatives_per_positive: int = 1
    rewrites_per_positive: int = 1
    max_pairs_per_item: int = 0
    match: tuple[str, ...] = MATCHES
    replace_rewrites: bool = True
    seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    max_record_lines: int = 10
    split: Literal["item", "time"] = "item"
    group: GroupOptions = field(default_factory=GroupOptions)
    validation_from: str = ""
    test_from: str = ""
    engine: EngineName = "duckdb"
    master: str = ""
    memory_limit: str = ""
    spill: str = ""
    threads: int = 0

    def __post_init__(self) -> None:
        lowest = {"min_buyers": 1, "max_record_lines": 1}
        for name in (f.name for f in fields(self) if f.type == "int" and f.name != "seed"):
            if getattr(self, name) < lowest.get(name, 0):
                raise UserError(f"{name} is {getattr(self, name)}; expected at least {lowest.get(name, 0)}")
        for name in ("negatives_per_positive", "rewrites_per_positive"):
            if getattr(self, name) > MAX_COPIES:
                raise UserError(f"{name} is {getattr(self, name)}; expected at most {MAX_COPIES}")
        other = next((name for name in self.match if name not in MATCHES), None)
        if other is not None:
            raise UserError(f"--match {other!r}; expected some of {', '.join(MATCHES)}, by commas, or none")
        group = 1 + self.negatives_per_positive + self.rewrites_per_positive
        if 0 < self.max_pairs_per_item < group:
            raise UserError(
                f"max_pairs_per_item is {self.max_pairs_per_item}; expected at least {group}, a positive and its "
                "negatives, or 0 for no limit"
            )
        if self.memory_limit and not re.fullmatch("[0-9]+(MB|GB|TB)", self.memory_limit):
            raise UserError(f"memory limit {self.memory_limit!r}; expected such as 500MB or 4GB")
        unknown = next((name for name in self.columns if name not in LOG_COLUMNS), None)
        if unknown is not None:
            raise UserError(f"column {unknown!r}; a log has {', '.join(LOG_COLUMNS)}: give --column query=search_term")
        if self.split == "time" and not (self.validation_from and self.test_from):
            raise UserError(
                "a split by time needs --validation-from and --test-from, each a date or a share such as 0.8"
            )
        if self.split == "item" and (self.validation_from or self.test_from):
            raise UserError("--validation-from and --test-from are of --split time; the split is by item")
        if self.split == "time" and self.group.by and self.group != GroupOptions():
            raise UserError("--group is of --split item; the split is by time, which has a purchase's time alone")
        self.bounds()

    def positives_per_item(self) -> int:
        """Return the highest number of positives of an item; 0 = no limit."""
        return self.max_pairs_per_item // (1 + self.negatives_per_positive + self.rewrites_per_positive)

    def bounds(self) -> tuple[float | int, ...]:
        """Return where validation and test begin: shares (float) or microseconds since 1970 (int); () by item."""
        if self.split != "time":
            return ()
        return _bound("validation_from", self.validation_from), _bound("test_from", self.test_from)


def _bound(name: str, text: str) -> float | int:
    try:
        share = float(text)
    except ValueError:
        try:
            date = datetime.fromisoformat(text)
        except ValueError:
            raise UserError(f"{name} is {text!r}; expected a date such as 2024-05-01 or a share such as 0.8") from None
        return ((date if date.tzinfo else date.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)
    if not 0 < share < 1:
        raise UserError(f"{name} is {text}; expected a share between 0 and 1, or a date such as 2024-05-01")
    return share
