"""TSV files as the paper's authors released them: without header or quoting, only a tab separates.

The number of columns decides what a file holds (see `COLUMNS`); every other character belongs to the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mbsd.catalog.record_files import SUFFIXES, Place, some, text_lines
from mbsd.catalog.source_files import find_files
from mbsd.errors import UserError

COLUMNS: dict[int, str] = {
    2: "title, image",
    3: "title, image, category",
    4: "query or tag, title, image, label",
    5: "title, image, title, image, label",
}
FIRST_OF_FOUR = ("query", "tag", "text")
NAMES = {"title", "image", "category", "label", *FIRST_OF_FOUR}


class TsvRows:
    """The rows of TSV files, all with as many columns as the first, or `num_columns`.

    Attributes:
        rows: number of rows read so far, without headers.
        headers: files whose first line was a header and was skipped.
    """

    def __init__(self, source: Path, num_columns: int | None = None) -> None:
        found = find_files(str(source), SUFFIXES)
        self.files, self.ignored = found.files, found.ignored
        self._num_columns = num_columns
        self.rows = 0
        self.headers: list[str] = []

    def __iter__(self) -> Iterator[tuple[Place, list[str]]]:
        """Yield (place, fields).

        Raises:
            UserError: at the first line with another number of columns, or a header in another order; it names file and
                line.
        """
        self.rows, self.headers = 0, []
        num_columns = self._num_columns
        for file in self.files:
            for number, line in text_lines(file.path):
                fields = line.split("\t")
                where = f"{file.path}, line {number}"
                if num_columns is None:
                    if len(fields) not in COLUMNS:
                        known = "; ".join(f"{n} = {names}" for n, names in COLUMNS.items())
                        raise UserError(f"{where}: {len(fields)} columns; expected {known}")
                    num_columns = len(fields)
                if len(fields) != num_columns:
                    expected = f"{num_columns} ({COLUMNS[num_columns]})"
                    raise UserError(f"{where}: {len(fields)} columns; expected {expected}, separated by tabs")
                if number == 1 and _is_header(where, fields):
                    self.headers.append(file.path)
                    continue
                self.rows += 1
                yield Place(file.path, number, file.name), fields

    def notes(self) -> list[str]:
        """Return in words what was not read."""
        notes = [f"{path}, line 1: a header, skipped" for path in self.headers]
        return notes + ([f"files not read: {some(self.ignored)}"] if self.ignored else [])


def _is_header(where: str, fields: list[str]) -> bool:
    """Whether these are the names of the columns."""
    names = [_plain(field) for field in fields]
    if not NAMES.issuperset(names):
        return False
    expected = COLUMNS[len(fields)]
    named = ["query or tag" if name in FIRST_OF_FOUR else name for name in names]
    if named != expected.split(", "):
        raise UserError(f"{where}: a header of {', '.join(fields)}; a TSV's columns are {expected}, in this order")
    return True


def _plain(field: str) -> str:
    """Return a column's name without case and number: "Title_B" and "title 2" are "title"."""
    name = field.strip().casefold()
    return name.rstrip("0123456789").rstrip("_ ") if name[-1:].isdigit() else name.removesuffix("_a").removesuffix("_b")
