"""The account of a source's rows: each is used, or left out for one reason; together they are all that there are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mbsd.errors import UserError


@dataclass
class RowCount:
    """Rows of a source.

    Attributes:
        used: rows that were taken in.
        left_out: reason -> rows that were not.
        first: reason -> where the first of them is, such as "log.csv, line 4".
        notes: what else of the source was not read, or was read in a way that the user should know of.
    """

    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, where: str, rows: int = 1) -> None:
        """Count rows as left out; the first place of a reason is kept."""
        self.left_out[reason] += rows
        self.first.setdefault(reason, where)

    @property
    def read(self) -> int:
        """Number of all rows."""
        return self.used + self.left_out.total()

    def reconcile(self, rows: int, source: str) -> None:
        """Raise a UserError where the rows used and left out are not the `rows` that the source has."""
        if self.read != rows:
            raise UserError(
                f"{source}: has {rows} rows, but {self.used} were used and {self.left_out.total()} left out; was it "
                "changed while it was read? run the command again"
            )

    def describe_left_out(self) -> str:
        """Return the reasons in words, such as "2 empty query (the first: log.csv, line 4)"; or "none"."""
        reasons = [f"{count} {reason} (the first: {self.first[reason]})" for reason, count in self.left_out.items()]
        return ", ".join(reasons) or "none"
