"""Vectors that `launchers/embed.py` wrote (`mbsd.scoring.vector_files`), read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbsd.errors import UserError
from mbsd.io.files import difference, read_own_json

MANIFEST = "manifest.json"
VECTORS = "vectors"
AGAIN = "start launchers/embed.py again with the same settings"


def column_widths(manifest: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """View -> its column in the files and the numbers of a vector: `vector` of one view, `vector_text` … of several."""
    if "views" in manifest:
        return {view: (f"vector_{view}", int(width)) for view, width in manifest["views"].items()}
    return {str(manifest["view"]): ("vector", int(manifest["width"]))}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the vectors of a folder are of.

    Raises:
        UserError: no such folder, an unfinished one, or vectors of several catalogues.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no vectors, it has no {MANIFEST}; name a folder that launchers/embed.py wrote")
    manifest = read_own_json(path, f"remove the folder and {AGAIN}")
    if not manifest.get("complete"):
        raise UserError(f"{path}: its vectors are not finished; {AGAIN}")
    if "catalogs" in manifest:
        raise UserError(
            f"{folder}: has vectors of several catalogues ({', '.join(manifest['catalogs'])}), and those of one are "
            "read here; write them for that one alone, with data.catalog"
        )
    return dict(manifest)


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of a catalogue's items in one view, in the catalogue's order.

    Attributes:
        manifest: what they are of.
        view: full, text, image or mean.
        items: int64 [n]; the items' numbers.
        ids: their ids, a pyarrow array.
        vectors_nE: float32; zeros for an item that has none.
        present_n: bool; whether an item has one.
    """

    manifest: dict[str, Any]
    view: str
    items: NDArray[np.int64]
    ids: Any
    vectors_nE: NDArray[np.float32]
    present_n: NDArray[np.bool_]


def read_vectors(folder: Path, view: str | None = None) -> StoredVectors:
    """The vectors of a folder that `launchers/embed.py` has finished.

    Args:
        view: None: the only one that is there, or mean where there are several.

    Raises:
        UserError: no such folder, an unfinished one, a file that is not as it was written, or a view that is not there.
    """
    manifest = read_manifest(folder)
    columns = column_widths(manifest)
    chosen = view or (next(iter(columns)) if len(columns) == 1 else "mean")
    if chosen not in columns:
        raise UserError(
            f"{folder}: holds vectors of {', '.join(columns)} and not of the view {chosen}; name one of them"
        )
    column, width = columns[chosen]
    tables = []
    for file in manifest["files"]:
        if wrong := difference(folder / file["file"], file):
            raise UserError(f"{folder / file['file']}: not as it was written ({wrong}); {AGAIN}")
        tables.append(pq.read_table(folder / file["file"], columns=["item_id", "item", column]))
    count = sum(len(table) for table in tables)
    vectors, present, at = np.zeros((count, width), dtype=np.float32), np.zeros(count, dtype=bool), 0
    for table in tables:
        array = table[column].combine_chunks()
        there = np.asarray(array.is_valid())
        rows = slice(at, at + len(table))
        present[rows] = there
        vectors[rows][there] = array.flatten().to_numpy().reshape(-1, width)  # flatten passes over nulls
        at += len(table)
    whole = pa.concat_tables([table.select(["item_id", "item"]) for table in tables])
    items: NDArray[np.int64] = whole["item"].to_numpy()
    return StoredVectors(manifest, chosen, items, whole["item_id"].combine_chunks(), vectors, present)
