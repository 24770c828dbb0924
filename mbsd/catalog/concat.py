"""Task tables of several catalogues -> one table whose rows name theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mbsd.catalog.several import NAME
from mbsd.catalog.table_file import Table, write_table
from mbsd.catalog.table_owners import Owner, Owners
from mbsd.errors import UserError
from mbsd.io.home import expand_home


def read_parts(texts: Sequence[str]) -> list[tuple[Path, str]]:
    """Each TABLE=NAME as a path and a name.

    Raises:
        UserError: a text is not of that form.
    """
    parts = []
    for text in texts:
        path, _, name = text.rpartition("=")
        if not path or not re.fullmatch(NAME, name):
            raise UserError(
                f"{text}: expected TABLE=NAME, such as pairs.parquet=clothes; a name has letters, digits, _, . and -"
            )
        parts.append((Path(expand_home(path)), name))
    return parts


def concat_tables(parts: Sequence[tuple[Path, str]], out: Path) -> Table:
    """Write one table with the rows of several, in their order; returns it.

    Splits stay as they are, so that an item that two catalogues have may be in two. Categories are numbered anew, in
    the sorted order of all names. Of pairs, `made` has what was withheld from every table.

    Args:
        parts: a table of one catalogue each, and by which name of `data.catalogs` its catalogue is known; several may
            be of one.
        out: the table's file.

    Raises:
        UserError: a table is of another kind than the first or names its catalogues already, one name stands for two
            catalogues, or as of `Table`.
    """
    tables = [Table(path) for path, _ in parts]
    if not tables:
        raise UserError("no table is given; name each with its catalogue, as pairs.parquet=clothes")
    kind, owners = tables[0].kind, dict[str, Owner]()
    for table, (path, name) in zip(tables, parts, strict=True):
        if table.kind != kind:
            raise UserError(f"table {path}: holds {table.kind}, and {parts[0][0]} {kind}; name tables of one kind")
        if table.owners.named:
            raise UserError(f"table {path}: names its catalogues already; give the tables that it was made of")
        (of,) = table.owners.each
        owner = owners.setdefault(name, Owner(name, of.fingerprint, of.num_items))
        if owner.fingerprint != of.fingerprint:
            raise UserError(
                f"table {path}: is of another catalogue (fingerprint {of.fingerprint[:12]}) than the table before it "
                f"that is named {name!r} too ({owner.fingerprint[:12]}); give it another name, or make it again"
            )
    joined = Owners(tuple(owners.values()))
    starts = dict(zip(owners, joined.starts.tolist(), strict=True))
    names = sorted({name for table in tables for name in table.class_names})
    rows = [_moved(table, starts[name], names) for table, (_, name) in zip(tables, parts, strict=True)]
    split_by = [table.split_by for table in tables]
    same = all(one == split_by[0] for one in split_by)
    write_table(
        kind, pa.concat_tables(rows), joined, out,
        split_by=split_by[0] if same else {"by": "tables", "tables": split_by}, made=_made(tables),
    )  # fmt: skip
    return Table(out)


def _moved(table: Table, start: int, class_names: Sequence[str]) -> Any:
    """Its rows with items numbered from `start` and, of categories, labels of all class names."""
    rows = table.take(np.arange(len(table)))
    for name in (name for name in rows.column_names if name.startswith("item")):
        moved = pa.array(rows[name].to_numpy() + start, pa.int64())
        rows = rows.set_column(rows.column_names.index(name), name, moved)
    if table.class_names:
        label = np.array([class_names.index(name) for name in table.class_names], dtype=np.int32)
        moved = pa.array(label[rows["label"].to_numpy()], pa.int32())
        rows = rows.set_column(rows.column_names.index("label"), "label", moved)
    return rows.replace_schema_metadata(None)


def _made(tables: Sequence[Table]) -> dict[str, Any] | None:
    if not all("withheld" in table.made for table in tables):
        return None
    withheld = set.intersection(*(set(table.made["withheld"]) for table in tables))
    categories = all(table.made["withheld_categories"] for table in tables)
    return {"withheld": sorted(withheld), "withheld_categories": categories}
