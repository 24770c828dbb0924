"""The file of a task table: Parquet with one schema a kind, tied to the catalogue whose item numbers it holds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbsd.catalog.layout import SPLITS, WHERE
from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs, Items, item_columns
from mbsd.catalog.table_owners import CATALOG, Owners, as_written, numbered_through
from mbsd.catalog.task_rows import Kind
from mbsd.errors import UserError
from mbsd.io.files import replacing

TABLE_VERSION = 2
ROW_GROUP = 1 << 17
BY_ITEM = {"by": "item"}

# `split` of a pair, tag or category is that of its item's group (see `groups`), and of an alignment row that of all
# pairs that are linked with it (see `row_splits`), unless the rows' source has splits of its own.
SCHEMAS: dict[Kind, Any] = {
    "pairs": pa.schema(
        [
            ("text", pa.string()),  # the query
            ("item", pa.int64()),
            ("label", pa.int8()),
            (
                "source",
                pa.string(),
            ),  # purchase | title | same-category | any-category | rewrite, or the file's own word
            ("evidence", pa.int32()),  # distinct buyers
            ("replaced", pa.string()),  # of a rewrite: the replaced term, "type:old>new"
            ("split", pa.string()),
        ]
    ),
    "attributes": pa.schema(
        [
            ("text", pa.string()),  # the tag, "name:value"
            ("item", pa.int64()),
            ("label", pa.int8()),
            ("attribute", pa.string()),  # the name
            ("where", pa.string()),  # where the value can be seen: image | title | both | unknown
            ("split", pa.string()),
        ]
    ),
    "alignment": pa.schema(
        [("item_a", pa.int64()), ("item_b", pa.int64()), ("label", pa.int8()), ("split", pa.string())]
    ),
    "categories": pa.schema(
        [("item", pa.int64()), ("label", pa.int32()), ("category", pa.string()), ("split", pa.string())]
    ),
}
CHECKSUM = "mbsd.checksum"
MADE = "mbsd.made"
AGAIN = "make it again with `mbsd tables` or `mbsd pairs`"
REBUILD = {
    "pairs": "`mbsd pairs mine`, `mbsd pairs derive` or `mbsd tables build pairs`",
    "attributes": "`mbsd tables derive attributes` or `mbsd tables build attributes`",
    "alignment": "`mbsd tables build alignment` or `mbsd tables derive alignment`",
    "categories": "`mbsd tables derive categories` or `mbsd tables build categories`",
}


def write_table(
    kind: Kind,
    table: Any,
    catalog: Items | Owners,
    out: Path,
    *,
    split_by: Mapping[str, Any] = BY_ITEM,
    made: Mapping[str, Any] | None = None,
) -> None:
    """Check a pyarrow Table of this kind against its schema and the catalogue, and write it to `out` (Parquet).

    An existing file is replaced at once. For `categories` the class names are the distinct (label, category), which
    must number 0 … C - 1. `split_by` says how the rows were split (see `Table.split_by`), and `made` what else
    there is to say of them (`Table.made`).

    Raises:
        UserError: no rows, a missing column, or a label, split or item number out of range, naming the row.
    """
    schema = SCHEMAS[kind]
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise UserError(f"table {out}: no column {missing[0]!r}; a table of kind {kind} has {', '.join(schema.names)}")
    if table.num_rows == 0:
        raise UserError(f"table {out}: no rows of kind {kind} are left to write")
    table = table.select(schema.names).cast(schema)
    class_names = _class_names(table, out) if kind == "categories" else []
    owners = catalog if isinstance(catalog, Owners) else Owners.of(catalog)
    _check_values(kind, table, owners.num_items, len(class_names), out)
    with _replacing(out, kind, owners, class_names, split_by, made) as writer:
        writer.write_table(as_written(table, owners))


def write_batches(
    kind: Kind, batches: Iterable[Any], catalog: Catalog, out: Path, *, split_by: Mapping[str, Any]
) -> int:
    """Write a table from record batches, holding few of them at a time, as `write_table` does; return its rows.

    The bytes of the file depend on the rows alone, not on where batches begin.

    Args:
        kind: any but `categories`, whose class names need all rows.
        batches: with at least the columns of the kind.
        catalog: the catalogue whose item numbers the batches hold.
        out: the table's file.
        split_by: how the rows were split (see `Table.split_by`).
    """
    schema = SCHEMAS[kind]
    held, rows = schema.empty_table(), 0
    with _replacing(out, kind, Owners.of(catalog), [], split_by) as writer:
        for batch in batches:
            part = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
            _check_values(kind, part, len(catalog), 0, out)
            held, rows = pa.concat_tables([held, part]), rows + part.num_rows
            while held.num_rows >= ROW_GROUP:
                writer.write_table(held.slice(0, ROW_GROUP).combine_chunks())
                held = held.slice(ROW_GROUP)
        writer.write_table(held.combine_chunks())
    return rows


@contextmanager
def _replacing(
    out: Path,
    kind: Kind,
    owners: Owners,
    class_names: list[str],
    split_by: Mapping[str, Any],
    made: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """A Parquet writer of the table's file, which replaces an existing one when the block ends."""
    metadata = {
        "mbsd.kind": kind,
        "mbsd.version": str(TABLE_VERSION),
        **owners.metadata,
        "mbsd.class_names": json.dumps(class_names, ensure_ascii=False),
        "mbsd.split": json.dumps(split_by),
        **({MADE: json.dumps(made, ensure_ascii=False, sort_keys=True)} if made else {}),
    }
    schema = _schema(kind, owners).with_metadata({**metadata, CHECKSUM: _checksum(metadata)})
    # A checksum of each page: readers of ours compare it, so that a damaged table is never taken for another one.
    with (
        replacing(out) as beside,
        pq.ParquetWriter(beside, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer


def _schema(kind: Kind, owners: Owners) -> Any:
    """Of a table's file."""
    return SCHEMAS[kind].append(pa.field(CATALOG, pa.string())) if owners.named else SCHEMAS[kind]


class Table:
    """A task table in memory; pickled, it is only its path, and its catalogues where it is read for several.

    A table of several catalogues has the numbers of their items as `Catalogs` numbers them through.

    Attributes:
        kind: pairs | attributes | alignment | categories.
        owners: the catalogues that its file is of.
        fingerprint: that of the catalogue whose item numbers it holds.
        num_classes: C for categories, 2 for the other kinds.
        class_names: the C category names in the order of their labels; empty for the other kinds.
        split_by: how the rows are split. {"by": "item"}: by their item alone, as all older tables are. {"by": "group",
            "keys": ["title", "picture"], "max_same": 100, …}: items with a key in common are in one split, and of
            "given_rows" rows the split was the source's. {"by": "source"}: all were the source's. {"by": "time",
            "validation_from": …, "test_from": …} with microseconds since 1970.
        made: what else is said of how it was made: of pairs from titles, {"withheld": [attributes whose values' words
            are in no query], "withheld_categories": bool}; {} of other tables.
    """

    def __init__(self, path: Path | str, catalog: Items | None = None, kind: Kind | None = None):
        """Read and check a table.

        Args:
            path: of its file.
            catalog: that its items are of, or several; None: its own.
            kind: that it has to be of; None: any.

        Raises:
            UserError: no task table, not of this kind, or made for another catalogue.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"table {self.path}: no such file; make it with `mbsd tables` or `mbsd pairs mine`")
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                table = file.read()
        except (OSError, ValueError, pa.ArrowException) as error:
            why = " ".join(str(error).split())
            if "CRC" in why or "hecksum" in why:
                raise UserError(
                    f"table {self.path}: damaged, its bytes are not those that were written; {AGAIN}"
                ) from None
            raise UserError(f"table {self.path}: not a Parquet file, or a damaged one ({why}); {AGAIN}") from None
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        found = metadata.get("mbsd.kind", "")
        if found not in SCHEMAS or metadata.get("mbsd.version") != str(TABLE_VERSION):
            raise UserError(f"table {self.path}: not a task table of this version; make it with `mbsd tables build`")
        self.kind: Kind = found
        if kind is not None and kind != self.kind:
            raise UserError(f"table {self.path}: holds {self.kind}; expected {kind}")
        if CHECKSUM in metadata and _checksum(metadata) != metadata[CHECKSUM]:  # older tables have none
            raise UserError(f"table {self.path}: damaged, its description is not what was written; {AGAIN}")
        self.fingerprint, self.owners = metadata["mbsd.fingerprint"], Owners.read(metadata)
        several = self.owners.named or isinstance(catalog, Catalogs)
        if not several and catalog is not None and catalog.fingerprint != self.fingerprint:
            raise UserError(
                f"table {self.path} was made for another catalogue (fingerprint {self.fingerprint[:12]}, "
                f"{catalog.path} has {catalog.fingerprint[:12]}): build it again with {REBUILD[self.kind]}"
            )
        schema = _schema(self.kind, self.owners)
        if not table.schema.remove_metadata().equals(schema):
            expected = ", ".join(schema.names)
            raise UserError(f"table {self.path}: columns {', '.join(table.column_names)}; expected {expected}")
        self.class_names: list[str] = json.loads(metadata["mbsd.class_names"])
        self.num_classes = len(self.class_names) or 2
        self.split_by: dict[str, Any] = json.loads(metadata["mbsd.split"])
        self.made: dict[str, Any] = json.loads(metadata.get(MADE, "{}"))
        num_items = int(metadata["mbsd.num_items"])
        if several:
            table = numbered_through(table, self.owners, catalog, self.path)
            if catalog is not None:
                self.fingerprint, num_items = catalog.fingerprint, len(catalog)
        _check_values(self.kind, table, num_items, len(self.class_names), self.path)
        self._table = table
        self._several = catalog if isinstance(catalog, Catalogs) else None
        self._columns: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (Table, (self.path,) if self._several is None else (self.path, self._several))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def column(self, name: str) -> Any:
        """Return a column over all rows: int64 [rows] for numbers, a list of str for text; kept from then on."""
        if name not in self._columns:
            column = self._table[name]
            is_text = column.type == pa.string()
            self._columns[name] = column.to_pylist() if is_text else column.to_numpy().astype(np.int64)
        return self._columns[name]

    def row(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        """Return some columns of one row as Python values; nothing is kept."""
        return {name: self._table[name][row].as_py() for name in columns}

    @property
    def column_names(self) -> list[str]:
        """Those of its kind (`SCHEMAS`)."""
        return list(SCHEMAS[self.kind].names)

    def addresses(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Return the columns by which a file names the items of some rows: item, or item_a and item_b, int64 [rows].

        Of several catalogues they are the items' own numbers there, behind a column `catalog` with its name.
        """
        items = {name: self.column(name)[rows] for name in self.column_names if name.startswith("item")}
        return item_columns(self._several, items)

    def take(self, rows: NDArray[np.int64]) -> Any:
        """Return some rows as a pyarrow Table."""
        return self._table.take(pa.array(rows))

    def rows(self, split: str | None = None) -> NDArray[np.int64]:
        """Return the row numbers of a split in rising order, int64 [rows]; None = all."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in SPLITS:
            raise UserError(f"split {split!r}; expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(pc.equal(self._table["split"], split).to_numpy()).astype(np.int64)


def _checksum(metadata: Mapping[str, str]) -> str:
    """Of a table's metadata, which the checksums of its pages leave out: CRC-32, 8 hex digits."""
    ours = {name: text for name, text in metadata.items() if name.startswith("mbsd.") and name != CHECKSUM}
    return f"{zlib.crc32(json.dumps(ours, sort_keys=True).encode()):08x}"


def _class_names(table: Any, path: Path) -> list[str]:
    name_of: dict[int, str] = {}
    rows = zip(table["label"].to_pylist(), table["category"].to_pylist(), strict=True)
    for row, (label, category) in enumerate(rows, start=1):
        if name_of.setdefault(label, category) != category:
            raise UserError(
                f"table {path}, row {row}: label {label} is {category!r} here and {name_of[label]!r} before; "
                "each label needs one category"
            )
    if sorted(name_of) != list(range(len(name_of))):
        raise UserError(
            f"table {path}: labels run from {min(name_of)} to {max(name_of)} but only {len(name_of)} occur; "
            "number the categories 0, 1, 2 …"
        )
    return [name_of[label] for label in range(len(name_of))]


def _check_values(kind: Kind, table: Any, num_items: int, num_classes: int, path: Path) -> None:
    """Raise a UserError that names the first row with a value missing or out of range; rows count from 1."""

    def refuse(name: str, bad: Any, expected: str) -> None:
        rows = np.flatnonzero(pc.fill_null(bad, True).to_numpy())
        if len(rows):
            value = table[name][int(rows[0])].as_py()
            raise UserError(f"table {path}, row {rows[0] + 1}: {name} is {value!r}; expected {expected}")

    for name in (name for name in table.column_names if name.startswith("item")):
        outside = pc.or_(pc.less(table[name], 0), pc.greater_equal(table[name], num_items))
        refuse(name, outside, f"an item number from 0 to {num_items - 1}")
    highest = num_classes - 1 if kind == "categories" else 1
    refuse("label", pc.or_(pc.less(table["label"], 0), pc.greater(table["label"], highest)), f"0 to {highest}")
    refuse("split", pc.invert(pc.is_in(table["split"], value_set=pa.array(SPLITS))), " | ".join(SPLITS))
    if kind == "attributes":
        refuse("where", pc.invert(pc.is_in(table["where"], value_set=pa.array(WHERE))), " | ".join(WHERE))
    if kind in ("pairs", "attributes"):
        refuse("text", pc.equal(table["text"], ""), "a query or tag")
