"""A share of a table's training labels: of each class in proportion, smaller shares inside larger ones."""

from __future__ import annotations

from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from mbsd.catalog.derived.pairs import derive_pairs
from mbsd.catalog.derived.settings import DeriveSettings
from mbsd.catalog.negatives import NegativeOptions
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sample import sample_table
from mbsd.catalog.tables import DeriveOptions, Table, derive_table
from mbsd.errors import UserError
from tests.conftest import Shop
from tests.ranks import command

SHARES = (0.05, 0.1, 0.3, 1.0)


def rows_of(table: Table, split: str) -> list[tuple[Any, ...]]:
    names = table.column_names
    return [tuple(table.row(row, tuple(names)).values()) for row in table.rows(split).tolist()]


@pytest.fixture(scope="module")
def catalog(shop: Shop) -> Catalog:
    return Catalog(shop.catalog)


@pytest.mark.parametrize("kind", ["categories", "attributes"])
def test_nested_stratified_and_the_other_splits_whole(kind: Any, catalog: Catalog, tmp_path: Path) -> None:
    derive_table(kind, catalog, tmp_path / "whole.parquet", DeriveOptions(negatives=NegativeOptions(2)))
    whole = Table(tmp_path / "whole.parquet", catalog)
    column = whole.column_names.index("text" if kind == "attributes" else "category")
    label = whole.column_names.index("label")

    def classes(table: Table) -> Counter[str]:
        rows = rows_of(table, "train")
        return Counter(row[column] for row in rows if kind == "categories" or row[label] == 1)

    before: set[tuple[Any, ...]] = set()
    for share in SHARES:
        kept = sample_table(whole, catalog, share, tmp_path / "some.parquet")
        some = Table(tmp_path / "some.parquet", catalog)
        rows = rows_of(some, "train")
        assert kept == len(rows) and before <= set(rows) <= set(rows_of(whole, "train"))
        assert classes(some) == {name: ceil(share * n - 1e-9) for name, n in classes(whole).items()}
        for split in ("validation", "test"):
            assert rows_of(some, split) == rows_of(whole, split)
        assert (some.class_names, some.split_by, some.made) == (whole.class_names, whole.split_by, whole.made)
        before = set(rows)
    assert rows_of(some, "train") == rows_of(whole, "train")


def test_wrong_tags_stay_beside_the_right_one(catalog: Catalog, tmp_path: Path) -> None:
    derive_table("attributes", catalog, tmp_path / "whole.parquet", DeriveOptions(negatives=NegativeOptions(2)))
    whole = Table(tmp_path / "whole.parquet", catalog)
    sample_table(whole, catalog, 0.2, tmp_path / "some.parquet")
    some = Table(tmp_path / "some.parquet", catalog)

    def tags(table: Table) -> Counter[tuple[Any, Any]]:
        rows = [table.row(row, ("item", "attribute")) for row in table.rows("train").tolist()]
        return Counter((row["item"], row["attribute"]) for row in rows)

    assert tags(some).items() <= tags(whole).items(), "all tags of an item's attribute, or none"


def test_the_items_that_are_drawn_keep_all_their_values(catalog: Catalog, tmp_path: Path) -> None:
    derive_table("attributes", catalog, tmp_path / "whole.parquet", DeriveOptions(negatives=NegativeOptions(2)))
    whole = Table(tmp_path / "whole.parquet", catalog)
    sample_table(whole, catalog, 0.3, tmp_path / "some.parquet")

    def of_items(table: Table) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for row in table.rows("train").tolist():
            values = table.row(row, ("item", "attribute"))
            found.setdefault(values["item"], set()).add(values["attribute"])
        return found

    all_values, kept = of_items(whole), of_items(Table(tmp_path / "some.parquet", catalog))
    share_kept = sum(map(len, kept.values())) / sum(len(all_values[item]) for item in kept)
    # Values drawn one by one: an item that keeps any would keep 1.8 of 5, .36; and 83 of 100 items would keep some.
    assert share_kept > 0.6 and len(kept) < 0.5 * len(all_values)


def test_pairs_of_titles_still_say_what_no_query_asks(catalog: Catalog, tmp_path: Path) -> None:
    """Else a study with withheld=true would take the sampled table for one that asks of every attribute."""
    withheld = sorted(catalog.attribute_values())[:1]
    derive_pairs(catalog, tmp_path / "whole.parquet", DeriveSettings(withhold=tuple(withheld)))
    whole = Table(tmp_path / "whole.parquet", catalog)
    sample_table(whole, catalog, 0.3, tmp_path / "some.parquet")
    made = Table(tmp_path / "some.parquet", catalog).made
    assert made == whole.made == {"withheld": withheld, "withheld_categories": False}


def test_another_seed_draws_others_and_the_same_one_the_same(catalog: Catalog, tmp_path: Path) -> None:
    derive_table("categories", catalog, tmp_path / "whole.parquet")
    whole = Table(tmp_path / "whole.parquet", catalog)
    drawn = []
    for seed in (0, 0, 1):
        sample_table(whole, catalog, 0.3, tmp_path / "some.parquet", seed)
        drawn.append(rows_of(Table(tmp_path / "some.parquet", catalog), "train"))
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(UserError, match="share is 0; expected"):
        sample_table(whole, catalog, 0, tmp_path / "none.parquet")


def test_the_command(shop: Shop, catalog: Catalog, tmp_path: Path) -> None:
    some = tmp_path / "some.parquet"
    words = ["--catalog", shop.catalog, "--table", shop.tags, "--share", 0.25, "--out", some]
    done = command("tables", "sample", *words)
    assert done.returncode == 0, done.stderr
    kept = len(Table(some, catalog).rows("train"))
    assert f"{kept} of {len(Table(shop.tags, catalog).rows('train'))} training rows" in done.stdout
