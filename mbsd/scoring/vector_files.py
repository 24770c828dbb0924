"""Vectors of a catalogue's items as Parquet files that an interrupted run resumes.

manifest.json                    what the vectors are of and, when all are there, each file with its rows and SHA-256
vectors/part-000000.parquet …    item_id, item (its number), vector (fixed-size list); items in the catalogue's order;
                                 of several views a column each: vector_text, …; null where an item shows nothing
vectors/_part-000000.json        until all are there: size and SHA-256 of the file, written before it appears

A file holds a fixed range of the items, whoever writes it, and appears when it is whole: so any number of ranks may
resume it, and no item comes twice. A file that is there already is taken over where it is as it was written, by its
checksum; else it is named and written again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbsd.catalog.several import Items, item_columns
from mbsd.errors import UserError
from mbsd.io.files import difference, facts_of, read_own_json, replace_text, replacing
from mbsd.io.stored_vectors import MANIFEST, VECTORS, column_widths

Vectors = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Of B items: [B, E], and [B] whether each has one; the others are null."""


@dataclass(frozen=True)
class VectorFiles:
    """The files of one set of vectors.

    Attributes:
        folder: that holds them.
        catalog: whose items they are of; of several, the files name each item's in a column `catalog`.
        split: of it, or None.
        what: the manifest without the list of files: what must be the same to resume.
    """

    folder: Path
    catalog: Items
    split: str | None
    what: dict[str, Any]

    @property
    def num_files(self) -> int:
        """Files in all."""
        return -(-int(self.what["items"]) // int(self.what["items_per_file"]))

    def path(self, part: int) -> Path:
        """Of a file."""
        return self.folder / VECTORS / f"part-{part:06d}.parquet"

    def start(self, say: Callable[[str], None]) -> list[int]:
        """Write the manifest where there is none, sweep what an interrupted start left; return the parts to write.

        Those are the files that are not there, and those that are not as they were written: they are named and removed.

        Args:
            say: prints a line.

        Raises:
            UserError: the folder holds other vectors, or something else.
        """
        manifest, recorded = self.folder / MANIFEST, dict[str, Any]()
        if manifest.exists():
            found = read_own_json(manifest, "choose another out, or remove the folder")
            recorded = {file["file"]: file for file in found.get("files", [])}
            for name, value in self.what.items():
                if found.get(name) != value:
                    raise UserError(
                        f"{manifest}: its vectors are of {name}={found.get(name)!r}, now it is {value!r}; choose "
                        "another out, or remove the folder"
                    )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder}: already there, without a {MANIFEST}; choose another out")
        (self.folder / VECTORS).mkdir(parents=True, exist_ok=True)
        for left in (self.folder / VECTORS).glob(".part-*"):
            left.unlink()
        todo = []
        for part in range(self.num_files):
            path = self.path(part)
            wrong = self._wrong(part, recorded.get(f"{VECTORS}/{path.name}")) if path.exists() else "not there"
            if not wrong:
                continue
            if path.exists():
                say(f"WARNING: {path} is not as it was written ({wrong}): it is written again")
                path.unlink()
            todo.append(part)
        if todo:
            self._write_manifest({"complete": False})
        return todo

    def _wrong(self, part: int, recorded: dict[str, Any] | None) -> str:
        """How a file differs from what was recorded of it, in words; "" where it does not, and its facts are kept.

        Args:
            recorded: its entry in the manifest; a file that was written after that has facts of its own.
        """
        facts = self._facts(part)
        if facts.exists():
            try:
                return difference(self.path(part), json.loads(facts.read_text(encoding="utf-8")))
            except ValueError:
                return "the file with its checksum is damaged"
        if recorded is None:
            return "no checksum was recorded of it"
        wrong = difference(self.path(part), recorded)
        if not wrong:
            replace_text(facts, json.dumps({"sha256": recorded["sha256"]}) + "\n")
        return wrong

    def _facts(self, part: int) -> Path:
        """Of a file: where its size and checksum are recorded until all are there."""
        return self.folder / VECTORS / f"_part-{part:06d}.json"  # readers of Parquet folders pass by a leading "_"

    def numbers(self, part: int) -> NDArray[np.int64]:
        """Which of the items a file holds, counted in the split: int64 [rows]."""
        size = int(self.what["items_per_file"])
        return np.arange(part * size, min((part + 1) * size, int(self.what["items"])), dtype=np.int64)

    def write(self, parts: list[int], batches: Iterable[dict[str, Vectors]]) -> None:
        """Write these files from the vectors of their items, by view, in batches that end where files end."""
        items = self.catalog.indices(self.split)
        ids = self.catalog.table()["item_id"]
        arriving = iter(batches)
        for part in parts:
            chosen, held, count = items[self.numbers(part)], list[dict[str, Vectors]](), 0
            while count < len(chosen):
                held.append(next(arriving))
                count += len(next(iter(held[-1].values()))[1])
            joined = {
                view: (np.concatenate([of[view][0] for of in held]), np.concatenate([of[view][1] for of in held]))
                for view in held[0]
            }
            self._write_part(part, ids.take(pa.array(chosen)), chosen, joined)

    def finish(self, paths: dict[str, Any], damaged: int) -> str:
        """Write the manifest with all files and where model and catalogue lay; returns a line about it to print.

        Args:
            paths: further entries of the manifest.
            damaged: pictures that were left out.

        The checksums are those of what was written, not of what is there now.
        """
        files = []
        for part in range(self.num_files):
            facts = read_own_json(self._facts(part), "start again: its vectors are then written again")
            name = f"{VECTORS}/{self.path(part).name}"
            files.append({"file": name, "rows": len(self.numbers(part)), "sha256": facts["sha256"]})
        self._write_manifest({"complete": True, **paths, "files": files})
        for part in range(self.num_files):
            self._facts(part).unlink()
        without = f"; {damaged} pictures were damaged and left out" if damaged else ""
        columns = column_widths(self.what)
        views = f" in the views {', '.join(columns)}" if len(columns) > 1 else ""
        widths = " and ".join(dict.fromkeys(str(width) for _, width in columns.values()))
        return f"{self.folder}: {self.what['items']} vectors of {widths}{views} in {len(files)} files{without}"

    def _write_part(self, part: int, ids: Any, items: NDArray[np.int64], of_view: dict[str, Vectors]) -> None:
        dtype = np.float16 if self.what["dtype"] == "float16" else np.float32
        named = item_columns(self.catalog, {"item": items})
        columns = {name: pa.array(values) for name, values in named.items() if name != "item"}
        columns |= {"item_id": ids, "item": pa.array(named["item"])}
        for view, (name, width) in column_widths(self.what).items():
            vectors, present = of_view[view]
            flat = pa.array(vectors.astype(dtype).reshape(-1))
            mask = None if present.all() else pa.array(~present)
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, width, mask=mask)
        table = pa.table(columns)
        with replacing(self.path(part)) as beside:
            pq.write_table(table, beside, compression="zstd")
            replace_text(self._facts(part), json.dumps(facts_of(beside)) + "\n")

    def _write_manifest(self, more: dict[str, Any]) -> None:
        replace_text(self.folder / MANIFEST, json.dumps({**self.what, **more}, ensure_ascii=False, indent=1) + "\n")
