"""Wrong tags of derived tables are wrong, and with `--balance value` a tag alone tells nothing."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from mbsd.catalog.groups import GroupOptions
from mbsd.catalog.negatives import NO_OTHER, NO_PARTNER, RARE, TOO_LONG, NegativeOptions, TagLimits
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import DeriveOptions, Table, TableSummary, derive_table
from mbsd.cli.main import app
from mbsd.errors import UserError
from mbsd.scoring.prior import describe_prior, prior_metrics, tag_log_odds
from tests.catalog.helpers import image_folder, picture, small_catalog, write_jsonl
from tests.conftest import Shop

Row = tuple[str, str, int, str]  # item id, tag, label, split
BALANCED = NegativeOptions(balance="value")


def derive_options(options: NegativeOptions | None, seed: int = 0) -> DeriveOptions:
    """Each item is split by itself: what these tests ask about is the tags."""
    return DeriveOptions(seed, options or NegativeOptions(), group=GroupOptions(by=()))


def derive(
    folder: Path, items: list[Item], options: NegativeOptions | None = None, images: Path | None = None, seed: int = 0
) -> tuple[list[Row], TableSummary, Table]:
    catalog = small_catalog(folder / "c", items, images)
    summary = derive_table("attributes", catalog, folder / "t.parquet", derive_options(options, seed))
    table = Table(folder / "t.parquet", catalog)
    ids = [catalog.record(item).item_id for item in table.column("item").tolist()]
    rows = zip(ids, table.column("text"), table.column("label").tolist(), table.column("split"), strict=True)
    return list(rows), summary, table


def wrong_of(rows: list[Row]) -> dict[str, set[str]]:
    wrong: dict[str, set[str]] = defaultdict(set)
    for item, tag, label, _ in rows:
        if not label:
            wrong[item].add(tag.partition(":")[2])
    return wrong


def items_with(*values: str, times: int = 1, name: str = "v", category: str = "x") -> list[Item]:
    texts = [value for value in values for _ in range(times)]
    return [Item(f"i{n}", f"title {n}", "", category, {name: text}) for n, text in enumerate(texts)]


ALL = NegativeOptions(per_positive=20)  # every wrong tag that there is


def test_spellings_and_lists_are_compared_by_their_values(tmp_path: Path) -> None:
    items = items_with("Black/Red", "red", "RED ", "black & white", "Green", "green-ish")
    rows, summary, _ = derive(tmp_path, items, ALL)
    wrong = wrong_of(rows)
    values = {item.item_id: item.attributes["v"] for item in items}
    others = {values[item]: found for item, found in wrong.items()}
    # "green" is a word of "green-ish".
    assert others == {
        "Black/Red": {"Green", "green-ish"},
        "red": {"black & white", "Green", "green-ish"},
        values["i2"]: {"black & white", "Green", "green-ish"},
        "black & white": {"red", values["i2"], "Green", "green-ish"},
        "Green": {"Black/Red", "red", values["i2"], "black & white"},
        "green-ish": {"Black/Red", "red", values["i2"], "black & white"},
    }
    assert not summary.count.left_out


def test_a_value_beside_which_every_other_may_be_true_asks_nothing(tmp_path: Path) -> None:
    rows, summary, _ = derive(tmp_path, items_with("Men", "Women", "Unisex", "Unisex"), ALL)
    assert [(item, tag, label) for item, tag, label, _ in rows] == [
        ("i0", "v:Men", 1), ("i0", "v:Women", 0), ("i1", "v:Women", 1), ("i1", "v:Men", 0),
    ]  # fmt: skip
    assert summary.count.left_out == {NO_OTHER: 2} and summary.count.first[NO_OTHER] == "item i2: v 'Unisex'"


def test_right_tags_alone_are_all_kept(tmp_path: Path) -> None:
    rows, summary, _ = derive(tmp_path, items_with("Men", "Women", "Unisex"), NegativeOptions(0))
    assert [(tag, label) for _, tag, label, _ in rows] == [("v:Men", 1), ("v:Women", 1), ("v:Unisex", 1)]
    assert not summary.count.left_out


def test_what_an_equal_picture_or_title_says_is_no_wrong_tag(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 6)
    (images / "same.jpg").write_bytes(picture((9, 9, 9)))
    (images / "same2.jpg").write_bytes(picture((9, 9, 9)))
    values = ("Red", "Blue", "Green", "Red", "Blue", "Green")
    items = [Item(f"i{n}", f"title {n}", f"{n:03d}.jpg", "x", {"v": value}) for n, value in enumerate(values)]
    items += [Item("p", "one", "same.jpg", "x", {"v": "Red"}), Item("q", "two", "same2.jpg", "x", {"v": "Blue"})]
    items += [Item("t", "Both", "", "x", {"v": "Red"}), Item("u", " both ", "", "x", {"v": "Green"})]
    items += [Item("o", "both", "", "y", {"v": "Blue"})]  # another category: another product
    # So that neither pair of values is ambiguous everywhere: most groups of one title agree.
    for n in range(12):
        items.append(Item(f"g{n}", f"group {n // 2}", "", "x", {"v": values[n // 2]}))
    rows, _, _ = derive(tmp_path, items, ALL, images)
    wrong = wrong_of(rows)
    assert wrong["p"] == wrong["q"] == {"Green"} and wrong["t"] == wrong["u"] == {"Blue"}
    assert wrong["o"] == {"Red", "Green"} and wrong["i0"] == {"Blue", "Green"}


def test_a_file_of_ambiguous_values(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{v: {cream: [beige]}}", encoding="utf-8")
    items = items_with("Cream", "Beige", "Blue", "Navy Blue")
    rows, summary, _ = derive(tmp_path, items, replace(ALL, ambiguous=tmp_path / "mine.yaml"))
    wrong = wrong_of(rows)
    assert wrong["i0"] == wrong["i1"] == {"Blue", "Navy Blue"}
    assert wrong["i2"] == {"Cream", "Beige", "Navy Blue"}  # the file's word is all that counts of this attribute
    assert (tmp_path / "t.ambiguous.yaml").read_text(encoding="utf-8").endswith("v:\n  cream: [beige]\n")
    assert any("v: 1 pairs of values may both be true" in note for note in summary.count.notes)
    # A file in the place of ours is the user's.
    mine = tmp_path / "t.ambiguous.yaml"
    mine.write_text("# mine\n{v: {blue: [cream]}}\n", encoding="utf-8")
    again, _, _ = derive(tmp_path / "2", items, replace(ALL, ambiguous=mine))
    assert wrong_of(again)["i0"] == {"Beige", "Navy Blue"}
    options = derive_options(replace(ALL, ambiguous=mine))
    derive_table("attributes", Catalog(tmp_path / "c"), tmp_path / "t.parquet", options)
    assert mine.read_text(encoding="utf-8").startswith("# mine")


def test_a_catalogue_of_masked_titles_has_the_same_tags(tmp_path: Path) -> None:
    """With the unmasked titles to compare; by its own, items without a word of difference are one product."""
    drawn = random.Random(0)
    plain = [
        Item(f"i{n}", f"{n // 2} {gender}", "", "x", {"gender": gender, "year": str(drawn.randrange(3))})
        for n, gender in enumerate(drawn.choices(["Men", "Women", "Boys"], k=60))
    ]
    source = write_jsonl(tmp_path / "items.jsonl", *({"item_id": i.item_id, "title": i.title} for i in plain))
    masked = [replace(item, title=item.title.split()[0]) for item in plain]
    rows = {}
    for name, items, titles in (("plain", plain, None), ("masked", masked, source), ("own", masked, None)):
        catalog = small_catalog(tmp_path / name, items)
        options = DeriveOptions(group=GroupOptions(titles=titles))
        derive_table("attributes", catalog, tmp_path / f"{name}.parquet", options)
        table = Table(tmp_path / f"{name}.parquet", catalog)
        rows[name] = [table.row(row, ("item", "text", "label", "split")) for row in range(len(table))]
    assert rows["plain"] == rows["masked"] != rows["own"]


ATOMS = ("red", "blue", "navy blue", "green", "black", "unisex")
SPELLED = [str.upper, str.title, lambda text: f" {text}  ", lambda text: text.replace(" ", "-")]
AMBIGUOUS = {frozenset(("blue", "navy blue"))} | {frozenset(("unisex", atom)) for atom in ATOMS if atom != "unisex"}


@st.composite
def shops(draw: st.DrawFn) -> list[tuple[str, tuple[str, ...], str]]:
    """Items as (text, the atoms in it, category)."""
    found = []
    for _ in range(draw(st.integers(8, 40))):
        atoms = tuple(draw(st.lists(st.sampled_from(ATOMS), min_size=1, max_size=2, unique=True)))
        text = draw(st.sampled_from([", ", "/", " & ", " and "])).join(draw(st.sampled_from(SPELLED))(a) for a in atoms)
        found.append((text, atoms, draw(st.sampled_from("xy"))))
    return found


def drawn_items(shop: list[tuple[str, tuple[str, ...], str]]) -> list[Item]:
    return [Item(f"i{n}", f"title {n}", "", category, {"v": text}) for n, (text, _, category) in enumerate(shop)]


def derive_or_none(folder: Path, items: list[Item], options: NegativeOptions | None) -> list[Row]:
    try:
        return derive(folder, items, options)[0]
    except UserError as error:
        assert "no items with two values of one attribute that cannot both be true" in str(error)
        return []


@settings(max_examples=25, deadline=None)
@given(shop=shops(), options=st.sampled_from([NegativeOptions(), NegativeOptions(3), BALANCED]))
def test_no_wrong_tag_may_be_true(
    shop: list[tuple[str, tuple[str, ...], str]], options: NegativeOptions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    atoms_of = {text.strip(): atoms for text, atoms, _ in shop}
    rows = derive_or_none(tmp_path_factory.mktemp("s"), drawn_items(shop), options)
    for item, tag, label, _ in rows:
        own, said = shop[int(item[1:])][1], atoms_of[tag.removeprefix("v:").strip()]
        if label:
            assert own == said
        else:
            assert not set(own) & set(said)
            assert not any(frozenset((a, b)) in AMBIGUOUS for a in own for b in said)


@settings(max_examples=15, deadline=None)
@given(shop=shops(), seed=st.integers(0, 3), options=st.sampled_from([NegativeOptions(2), BALANCED]))
def test_the_order_of_the_items_does_not_matter(
    shop: list[tuple[str, tuple[str, ...], str]],
    seed: int,
    options: NegativeOptions,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    items = drawn_items(shop)
    mixed = random.Random(seed).sample(items, len(items))
    one, two = (derive_or_none(tmp_path_factory.mktemp("s"), order, options) for order in (items, mixed))
    assert sorted(one) == sorted(two)


def shop_of(count: int, shares: dict[str, int], seed: int = 0) -> list[Item]:
    drawn = random.Random(seed)
    values = drawn.choices(list(shares), weights=list(shares.values()), k=count)
    return [Item(f"i{n}", f"title {n}", "", f"kind {drawn.randrange(3)}", {"v": v}) for n, v in enumerate(values)]


@pytest.mark.parametrize("shares", [{"a": 5, "b": 3, "c": 2, "d": 1}, {"a": 20, "b": 1, "c": 1}, {"a": 1, "b": 1}])
def test_every_tag_is_as_often_right_as_wrong_in_each_split(shares: dict[str, int], tmp_path: Path) -> None:
    items = shop_of(300, shares)
    rows, summary, _ = derive(tmp_path, items, BALANCED)
    count: Counter[tuple[str, str, int]] = Counter((split, tag, label) for _, tag, label, split in rows)
    assert {(split, tag): count[split, tag, 1] for split, tag, _ in count} == {
        (split, tag): count[split, tag, 0] for split, tag, _ in count
    }
    # Each item once right and once wrong; none is left out that could have a partner.
    assert Counter((item, label) for item, _, label, _ in rows).most_common(1)[0][1] == 1
    assert len(rows) // 2 + summary.count.left_out[NO_PARTNER] == len(items)
    of_split: dict[str, Counter[str]] = defaultdict(Counter)
    catalog = Catalog(tmp_path / "c")
    for record in map(catalog.record, range(len(catalog))):
        of_split[record.split][record.attributes["v"]] += 1
    for split, values in of_split.items():
        most, total = max(values.values()), values.total()
        possible = min(total // 2, total - most)  # of a complete multipartite graph
        # Each category is paired by itself first, so that an odd one or two may remain at the end.
        assert possible - 1 <= sum(row[3] == split and row[2] == 1 for row in rows) / 2 <= possible


def test_partners_are_of_one_category_where_there_is_one(tmp_path: Path) -> None:
    items = [
        replace(item, item_id=f"{category}{n}", title=f"{category}{n}", category=category)
        for category, values in (("x", ("a", "b")), ("y", ("c", "d")))
        for n, item in enumerate(items_with(*values, times=40))
    ]
    rows, summary, _ = derive(tmp_path, items, BALANCED)
    across = [(item, tag) for item, tag, label, _ in rows if (item[0] == "x") != (tag[2:] in "ab")]
    splits = Counter((item.category, item.attributes["v"], split) for item in items for split in [_split(item)])
    left = sum(abs(splits[c, v, s] - splits[c, w, s]) for c, v, w in ("xab", "ycd") for s in ("train", "test"))
    left += sum(abs(splits[c, v, "validation"] - splits[c, w, "validation"]) for c, v, w in ("xab", "ycd"))
    assert 0 < len(across) <= left and summary.count.left_out[NO_PARTNER] == left - len(across)


def _split(item: Item) -> str:
    from mbsd.catalog.layout import split_of

    return split_of(item.item_id)


def test_another_seed_draws_other_partners(tmp_path: Path) -> None:
    items = shop_of(200, {"a": 1, "b": 1, "c": 1, "d": 1})
    found = [derive(tmp_path / str(n), items, BALANCED, seed=seed)[0] for n, seed in enumerate((1, 1, 2))]
    assert found[0] == found[1] != found[2]


def test_what_the_tag_alone_tells(tmp_path: Path) -> None:
    """The log-odds are counted again by hand; balanced, they are all zero."""
    items = shop_of(600, {"a": 8, "b": 4, "c": 1, "d": 1})
    rows, _, table = derive(tmp_path, items)
    train = [(tag, label) for _, tag, label, split in rows if split == "train"]
    test = [(tag, label) for _, tag, label, split in rows if split == "test"]
    odds = {tag: (train.count((tag, 1)) + 1) / (train.count((tag, 0)) + 1) for tag, _ in rows_of(rows)}
    assert tag_log_odds(table) == pytest.approx(np.log([odds[tag] for tag, _ in test]))
    expected = roc_auc_score([label for _, label in test], [odds[tag] for tag, _ in test])
    assert prior_metrics(table)["roc_auc"] == pytest.approx(expected) and expected > 0.6
    assert f"ROC-AUC {expected:.3f} on the {len(test)} test rows" in describe_prior(table)
    _, _, balanced = derive(tmp_path / "b", items, BALANCED)
    assert not tag_log_odds(balanced).any() and prior_metrics(balanced)["roc_auc"] == 0.5


def rows_of(rows: list[Row]) -> list[tuple[str, int]]:
    return [(tag, label) for _, tag, label, _ in rows]


def test_the_synthetic_shop(shop: Shop, tmp_path: Path) -> None:
    """By the command: what is printed is what the tables hold."""
    found = {}
    for balance in ("none", "value"):
        out = tmp_path / f"{balance}.parquet"
        words = ["tables", "derive", "attributes", "--catalog", shop.catalog, "--out", out, "--balance", balance]
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exit_code == 0, done.output
        table = Table(out, Catalog(shop.catalog))
        found[balance] = prior_metrics(table)["roc_auc"]
        assert f"ROC-AUC {found[balance]:.3f}" in " ".join(done.output.split())
        assert (tmp_path / f"{balance}.ambiguous.yaml").is_file()
    assert found["value"] == 0.5 != found["none"]


def test_refused(tmp_path: Path, shop: Shop) -> None:
    with pytest.raises(UserError, match="negatives_per_positive is 2; expected 1 with --balance value"):
        NegativeOptions(2, balance="value")
    with pytest.raises(UserError, match="negatives_per_positive is -1"):
        NegativeOptions(-1)
    with pytest.raises(UserError, match="no items with two values of one attribute that cannot both be true"):
        derive(tmp_path, items_with("Blue", "Navy Blue"))
    words = ["tables", "derive", "categories", "--catalog", shop.catalog, "--out", tmp_path / "c.parquet"]
    done = CliRunner().invoke(app, [*map(str, words), "--balance", "value"])
    assert isinstance(done.exception, UserError) and "--balance is of attributes" in str(done.exception)


def asked_of(
    folder: Path, items: list[Item], limits: TagLimits, negatives: NegativeOptions
) -> tuple[Counter[str], Counter[str]]:
    """(tags of both labels, reasons of what was left out)."""
    catalog = small_catalog(folder / "c", items)
    options = DeriveOptions(0, negatives, group=GroupOptions(by=()), tags=limits)
    summary = derive_table("attributes", catalog, folder / "t.parquet", options)
    return Counter(Table(folder / "t.parquet", catalog).column("text")), summary.count.left_out


@pytest.mark.parametrize("negatives", [NegativeOptions(), NegativeOptions(per_positive=3)])
def test_of_many_values_the_commonest_alone_are_asked(negatives: NegativeOptions, tmp_path: Path) -> None:
    """A value of one item is none of them, and no wrong tag has a value that is not asked."""
    brands = ["Acme"] * 9 + ["Bolt"] * 8 + ["Cord"] * 2 + ["Dune"] * 2 + [f"Once {n}" for n in range(20)]
    items = [
        Item(f"i{n}", f"title {n}", "", "x", {"brand": brand, "sku": f"A-{n}", "size": "SM"[n % 2]})
        for n, brand in enumerate(brands)
    ]
    tags, left_out = asked_of(tmp_path / "three", items, TagLimits(max_values=3), negatives)
    assert {tag for tag in tags if tag.startswith("brand")} == {"brand:Acme", "brand:Bolt", "brand:Cord"}
    assert {tag for tag in tags if not tag.startswith("brand")} == {"size:S", "size:M"}
    assert left_out[RARE] == 2 + 20 + len(items), "Dune, what one item has, and every sku"
    tags, left_out = asked_of(tmp_path / "all", items, TagLimits(max_values=30), negatives)
    assert "brand:Once 19" in tags
    assert left_out[RARE] == len(items), "24 brands are no more than 30; 41 numbers are"


def test_long_tags_are_left_out_right_and_wrong(tmp_path: Path) -> None:
    values = ["red", "blue", "a" * 18, "a" * 17] * 4
    items = [Item(f"i{n}", f"title {n}", "", "x", {"v": value}) for n, value in enumerate(values)]
    tags, left_out = asked_of(tmp_path, items, TagLimits(max_characters=19), NegativeOptions(per_positive=2))
    assert set(tags) == {"v:red", "v:blue", "v:" + "a" * 17} and left_out == {TOO_LONG: 4}


def test_limits_of_the_command_line_are_of_attributes(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", items_with("a", "b", "c", "c", times=2))
    words = ["--catalog", str(tmp_path / "c"), "--out", str(tmp_path / "t.parquet"), "--group", "none"]
    for option in ("--max-values", "--max-characters"):
        done = CliRunner().invoke(app, ["tables", "derive", "categories", *words, option, "9"])
        assert isinstance(done.exception, UserError) and f"{option} is of attributes" in str(done.exception)
        done = CliRunner().invoke(app, ["tables", "derive", "attributes", *words, option, "1"])
        assert isinstance(done.exception, UserError) and "is 1; expected 2 or more" in str(done.exception)
    done = CliRunner().invoke(app, ["tables", "derive", "attributes", *words, "--max-values", "2"])
    assert done.exit_code == 0, done.output
    assert f"2 {RARE}" in done.output
