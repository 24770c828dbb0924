"""Settings: several catalogues in one run, and how many of the run's samples come from each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from mbsd.config.paths import PathText
from mbsd.errors import UserError

PERIOD = 10_000  # positions of the order after which the pattern of sources begins again


@dataclass(frozen=True)
class CatalogConfig:
    """One of several catalogues."""

    path: PathText
    """Folder written by `mbsd catalog build`, or its URL."""
    weight: float = 1.0
    """Share of the training samples that come from it, relative to the others' weights."""
    name: str | None = None
    """By which tables, vectors and curves name it: letters, digits, `_`, `.` and `-`. Default: its folder's name."""

    @property
    def known_as(self) -> str:
        """The name."""
        return self.name if self.name is not None else Path(self.path).absolute().name


def check_catalogs(catalog: str | None, catalogs: Sequence[CatalogConfig] | None) -> None:
    """Check what a run's settings say of where its items are.

    Raises:
        UserError: not exactly one of `data.catalog` and `data.catalogs` is set; or of several, there is none, a name
            is not one or is another's too, or a weight is no share that `slots_of` can give.
    """
    if (catalog is None) == (catalogs is None):
        both = catalog is not None
        given = "both are set" if both else "neither is set"
        raise UserError(
            f"data.catalog and data.catalogs: {given}; set exactly one of them{' (null unsets the other)' * both}"
        )
    if catalogs is None:
        return
    if not catalogs:
        raise UserError("data.catalogs is empty: name one catalogue or more, each with its path and weight")
    names = [one.known_as for one in catalogs]
    for place, (one, name) in enumerate(zip(catalogs, names, strict=True)):
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(
                f"data.catalogs[{place}].name={name!r}: expected letters, digits, _, . and -, for tables and curves "
                "name the catalogue by it; set another one"
            )
        if name in names[:place]:
            raise UserError(
                f"data.catalogs[{place}]: {one.path} is called {name!r}, as {catalogs[names.index(name)].path} is; set "
                "a name for one of them"
            )
        if not (math.isfinite(one.weight) and one.weight > 0):
            raise UserError(f"data.catalogs[{place}].weight={one.weight} of {name!r}: expected a number above 0")
    slots_of(catalogs)


def slots_of(catalogs: Sequence[CatalogConfig]) -> tuple[int, ...]:
    """Of `PERIOD` positions, how many each catalogue has: its share, rounded by the largest remainder.

    Raises:
        UserError: one would have none.
    """
    weights = [Fraction(one.weight) for one in catalogs]  # the same on every machine
    exact = [PERIOD * weight / sum(weights) for weight in weights]
    slots = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: slots[place] - exact[place])
    for place in by_remainder[: PERIOD - sum(slots)]:
        slots[place] += 1
    for place, one in enumerate(catalogs):
        if not slots[place]:
            raise UserError(
                f"data.catalogs[{place}].weight={one.weight:g} of {one.known_as!r}: {float(exact[place]):.2g} of "
                f"{PERIOD:,} samples, so that none would come from it; raise it, or remove the catalogue"
            )
    return tuple(slots)
