"""What `mbsd catalog build`, `catalog mask` and `tables build` print about the files that they read, and their help."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mbsd.catalog.task_rows import NEEDED, OPTIONAL, Kind
from mbsd.catalog.tsv import COLUMNS
from mbsd.cli.catalog import catalog_app
from mbsd.cli.tables import tables_app
from mbsd.errors import UserError
from tests.catalog.helpers import write_jsonl


def run(app: object, *words: object) -> list[str]:
    """The lines that a command prints, without the spaces around them."""
    result = CliRunner().invoke(app, list(map(str, words)), terminal_width=200)  # type: ignore[arg-type]
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return [line.strip() for line in result.stdout.splitlines()]


def test_building_names_what_was_not_read(tmp_path: Path) -> None:
    rows = [{"sku": 1.0, "title": "a", "price": 3}, {"sku": 1, "title": "b"}, {"sku": 2, "title": None}]
    source, out = write_jsonl(tmp_path / "items.jsonl", *rows), tmp_path / "catalog"
    with pytest.raises(UserError, match="no column 'item_id', and 'sku' would not be read"):
        run(catalog_app, "build", source, "--out", out, "--workers", 1)
    printed = run(catalog_app, "build", source, "--out", out, "--workers", 1, "--column", "item_id=sku")
    assert printed[1:3] == [
        "3 rows read; left out: 1 same item id (the first: items.jsonl, row 2), 1 neither title nor usable image (the "
        "first: items.jsonl, row 3)",
        "columns not read: price",
    ]
    printed = run(
        catalog_app, "mask", write_jsonl(source, {"item_id": 1, "title": "a", "price": 3}), "--out", tmp_path / "m"
    )
    assert printed[1:] == ["columns not read: price"]

    labels = write_jsonl(
        tmp_path / "labels.jsonl", {"item_id": 1, "category": "x", "by": "me"}, {"item_id": 7, "category": "x"}
    )
    printed = run(tables_app, "build", "categories", labels, "--catalog", out, "--out", tmp_path / "t.parquet")
    assert printed[0].endswith(f"left out: 1 item not in the catalogue (the first: {labels}, row 2: 7)")
    whole = "no two items have an equal title or picture: each has its own split"
    assert printed[1:] == ["2 rows read", "columns not read: by", whole]


@pytest.mark.parametrize("kind", list(NEEDED))
def test_the_help_names_the_columns_of_every_kind(kind: Kind) -> None:
    lines = run(tables_app, "build", "--help")
    (line,) = [line for line in lines if line.startswith(f"{kind}: ")]
    needed, _, optional = line.partition(";")
    assert all(name in needed for name in NEEDED[kind]) and all(name in optional for name in OPTIONAL[kind])


def test_the_help_names_the_columns_of_a_tsv() -> None:
    text = " ".join(run(tables_app, "build", "--help"))
    for number in (3, 5):
        assert f"{COLUMNS[number]}" in text
    assert COLUMNS[4].replace("query or tag", "text") in text
