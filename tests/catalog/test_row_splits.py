"""Alignment without a split column: pairs that share items, directly or through others, are in one split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbsd.catalog.groups import GroupOptions, group_splits
from mbsd.catalog.layout import split_of
from mbsd.catalog.reader import Catalog
from mbsd.catalog.row_splits import LabelOptions
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Table, TableSummary, build_table
from mbsd.errors import UserError
from tests.catalog.helpers import small_catalog, write_jsonl

ITEMS = 40
SAME = {7: 3, 11: 3, 30: 29}  # items with the title of another
Pair = tuple[int, int, int]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    items = [Item(f"i{n}", f"title {SAME.get(n, n)}") for n in range(ITEMS)]
    return small_catalog(tmp_path_factory.mktemp("alignment") / "catalog", items)


def align(
    folder: Path, catalog: Catalog, pairs: list[Pair], splits: list[str] | None = None, **options: Any
) -> tuple[TableSummary, dict[tuple[int, int], str]]:
    """The summary and the split of each pair that is in the table."""
    rows = [
        {"item_id_a": f"i{a}", "item_id_b": f"i{b}", "label": label, **({"split": splits[n]} if splits else {})}
        for n, (a, b, label) in enumerate(pairs)
    ]
    source = write_jsonl(folder / "pairs.jsonl", *rows)
    summary = build_table("alignment", source, catalog, folder / "t.parquet", LabelOptions(**options))
    table = Table(folder / "t.parquet", catalog)
    ends = zip(table.column("item_a").tolist(), table.column("item_b").tolist(), strict=True)
    return summary, dict(zip(ends, table.column("split"), strict=True))


def components(links: list[tuple[int, int]]) -> list[int]:
    """The smallest item by id that each item is linked with, by relabelling until nothing changes."""
    of = list(range(ITEMS))
    changed = True
    while changed:
        changed = False
        for a, b in links:
            low = min(of[a], of[b], key=lambda item: f"i{item}")
            changed = changed or of[a] != low or of[b] != low
            of[a] = of[b] = low
    return of


def one_each(pairs: list[Pair]) -> list[Pair]:
    """The pairs without those that say something of two items again."""
    return list({frozenset(pair[:2]): pair for pair in pairs}.values())


drawn = st.lists(
    st.tuples(st.integers(0, ITEMS - 1), st.integers(0, ITEMS - 1), st.integers(0, 1)), min_size=1, max_size=30
).map(one_each)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn, st.randoms(use_true_random=False))
def test_linked_pairs_are_in_one_split(catalog: Catalog, tmp_path: Path, pairs: list[Pair], order: Any) -> None:
    found = align(tmp_path, catalog, pairs)[1]
    of = components([*SAME.items(), *(pair[:2] for pair in pairs)])
    assert found == {(a, b): split_of(f"i{of[a]}") for a, b, _ in pairs}
    shuffled = pairs.copy()
    order.shuffle(shuffled)
    assert align(tmp_path, catalog, shuffled)[1] == found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn.filter(lambda pairs: any(label for _, _, label in pairs)))
def test_negatives_that_link_nothing(catalog: Catalog, tmp_path: Path, pairs: list[Pair]) -> None:
    summary, found = align(tmp_path, catalog, pairs, cut_negatives=True)
    of = components([*SAME.items(), *(pair[:2] for pair in pairs if pair[2])])
    split = [split_of(f"i{first}") for first in of]
    assert found == {(a, b): split[a] for a, b, _ in pairs if split[a] == split[b]}
    assert {pair[:2] for pair in pairs if pair[2]} <= set(found), "every positive is kept"
    assert summary.count.left_out["negative pair between two splits"] == len(pairs) - len(found)


def test_pairs_alone_keep_the_split_of_their_smaller_id(catalog: Catalog, tmp_path: Path) -> None:
    """As a table by item has it, so that only pairs with a common item move."""
    pairs = [(a, a + 1, a % 4 // 2) for a in range(12, 28, 2)]
    apart = align(tmp_path, catalog, pairs)[1]
    assert apart == align(tmp_path, catalog, pairs, group=GroupOptions(by=()))[1]
    assert Table(tmp_path / "t.parquet").split_by == {"by": "item"}


def test_one_component_of_all_pairs_is_told_and_what_to_do(catalog: Catalog, tmp_path: Path) -> None:
    """A star: every pair has item 0. As before, each pair would have a split of its own, and item 0 all three."""
    pairs = [(0, n, int(n < 10)) for n in range(1, ITEMS)]
    summary, found = align(tmp_path, catalog, pairs)
    assert set(found.values()) == {split_of("i0")}
    assert summary.split_notes[1] == (
        "1 sets of items that pairs link are each in one split; the largest has 39 of 39 rows (100.0%) and 40 items"
    )
    assert summary.split_notes[2].startswith("WARNING: one set has 100% of the rows, all in ")
    assert "--cut-negatives" in summary.split_notes[2] and "--group none" in summary.split_notes[2]
    cut, kept = align(tmp_path, catalog, pairs, cut_negatives=True)
    assert len(kept) < len(found) and "positive pairs link" in cut.split_notes[1]
    assert len(set(align(tmp_path, catalog, pairs[10:], group=GroupOptions(by=()))[1].values())) == 1  # i0 is the least
    few = align(tmp_path, catalog, [(n, n + 1, 1) for n in range(12, 28, 2)])[0]
    assert not any("WARNING" in note for note in few.split_notes)


def test_a_sources_own_splits_may_cut_and_are_counted(catalog: Catalog, tmp_path: Path) -> None:
    pairs = [(3, 4, 1), (7, 5, 0), (20, 21, 1)]
    summary, found = align(tmp_path, catalog, pairs, ["train", "test", "train"])
    assert list(found.values()) == ["train", "test", "train"]
    assert summary.split_notes == [
        "the source's own splits are kept: 1 of 5 items (equal ones counted once) are in more than one of them"
    ]
    assert Table(tmp_path / "t.parquet").split_by == {"by": "source"}
    summary, found = align(tmp_path, catalog, pairs, ["", "test", ""])
    groups = group_splits(catalog)
    assert found[7, 5] == "test" and found[20, 21] == groups[20]
    assert Table(tmp_path / "t.parquet").split_by == {**GroupOptions().described(), "given_rows": 1}


def test_cutting_negatives_is_of_alignment_by_group(catalog: Catalog, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", {"item_id": "i1", "category": "x"})
    with pytest.raises(UserError, match="--cut-negatives is of alignment.*of categories"):
        build_table("categories", source, catalog, tmp_path / "t.parquet", LabelOptions(cut_negatives=True))
    with pytest.raises(UserError, match="--group is none"):
        align(tmp_path, catalog, [(1, 2, 1)], cut_negatives=True, group=GroupOptions(by=()))
    with pytest.raises(UserError, match="no row is left .1 negative pair between two splits"):
        ends = next(n for n in range(12, ITEMS) if split_of(f"i{n}") != split_of("i12"))
        align(tmp_path, catalog, [(12, ends, 0)], cut_negatives=True)
