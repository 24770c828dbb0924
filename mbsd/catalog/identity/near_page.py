"""`keys/near_pictures.html`: what near pictures join, to be looked at before they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.identity.files import NO_KEY
from mbsd.catalog.identity.report import groups_of
from mbsd.catalog.reader import Catalog
from mbsd.catalog.thumbnail import thumbnail_of
from mbsd.io.files import replace_text

Int64 = NDArray[np.int64]
THUMBNAIL = 96  # pixels
GROUPS = 120  # that are shown
ITEMS = 10  # of a group that are shown


@dataclass(frozen=True)
class Shown:
    """An item on the page; `picture` is a data URI, "" where its picture is damaged."""

    item_id: str
    title: str
    picture: str


@dataclass(frozen=True)
class ShownGroup:
    """A group of near pictures.

    Attributes:
        size: all its items.
        joined: the kinds of keys that join them all without it.
        shown: the first items.
    """

    size: int
    joined: tuple[str, ...]
    shown: tuple[Shown, ...]


def write_near_page(path: Path, catalog: Catalog, keys: Mapping[str, Int64], distance: int) -> None:
    """Write the page: the groups that no other key joins first, the largest of them before the smaller ones.

    Args:
        path: of the page.
        catalog: whose items they are.
        keys: kind -> the keys of all items, near_picture among them.
        distance: of the near pictures.
    """
    others = {kind: array for kind, array in keys.items() if kind != "near_picture"}
    groups = [(group, _joined(group, others)) for group in groups_of(keys["near_picture"])]
    groups.sort(key=lambda found: bool(found[1]))  # stable: by size within the two
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("near_pictures.html.j2").render(
        catalog=catalog.path,
        distance=distance,
        num_groups=len(groups),
        num_new=sum(not joined for _, joined in groups),
        num_items=sum(len(group) for group, _ in groups),
        groups=[_shown(catalog, group, joined) for group, joined in groups[:GROUPS]],
    )
    replace_text(path, page)


def _joined(group: Int64, others: Mapping[str, Int64]) -> tuple[str, ...]:
    """The kinds of keys that all items of a group share."""
    found = []
    for kind, array in others.items():
        keys = array[group]
        if keys[0] != NO_KEY and (keys == keys[0]).all():
            found.append(kind)
    return tuple(found)


def _shown(catalog: Catalog, group: Int64, joined: tuple[str, ...]) -> ShownGroup:
    shown = []
    for item in group[:ITEMS].tolist():
        record = catalog.record(item)
        shown.append(Shown(record.item_id, record.title, thumbnail_of(catalog, item, THUMBNAIL)))
    return ShownGroup(len(group), joined, tuple(shown))
