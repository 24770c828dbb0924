"""What mining found in a log, in numbers: the report that `mbsd pairs mine` writes beside its table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPORT_FILE = "report.json"


@dataclass
class MiningReport:
    """Counts of one run. `*_asked` negatives were wanted, `*_short` of them do not exist.

    Attributes:
        log_rows: all rows, those that could not be read too.
        rows_by_kind: rows by the log's `kind`, the 50 most frequent of all `kinds`; any but `purchase` is behaviour.
        rejected: reason -> rows, each under its first reason. A row without user or with a bad time is no purchase but
            still behaviour; any other is as if it were not there.
        bad_times: rows whose time is null or none; they are rejected where the split is by time, and only there.
        distinct_queries: spellings as they stand in the log.
        positives: rows of the table that are purchases; `positives_found` before `max_pairs_per_item` cut them.
        items: that have a positive.
        split_rows: split -> rows of the table.
        seconds: of wall time.
        engine: name and version.
        settings: of the run, by name.
    """

    log_rows: int = 0
    rows_by_kind: dict[str, int] = field(default_factory=dict)
    kinds: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    bad_times: int = 0
    distinct_queries: int = 0
    positives_found: int = 0
    positives: int = 0
    items: int = 0
    same_category: int = 0
    same_category_asked: int = 0
    same_category_short: int = 0
    rewrites: int = 0
    rewrites_asked: int = 0
    rewrites_short: int = 0
    rounds: int = 0
    split_rows: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    engine: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """One line: what the table holds and what of the log was left out."""
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items()) or "none"
        return (
            f"{self.positives} purchases, {self.same_category} of {self.same_category_asked} queries of the same "
            f"category, {self.rewrites} of {self.rewrites_asked} rewrites for {self.items} items, from {self.log_rows} "
            f"rows in {self.seconds:.1f} s ({self.engine}); rows left out: {left_out}"
        )


def write_json(report: MiningReport, folder: Path) -> Path:
    """Write `report.json` in a folder, made where it is missing, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / REPORT_FILE
    file.write_text(json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n", "utf-8")
    return file
