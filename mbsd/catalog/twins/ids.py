"""Which items are twins: an item's twin has its id with `~twin` behind it, and perhaps a number."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mbsd.catalog.layout import id_in_split_of
from mbsd.catalog.several import Catalogs, Items
from mbsd.errors import UserError

Int64 = NDArray[np.int64]
SUFFIX = "~twin"
OF_TWIN = rf"{SUFFIX}(-[0-9]+)?\z"  # at the end of a twin's id


def twin_id(item_id: str) -> str:
    """Return the id of an item's twin, in the item's own split: in two, one would be seen in training."""
    return id_in_split_of(item_id, f"{item_id}{SUFFIX}")


def twins_of(catalog: Items) -> tuple[Int64, Int64]:
    """Return the numbers of the items that have a twin, rising, and those of their twins, int64 [twins] each."""
    if isinstance(catalog, Catalogs):
        starts, found = catalog.starts.tolist(), list(map(twins_of, catalog.members))
        shifted = [(items + start, twins + start) for start, (items, twins) in zip(starts, found, strict=False)]
        items, twins = (np.concatenate(side) for side in zip(*shifted, strict=True))
        return items, twins
    ids = catalog.table()["item_id"]
    twins = np.flatnonzero(pc.match_substring_regex(ids, OF_TWIN).to_numpy())
    if not len(twins):
        return twins, twins
    named = pc.replace_substring_regex(ids.take(pa.array(twins)), OF_TWIN, "")
    items = pc.fill_null(pc.index_in(named, value_set=ids.combine_chunks()), -1).to_numpy().astype(np.int64)
    order = np.lexsort((twins, items))
    order = order[items[order] >= 0]
    return items[order], twins[order]


def require_no_twins(catalog: Items) -> None:
    """Raise a UserError where an item's id is as a twin's is: it could be taken for one."""
    ids = catalog.table()["item_id"]
    first = pc.index(pc.match_substring_regex(ids, OF_TWIN), True).as_py()
    if first >= 0:
        raise UserError(
            f"catalogue {catalog.path}: the id {ids[first].as_py()!r} ends as a twin's does ({SUFFIX}); give the "
            "catalogue without twins, or another id to this item"
        )
