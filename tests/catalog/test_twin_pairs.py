"""The table of alignment of a catalogue with twins: which pairs there are, and in which splits."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbsd.catalog.groups import GroupOptions, group_splits
from mbsd.catalog.layout import split_of
from mbsd.catalog.negatives import NegativeOptions
from mbsd.catalog.reader import Catalog
from mbsd.catalog.row_splits import LabelOptions
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import DeriveOptions, Table, TableSummary, build_table, derive_table
from mbsd.catalog.twins import pairs as twin_pairs
from mbsd.catalog.twins.ids import twin_id
from mbsd.catalog.twins.make import TwinOptions, shortened_title
from mbsd.errors import UserError
from mbsd.scoring.prior import describe_words_in_common
from tests.catalog.helpers import small_catalog, write_jsonl

Row = tuple[str, str, int, str]


def with_twins(items: list[Item], drop: float = 0.4) -> list[Item]:
    """Of text alone, in the order of a source by `make_twins`."""
    options = TwinOptions(drop_words=drop)
    return [
        one
        for item in items
        for one in (
            item,
            Item(twin_id(item.item_id), shortened_title(item.title, item.item_id, options), category=item.category),
        )
    ]


def derive(folder: Path, items: list[Item], options: DeriveOptions | None = None) -> tuple[TableSummary, list[Row]]:
    catalog = small_catalog(folder / "catalog", items)
    summary = derive_table("alignment", catalog, folder / "t.parquet", options)
    table = Table(folder / "t.parquet", catalog, "alignment")
    columns = (table.column(name) for name in ("item_a", "item_b", "label", "split"))
    ids = catalog.table()["item_id"].to_pylist()
    return summary, [(ids[a], ids[b], int(label), split) for a, b, label, split in zip(*columns, strict=True)]


drawn = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["red", "blue", "men", "shoe", "hat"]), min_size=1, max_size=4), st.integers(0, 2)
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(drawn, st.integers(1, 3), st.integers(0, 2), st.randoms(use_true_random=False))
def test_positives_and_negatives(kinds: list[tuple[list[str], int]], num: int, seed: int, order: object) -> None:
    items = [Item(f"i{n}", " ".join(words), category=f"k{kind or ''}") for n, (words, kind) in enumerate(kinds)]
    title = {item.item_id: item.title for item in with_twins(items)}
    twin = {item.item_id: twin_id(item.item_id) for item in items}
    item_of = {twin_id: item_id for item_id, twin_id in twin.items()}
    options = DeriveOptions(seed, NegativeOptions(num))
    with tempfile.TemporaryDirectory() as folder:
        summary, rows = derive(Path(folder) / "a", with_twins(items), options)
        plain = small_catalog(Path(folder) / "plain", items)
        split = dict(zip(plain.table()["item_id"].to_pylist(), group_splits(plain), strict=True))
        shuffled = with_twins(items)
        order.shuffle(shuffled)  # type: ignore[attr-defined]
        assert sorted(derive(Path(folder) / "b", shuffled, options)[1]) == sorted(rows)

    def is_other(one: str, other: str) -> bool:
        return not {title[one], title[twin[one]]} & {title[other], title[twin[other]]}

    assert [row for row in rows if row[2]] == [(i.item_id, twin[i.item_id], 1, split[i.item_id]) for i in items]
    wrong = [(a, item_of[b]) for a, b, label, _ in rows if not label]
    assert len(set(wrong)) == len(wrong) and set(wrong) == {(b, a) for a, b in wrong}, "each beside the other's twin"
    assert all(row[3] == split[row[0]] == split[item_of[row[1]]] for row in rows), "no item is in two splits"
    assert all(is_other(a, b) for a, b in wrong)
    partners = Counter(a for a, _ in wrong)
    assert max(partners.values(), default=0) <= num
    missing = summary.count.left_out[twin_pairs.NO_PARTNER]
    assert missing == num * len(items) - len(wrong) and summary.rows == len(rows) == len(items) + len(wrong)
    if num == 1:  # whoever is alone has nobody who could be its partner
        alone = [i.item_id for i in items if i.item_id not in partners]
        assert not any(split[a] == split[b] and is_other(a, b) for a in alone for b in alone if a < b)


def test_the_likest_of_the_category_is_taken(tmp_path: Path) -> None:
    """All are of one split; in a category of two pairs these are found, and who is left has another category's."""
    ids = [f"i{n}" for n in range(60) if split_of(f"i{n}") == "train"][:6]
    told = {
        "red canvas shoe size four": "a", "red canvas shoe size five": "a", "blue wool hat of nona": "a",
        "blue wool hat of pia": "a", "green silk scarf": "b", "red canvas shoe": "c",
    }  # fmt: skip
    items = [Item(item_id, title, category=kind) for item_id, (title, kind) in zip(ids, told.items(), strict=True)]
    summary, rows = derive(tmp_path, with_twins(items, drop=0))
    number = {item_id: n for n, item_id in enumerate(ids)} | {twin_id(item_id): n for n, item_id in enumerate(ids)}
    assert [(number[a], number[b], label) for a, b, label, _ in rows] == [
        *((0, 0, 1), (0, 1, 0), (1, 1, 1), (1, 0, 0), (2, 2, 1), (2, 3, 0)),
        *((3, 3, 1), (3, 2, 0), (4, 4, 1), (4, 5, 0), (5, 5, 1), (5, 4, 0)),
    ]
    assert summary.describe() == "12 rows (train 12, validation 0, test 0), 6 positive"
    table = Table(tmp_path / "t.parquet")
    assert table.made == {"from": "twins"} and table.split_by == GroupOptions().described()
    assert describe_words_in_common(table, Catalog(tmp_path / "catalog")) == (
        "what titles' words in common tell: cannot be measured on 0 test rows of one label"
    )


def test_equal_titles_and_pictures_are_no_negatives_without_groups_either(tmp_path: Path) -> None:
    ids = [f"i{n}" for n in range(60) if split_of(f"i{n}") == "test"][:3]
    items = [Item(ids[0], "Red  hat"), Item(ids[1], "ＲＥＤ hat"), Item(ids[2], "blue hat")]
    none = DeriveOptions(group=GroupOptions(by=()))
    summary, rows = derive(tmp_path, with_twins(items, drop=0), none)
    wrong = {frozenset((a, b.partition("~")[0])) for a, b, label, _ in rows if not label}
    assert len(wrong) == 1 and ids[2] in next(iter(wrong)) and len(rows) == 5
    assert summary.count.left_out == {twin_pairs.NO_PARTNER: 1}
    assert Table(tmp_path / "t.parquet").split_by == {"by": "item"}
    (tmp_path / "placeholders").mkdir()
    many = DeriveOptions(group=GroupOptions(max_same=2))  # equal titles of three items group nothing, and yet
    three = [Item(item_id, "hat") for item_id in ids]
    summary, rows = derive(tmp_path / "placeholders", with_twins(three, drop=0), many)
    assert [label for _, _, label, _ in rows] == [1, 1, 1] and summary.count.left_out == {twin_pairs.NO_PARTNER: 3}


def test_items_without_a_twin_are_left_out_and_named(tmp_path: Path) -> None:
    items = with_twins([Item("a", "red hat"), Item("b", "blue shoe")])
    summary, rows = derive(tmp_path, [Item("c", "alone"), *items, Item("d~twin", "no item")])
    assert summary.count.left_out[twin_pairs.ALONE] == 2 and summary.count.first[twin_pairs.ALONE] == "item c"
    assert [row[:3] for row in rows if row[2]] == [("a", twin_id("a"), 1), ("b", twin_id("b"), 1)]
    with pytest.raises(UserError, match="no item has a twin .* `mbsd catalog twins --catalog .*bare --out SOURCE`, th"):
        derive_table("alignment", small_catalog(tmp_path / "bare", [Item("a", "x")]), tmp_path / "u.parquet")
    assert not (tmp_path / "u.parquet").exists()


def test_a_table_of_the_same_rows_as_labels_has_the_same_splits(tmp_path: Path) -> None:
    """As `tables build alignment` splits them, where negatives link nothing."""
    items = [Item(f"i{n}", f"{n % 7} hat {n % 40} red", category=f"k{n % 3}") for n in range(80)]
    _, rows = derive(tmp_path, with_twins(items))
    labels = [{"item_id_a": a, "item_id_b": b, "label": label, "split": ""} for a, b, label, _ in rows]
    write_jsonl(tmp_path / "labels.jsonl", *labels)
    catalog = Catalog(tmp_path / "catalog")
    build_table(
        "alignment", tmp_path / "labels.jsonl", catalog, tmp_path / "u.parquet", LabelOptions(cut_negatives=True)
    )
    derived, built = Table(tmp_path / "t.parquet", catalog), Table(tmp_path / "u.parquet", catalog)
    for name in derived.column_names:
        assert list(built.column(name)) == list(derived.column(name))


def test_words_in_common_are_measured_on_the_test_rows(tmp_path: Path) -> None:
    ids = [f"i{n}" for n in range(90) if split_of(f"i{n}") == "test"][:4]
    texts = ["red hat", "red hat wool", "blue shoe", "blue shoe silk"]
    items = [Item(item_id, text, category=text[:3]) for item_id, text in zip(ids, texts, strict=True)]
    derive(tmp_path, with_twins(items, drop=0))
    catalog = Catalog(tmp_path / "catalog")
    # Positives: 2 3 2 3 words, all in common. Negatives: 2, of the second title 2/3 1 2/3 1, of both 2/3.
    # By number 2 of 4 positives are above and 2 equal: (2 + 2 / 2) / 4; by the second title half of the negatives tie.
    assert describe_words_in_common(Table(tmp_path / "t.parquet", catalog), catalog) == (
        "titles' words in common, without the pictures, tell right from wrong with ROC-AUC by their number 0.750, "
        "their share of the second title 0.750, of both titles 1.000 on the 8 test rows"
    )
