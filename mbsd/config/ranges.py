"""Ranges of settings: each stands at its field, and is checked with the rest of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

from mbsd.errors import UserError

LEAST, SHARE = "least", "share"


def at_least(least: int, *, default: Any) -> Any:
    """A field of a settings dataclass that is `least` or more, or None where that is its default."""
    return dataclasses.field(default=default, metadata={LEAST: least})


def share(*, default: float) -> Any:
    """A field of a settings dataclass from 0 to 1, both included."""
    return dataclasses.field(default=default, metadata={SHARE: True})


def check_ranges(settings: Any, prefix: str = "") -> None:
    """Check every field of a settings dataclass, and of those inside it.

    Raises:
        UserError: a value outside the range that stands at its field; the message names the setting.
    """
    for field in dataclasses.fields(settings):
        name, value = f"{prefix}{field.name}", getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif value is not None and field.metadata.get(SHARE) and not 0 <= value <= 1:
            raise UserError(f"{name}={value}: expected a number between 0 and 1")
        elif value is not None and LEAST in field.metadata and value < field.metadata[LEAST]:
            raise UserError(f"{name}={value}: expected {field.metadata[LEAST]} or more")
