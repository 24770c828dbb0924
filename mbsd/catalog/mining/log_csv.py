"""A CSV log, row by row as RFC 4180 has it, where one stray quote costs its own line and no other.

Arrow reads block by block, and its answer is taken where every line of the block is one row. Any other block is read
line by line: a quoted field may span lines, but a row at most `max_record_lines`. Where a quote is still open behind
them, or closes in the middle of a field, it was no quote that opens a field: the line with it is left out, and reading
goes on with the next.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from mbsd.catalog.record_files import open_text
from mbsd.errors import UserError

BLOCK = 1 << 18  # bytes; small, so that few good lines share a block with a bad one
UNREADABLE = "unreadable line"
OPEN_QUOTE = "line with a quote that does not close"


@dataclass
class CsvBatch:
    """Some rows.

    Attributes:
        columns: the fields of the wanted columns as binary arrays.
        lines: the line in which each row begins, int64 [rows]; lines count from 1.
        bad: (reason, line) of what was left out.
        spans: (line, number of lines) of each row that has several.
    """

    columns: list[Any]
    lines: Any
    bad: list[tuple[str, int]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


class CsvLog:
    """Reads one file; its header is read at once.

    Attributes:
        header: names of the columns.
    """

    def __init__(self, path: str, max_record_lines: int, block: int = BLOCK) -> None:
        """Open the file.

        Raises:
            UserError: it is empty, or cannot be read.
        """
        self._path, self._most, self._block, self._line = path, max_record_lines, block, 1
        self._stream = open_text(path)
        self._rest = self._read().removeprefix(b"\xef\xbb\xbf")
        self.header: list[str] = []
        lines: deque[bytes] = deque()
        while not self.header:
            fields, _ = self._row(lines)
            if fields is None:
                raise UserError(
                    f"log {path}: an empty file, or one whose header does not end; expected CSV with a header"
                )
            self.header = [name.decode("utf-8", "replace") for name in fields]
        self._push_back(lines)

    def batches(self, wanted: Sequence[str]) -> Iterator[CsvBatch]:
        """Yield the rows' fields of these columns of the header."""
        places = [self.header.index(name) for name in wanted]
        while block := self._next_block():
            batch = self._by_arrow(block, places)
            if batch is None:
                lines = deque(block.splitlines(keepends=True))
                batch = self._by_line(lines, len(lines), places)
                self._push_back(lines)
            else:
                self._line += batch.lines.size
            yield batch
        self._stream.close()

    def _by_arrow(self, block: bytes, places: list[int]) -> CsvBatch | None:
        """Return the rows of a block of whole lines; None unless each line is a row and ends with a line feed."""
        num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
        empty = block.startswith((b"\n", b"\r\n")) or b"\n\n" in block or b"\n\r\n" in block
        if empty or block.count(b"\r") != block.count(b"\r\n"):
            return None  # Arrow would make a row of an empty line
        # One row more, which a quote that is still open at the block's end would take in.
        last = (b"" if block.endswith(b"\n") else b"\n") + b"," * (len(self.header) - 1) + b"\n"
        names = [f"c{number}" for number in range(len(self.header))]
        chosen = [names[place] for place in places]
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(block + last),
                pa_csv.ReadOptions(use_threads=False, block_size=len(block) + len(last) + 1, column_names=names),
                pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
                pa_csv.ConvertOptions(column_types=dict.fromkeys(chosen, pa.binary()), include_columns=chosen),
            )
        except (pa.ArrowInvalid, UnicodeDecodeError):  # the latter from the message about a row that is not UTF-8
            return None
        if table.num_rows != num_lines + 1:
            return None
        columns = [column.combine_chunks().slice(0, num_lines) for column in table.columns]
        return CsvBatch(columns, np.arange(self._line, self._line + num_lines))

    def _by_line(self, lines: deque[bytes], count: int, places: list[int]) -> CsvBatch:
        """Return the rows that begin in the next `count` lines; what is behind them stays in `lines`."""
        end = self._line + count
        rows: list[list[bytes]] = []
        numbers: list[int] = []
        batch = CsvBatch([], None)
        while self._line < end:
            number = self._line
            fields, reason = self._row(lines)
            if fields is None:
                batch.bad.append((reason, number))
            elif fields:
                rows.append([fields[place] for place in places])
                numbers.append(number)
                if self._line > number + 1:
                    batch.spans.append((number, self._line - number))
        columns = [pa.array(column, pa.binary()) for column in zip(*rows, strict=True)]
        batch.columns = columns or [pa.array([], pa.binary())] * len(places)
        batch.lines = np.array(numbers, np.int64)
        return batch

    def _row(self, lines: deque[bytes]) -> tuple[list[bytes] | None, str]:
        """Return the fields of the row that begins in the next line, [] for an empty line; or None and a reason.

        The row's lines are taken from `lines`; where it has none, a row has one: the one that is left out.
        """
        taken: list[str] = []
        ended = False

        def feed() -> Iterator[str]:
            nonlocal ended
            for number in range(self._most):
                if number == len(lines):
                    lines.extend(self._read_lines())
                if number == len(lines):
                    break
                taken.append(lines[number].decode("utf-8", "surrogateescape"))
                yield taken[-1]
            ended = True

        reason, fields = UNREADABLE, None
        try:
            fields = next(csv.reader(feed()), None)
        except csv.Error:  # a field of more than 128 kB
            ended = False
        if ended:
            reason, fields = OPEN_QUOTE, None
        elif fields and self.header and len(fields) != len(self.header):
            fields = None
        if len(taken) > 1 and not (fields and _closes(taken)):
            reason, fields = OPEN_QUOTE, None
        used = len(taken) if fields is not None else min(1, len(taken))
        for _ in range(used):
            lines.popleft()
        self._line += used
        return None if fields is None else [name.encode("utf-8", "surrogateescape") for name in fields], reason

    def _next_block(self) -> bytes:
        """Return the next whole lines; b"" at the end."""
        while True:
            more = self._read()
            self._rest += more
            # Of a carriage return at the very end it is not known yet whether a line feed follows.
            end = max(self._rest.rfind(b"\n"), self._rest.rfind(b"\r", 0, max(0, len(self._rest) - 1))) + 1
            if not more:
                end = len(self._rest)
            if end or not more:
                block, self._rest = self._rest[:end], self._rest[end:]
                return block

    def _read_lines(self) -> list[bytes]:
        return self._next_block().splitlines(keepends=True)

    def _push_back(self, lines: deque[bytes]) -> None:
        self._rest = b"".join(lines) + self._rest

    def _read(self) -> bytes:
        try:
            return bytes(self._stream.read(self._block))
        except OSError as error:
            raise UserError(f"log {self._path}: cannot be read behind line {self._line} ({error})") from None


def _closes(lines: list[str]) -> bool:
    """Whether quotes in these lines open and close whole fields alone."""
    try:
        next(csv.reader(lines, strict=True))
    except csv.Error:
        return False
    return True
