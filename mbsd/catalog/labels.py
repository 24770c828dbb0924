"""The labels of a source, each once: repeats are left out, and contradictions stop the build or are all left out."""

from __future__ import annotations

from typing import Literal

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.row_count import RowCount
from mbsd.catalog.task_rows import Kind, TaskRow
from mbsd.errors import UserError

Contradictions = Literal["stop", "drop"]
Key = tuple[str, ...]


class Labels:
    """The rows of labels that say something new.

    What a row speaks of is its text and item, its two items in either order, or its item alone. Two spellings that
    are one query (see `queries.normalise_query`) are one text.
    """

    def __init__(self, kind: Kind, contradictions: Contradictions) -> None:
        self._kind, self._contradictions = kind, contradictions
        self._first: dict[Key, TaskRow] = {}
        self._disputed: set[Key] = set()  # what the source contradicts itself about

    def add(self, row: TaskRow, count: RowCount) -> None:
        """Take in a row whose items are known.

        Raises:
            UserError: it contradicts an earlier row, and contradictions stop.
        """
        key = self._key(row)
        first = self._first.setdefault(key, row)
        if first is row:
            return
        said, before = self._said(row), self._said(first)
        if said == before and key not in self._disputed:
            count.leave_out("repeated label", f"{row.place}, as row {first.place.row}")
            return
        if self._contradictions == "stop":
            raise UserError(
                f"{row.place}: ({', '.join(key)}) is {said}, row {first.place.row}"
                f"{'' if first.place.file == row.place.file else f' of {first.place.file}'} said {before}; keep one of "
                "them, or give --contradictions drop to leave out both"
            )
        if key not in self._disputed:
            self._disputed.add(key)
            count.leave_out("contradicting label", f"{first.place}, against row {row.place.row}")
        count.leave_out("contradicting label", str(row.place))

    def kept(self) -> list[TaskRow]:
        """Return the rows that nothing contradicts, in their order."""
        return [row for key, row in self._first.items() if key not in self._disputed]

    def _key(self, row: TaskRow) -> Key:
        named = (row.catalog,) if row.catalog else ()
        if self._kind == "alignment":
            return (*sorted(row.item_ids), *named)
        text = (normalise_query(row.text),) if self._kind in ("pairs", "attributes") else ()
        return (*text, *row.item_ids, *named)

    def _said(self, row: TaskRow) -> str:
        what = repr(row.category) if self._kind == "categories" else str(row.label)
        return what + (f" in {row.split}" if row.split else "")
