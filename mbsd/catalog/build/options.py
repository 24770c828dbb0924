"""The options of a build, checked before anything is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from mbsd.catalog.build.normalise import MAX_PIXELS
from mbsd.catalog.layout import WHERE
from mbsd.errors import UserError


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may cost; a picture that costs more is rejected.

    Attributes:
        pixels: that are decoded: width x height as its header declares them, less where its format can be decoded
            reduced (JPEG, JPEG 2000).
        file_bytes: size of its file.
        seconds: time to read and decode it.
        memory: bytes of address space that a worker may take beyond what it starts with.
    """

    pixels: int = MAX_PIXELS
    file_bytes: int = 256 * 2**20
    seconds: float = 10.0
    memory: int = 512 * 2**20


@dataclass(frozen=True)
class PartOf:
    """Which part of a catalogue is built; the parts take turns at blocks of the source's rows.

    Attributes:
        number: of the part, from 1 to `count`.
        count: number of parts.
        block: rows that a part takes at its turn: few, so that the parts are alike whatever the source is sorted by.

    Raises:
        UserError: there is no such part.
    """

    number: int
    count: int
    block: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count or self.block < 1:
            raise UserError(f"part {self.number}/{self.count}: expected K/N with K from 1 to N, such as 2/8")

    @classmethod
    def parse(cls, text: str) -> PartOf:
        """Return the part that `K/N` names.

        Raises:
            UserError: the text is not of that form, or there is no such part.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise UserError(f"part {text}: expected K/N with K from 1 to N, such as 2/8")
        return cls(int(number), int(count))

    def has(self, row: int) -> bool:
        """Whether row `row` of the source, counted from 1, belongs to this part."""
        return (row - 1) // self.block % self.count == self.number - 1

    def __str__(self) -> str:
        return f"part {self.number} of {self.count}"


@dataclass(frozen=True)
class BuildOptions:
    """How to build a catalogue. Its bytes depend on `items_per_shard`, `max_side`, `attribute_where` and `limits`.

    Attributes:
        items_per_shard: items of one tar.
        max_side: the long side of a stored picture, in pixels.
        attribute_where: attribute name -> image | title | both | unknown; where its value can be seen.
        max_rejects: highest share of the rows naming a picture whose pictures may be rejected; 1 = any number.
        limits: what one picture may cost.
        workers: processes that read and decode pictures; 0 = one per core. They are started afresh, so a script that
            builds a catalogue needs the usual `if __name__ == "__main__":`.
        restart: discard an unfinished build instead of resuming it.
        progress: show a progress bar on stderr.
        part: build this part alone, for `merge`; None: the whole catalogue.

    Raises:
        UserError: a value is out of range.
    """

    items_per_shard: int = 4096
    max_side: int = 320
    attribute_where: Mapping[str, str] = field(default_factory=dict)
    max_rejects: float = 0.05
    limits: ImageLimits = ImageLimits()
    workers: int = 0
    restart: bool = False
    progress: bool = True
    part: PartOf | None = None

    def __post_init__(self) -> None:
        for name in ("items_per_shard", "max_side"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.max_rejects <= 1:
            raise UserError(
                f"max_rejects is {self.max_rejects:g}; expected a share from 0 (no reject) to 1 (any number)"
            )
        for name, limit in dataclasses.asdict(self.limits).items():
            if limit <= 0:
                raise UserError(f"the limit of a picture's {name} is {limit:g}; expected more than 0")
        for name, where in self.attribute_where.items():
            if where not in WHERE:
                raise UserError(f"attribute_where: {name!r} is {where!r}; expected one of {', '.join(WHERE)}")
