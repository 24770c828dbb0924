"""Pairs from titles: each row is true of the titles, nothing withheld is asked, a query alone tells nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mbsd.catalog.derived.pairs import DerivedPairs, derive_pairs
from mbsd.catalog.derived.queries import queries_of
from mbsd.catalog.derived.settings import DeriveSettings
from mbsd.catalog.derived.titles import Titles
from mbsd.catalog.derived.words import Withheld, keys_of, query_text, words_of
from mbsd.catalog.groups import find_groups
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Table, derive_table
from mbsd.cli.tables import pairs_app
from mbsd.errors import UserError
from tests.catalog.helpers import image_folder, small_catalog, write_jsonl, write_lines
from tests.ranks import ROOT

BRANDS = ("Acme", "Borel", "Corvo", "Dunlin", "Eider", "Fulmar")
MATERIALS, COLOURS = ("Cotton", "Linen", "Wool", "Silk"), ("Red", "Navy Blue", "Green")
TYPES = {"Shirts": "Shirt", "Shoes": "Shoes", "Bags": "Handbag"}
WITHHELD = {"red", "navy", "blue", "green"}


def products(count: int) -> list[Item]:
    """Titles such as "Acme Men's Skyblue Cotton Shirt": brands are frequent, each line name is in four titles."""
    items = []
    for n in range(count):
        category = list(TYPES)[n % 3]
        brand, material, colour = BRANDS[n * 5 % 6 if n % 4 else 0], MATERIALS[n // 3 % 4], COLOURS[n // 7 % 3]
        shade = "Skyblue" if colour == "Navy Blue" and n % 2 else colour
        title = f"{brand} Men's Line{n // 4} {shade} {material} {TYPES[category]}"
        items.append(Item(f"id-{n}", title, "", category, {"colour": colour, "material": material}))
    return items


Row = tuple[str, str, int, str, str, str]


def rows_of(catalog: Catalog, path: Path) -> set[Row]:
    table = Table(path, catalog, "pairs")
    columns = [table.column(name) for name in ("text", "item", "label", "source", "replaced", "split")]
    found = [(t, catalog.record(int(i)).item_id, int(y), *rest) for t, i, y, *rest in zip(*columns, strict=True)]
    assert len(found) == len(set(found)) == len({row[:2] for row in found}), "a text and item twice"
    return set(found)


def plain(text: str) -> set[str]:
    """Words of the products above, without regard for how the room under test cuts them."""
    return {re.sub(r"'s$|s$", "", word) for word in text.lower().split()}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return small_catalog(tmp_path_factory.mktemp("derived") / "catalog", products(168))


@pytest.fixture(scope="module")
def derived(catalog: Catalog) -> tuple[DerivedPairs, set[Row]]:
    out = catalog.path.parent / "pairs.parquet"
    report = derive_pairs(catalog, out, DeriveSettings(withhold=("colour",)))
    return report, rows_of(catalog, out)


@pytest.mark.parametrize("echoed", [False, True])
def test_every_row_is_true_of_the_titles(
    echoed: bool, catalog: Catalog, derived: tuple[DerivedPairs, set[Row]], tmp_path: Path
) -> None:
    """Of titles that say a word again too: "Polo Ralph Polo"."""
    _, rows = derived
    if echoed:
        again = [replace(one, title=f"{one.title} {' '.join(one.title.split()[:2])}") for one in products(168)]
        catalog = small_catalog(tmp_path / "catalog", again)
        derive_pairs(catalog, tmp_path / "p.parquet", DeriveSettings(withhold=("colour",)))
        rows = rows_of(catalog, tmp_path / "p.parquet")
        assert all(len(set(row[0].split())) == len(row[0].split()) for row in rows), "no word is asked twice"
    title = {catalog.record(n).item_id: catalog.record(n) for n in range(len(catalog))}
    texts_of = defaultdict(set)
    for text, item, label, source, replaced, _ in rows:
        assert label == (source == "title") and bool(replaced) == (source == "rewrite")
        assert 1 <= len(text.split()) <= 4
        assert (plain(text) <= plain(title[item].title)) == bool(label), (text, title[item].title)
        texts_of[source].add(text)
    assert set(texts_of) == {"title", "same-category", "any-category", "rewrite"}
    assert texts_of["same-category"] | texts_of["any-category"] <= texts_of["title"], "the same queries on both sides"
    asked_in = {(row[0], title[row[1]].category) for row in rows if row[3] == "title"}
    hard = [(row[0], title[row[1]].category) for row in rows if row[3] == "same-category"]
    assert all(one in asked_in for one in hard)


def test_a_rewrite_changes_one_word_into_one_of_its_kind(
    catalog: Catalog, derived: tuple[DerivedPairs, set[Row]]
) -> None:
    positives = defaultdict(set)
    for text, item, _, source, _, _ in derived[1]:
        if source == "title":
            positives[item].add(text)
    titles = [plain(catalog.title(n)) for n in range(len(catalog))]
    kinds = Counter()
    for text, item, _, source, replaced, _ in derived[1]:
        if source != "rewrite":
            continue
        kind, old, new = re.fullmatch(r"(\w+):(\S+)>(\S+)", replaced).groups()  # type: ignore[union-attr]
        kinds[kind] += 1
        before = {" ".join(old if word == new else word for word in text.split())}
        assert before & positives[item], (text, replaced)
        assert any(plain(text) <= words for words in titles), "what no item is would tell that it is a rewrite"
        materials, brands = ({name.lower() for name in names} for names in (MATERIALS, BRANDS))
        assert (kind == "material") == (old in materials) == (new in materials)
        assert (old in brands) == (new in brands) == (kind == "first"), replaced
    assert set(kinds) == {"material", "first", "middle"} and min(kinds.values()) > 3, kinds


def test_nothing_withheld_is_asked(catalog: Catalog, derived: tuple[DerivedPairs, set[Row]], tmp_path: Path) -> None:
    """Not in a compound either; what is not withheld is asked. The table says what was withheld."""
    words = {word for row in derived[1] for word in row[0].split()}
    assert not words & (WITHHELD | {"skyblue"}) and {"cotton", "acme", "shirt", "handbag"} <= words
    assert Table(catalog.path.parent / "pairs.parquet").made == {"withheld": ["colour"], "withheld_categories": False}
    lexicon = write_lines(tmp_path / "words.tsv", "material\tline7\tcotton")
    settings = DeriveSettings(withhold=("material",), withhold_categories=True, lexicon=lexicon)
    derive_pairs(catalog, tmp_path / "p.parquet", settings)
    words = {word for row in rows_of(catalog, tmp_path / "p.parquet") for word in row[0].split()}
    assert not words & {"cotton", "linen", "wool", "silk", "shirt", "shoes", "line7"}
    assert {"red", "skyblue", "handbag", "line8"} <= words, "a Handbag is none of the Bags, and line8 no material"
    derive_table("attributes", catalog, tmp_path / "tags.parquet")
    assert Table(tmp_path / "tags.parquet").made == {}


def test_a_query_alone_tells_nothing(derived: tuple[DerivedPairs, set[Row]]) -> None:
    report, rows = derived
    assert report.auc["words"] == pytest.approx(0.5, abs=0.01)
    assert report.auc["titles with it"] == pytest.approx(0.5, abs=0.06)
    assert report.auc["its labels in train"] == pytest.approx(0.5, abs=0.12)
    asked = Counter(word for row in rows if row[3] == "title" for word in row[0].split())
    assert asked["acme"] > 20 and sum(word.startswith("line") for word in asked) > 30, "frequent words and rare ones"
    lengths = Counter(len(row[0].split()) for row in rows if row[3] == "title")
    assert min(lengths[length] for length in range(1, 5)) > 0.1 * lengths.total()
    counted = Counter((row[5], row[3]) for row in rows)
    assert {(split, source): n for split, of in report.rows.items() for source, n in of.items()} == counted


def test_the_order_of_the_items_does_not_matter(
    catalog: Catalog, derived: tuple[DerivedPairs, set[Row]], tmp_path: Path
) -> None:
    other = small_catalog(tmp_path / "other", products(168)[::-1])
    derive_pairs(other, tmp_path / "other.parquet", DeriveSettings(withhold=("colour",)))
    assert rows_of(other, tmp_path / "other.parquet") == derived[1]
    derive_pairs(catalog, tmp_path / "seed.parquet", DeriveSettings(withhold=("colour",), seed=1))
    assert rows_of(catalog, tmp_path / "seed.parquet") != derived[1]


def test_equal_items_share_a_split_and_are_no_negatives(tmp_path: Path) -> None:
    """Items 2k and 2k + 1 have one picture, and every second of such a pair has a title of its own: "Same7"."""
    folder = image_folder(tmp_path / "images", 42)
    items = [
        Item(one.item_id, f"Same{n}" if n % 2 else one.title, f"{n // 2:03d}.jpg", one.category, one.attributes)
        for n, one in enumerate(products(84))
    ]
    catalog = small_catalog(tmp_path / "catalog", items, folder)
    derive_pairs(catalog, tmp_path / "p.parquet", DeriveSettings(negatives_per_positive=3, any_category=0.5))
    twin = {f"id-{n}": f"id-{n ^ 1}" for n in range(84)}
    rows = rows_of(catalog, tmp_path / "p.parquet")
    split_of = {row[1]: row[5] for row in rows}
    assert all(split_of.get(twin[item], split) == split for item, split in split_of.items())
    title = {one.item_id: one.title for one in items}
    negatives = [row for row in rows if row[2] == 0 and title[row[1]].startswith("Same")]
    assert len(negatives) > 20
    assert all(not plain(row[0]) <= plain(title[twin[row[1]]]) for row in negatives), "true of the same picture"


def test_words() -> None:
    assert [word.text for word in words_of("Nike Men's T-Shirt, (dk.grey) & 3/4 «été»")] == [
        "nike", "men's", "t-shirt", "dk.grey", "3", "4", "«été»",
    ]  # fmt: skip
    assert keys_of("t-shirt").all() == {"tshirt", "t", "shirt"} and not keys_of("'s").whole
    for one, other in (
        ("men's", "man"),
        ("mens", "man"),
        ("watches", "watch"),
        ("scarves", "scarf"),
        ("dk-grey", "dkgrey"),
    ):
        assert keys_of(one).whole & keys_of(other).whole
    assert not keys_of("shirt").all() & keys_of("skirt").all()
    withheld = Withheld(["Navy Blue", "绿色", "M"])
    assert [word.text for word in withheld.allowed("Skyblue navy-striped Bluetooth M credit of the 2012")] == ["credit"]
    withheld_forms = Withheld(["Men", "Women", "Accessories", "Scarves", "Dk Grey"])
    title = "Mens Womens accessory scarf man women's SCARVES accessories' 2grey dk.grey menswear_man Mandarin menu"
    assert [word.text for word in withheld_forms.allowed(title)] == ["mandarin", "menu"]
    allowed = withheld.allowed("2023绿色纯棉连衣裙")
    assert query_text(allowed) == "纯棉连衣裙" and query_text(allowed[1::2]) == "棉连 衣裙", "words that touch are one"


def test_a_title_holds_a_word_in_any_of_its_forms(tmp_path: Path) -> None:
    texts = ["Mens Scarf", "Man Scarves", "Men's scarf-set", "Womens accessory", "Woman's Accessories"]
    catalog = small_catalog(tmp_path / "c", [Item(f"id-{n}", text, "", "x", {}) for n, text in enumerate(texts)])
    titles = Titles(catalog, find_groups(catalog), DeriveSettings(max_titles=1))
    item = [title.item for title in titles.titles]
    for words, holding in (
        ("mens man men's", [0, 1, 2]),
        ("scarf scarves", [0, 1, 2]),
        ("womens woman", [3, 4]),
        ("accessory accessories", [3, 4]),
        ("scarf-set", [2]),
    ):
        for word in words.split():
            assert sorted(item[n] for n in titles.holding(word)) == holding, word


def test_a_word_that_a_title_says_again_is_its_first_one(tmp_path: Path) -> None:
    """A query's text has all of its words: with the places of the last "polo", "polo ralph" would be written "polo"."""
    items = [Item(f"id-{n}", title, "", "Shirts", {}) for n, title in enumerate(["Polo Ralph Polo"] * 3 + ["Lee"] * 3)]
    catalog = small_catalog(tmp_path / "catalog", items)
    titles = Titles(catalog, find_groups(catalog), DeriveSettings(queries_per_item=9, max_titles=1))
    found = {query.text: query.texts() for n in range(6) for query in queries_of(titles, n)}
    assert found == {text: text.split() for text in ("polo", "ralph", "polo ralph", "lee")}


def test_the_command(catalog: Catalog, tmp_path: Path) -> None:
    out = tmp_path / "pairs.parquet"
    words: list[Any] = ["pairs", "derive", "--catalog", catalog.path, "--out", out, "--withhold", "colour"]
    done = subprocess.run(
        [sys.executable, "-m", "mbsd.cli", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "pairs.report" / "report.json").read_text(encoding="utf-8"))
    assert report["pairs"] == len(Table(out)) and report["settings"]["withhold"] == ["colour"]
    assert f"{report['pairs']} rows, {report['queries']} queries" in done.stdout
    assert f"words {report['auc']['words']:.3f}" in done.stdout and report["examples"]["rewrite"]


def test_the_splits_of_masked_titles_are_those_of_the_unmasked(catalog: Catalog, tmp_path: Path) -> None:
    """Without its brand and its line, "Acme Men's Line3 Red Wool Shirt" is the title of other products too."""
    source = write_jsonl(tmp_path / "items.jsonl", *({"item_id": i.item_id, "title": i.title} for i in products(168)))
    shorter = [replace(item, title=" ".join(item.title.split()[3:])) for item in products(168)]
    masked = small_catalog(tmp_path / "masked", shorter)
    out, words = tmp_path / "p.parquet", ["derive", "--catalog", masked.path, "--out", tmp_path / "p.parquet"]
    own, found = find_groups(catalog).splits(), []
    for more in ([], ["--group-titles", source]):
        done = CliRunner().invoke(pairs_app, list(map(str, [*words, *more])))
        assert done.exit_code == 0, done.output
        table = Table(out, masked)
        found.append(table.column("split") == [own[item] for item in table.column("item")])
    assert found == [False, True] and table.split_by["titles"] == "items.jsonl"
    report = json.loads((tmp_path / "p.report" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["group"]["titles"] == str(source)
    assert "are in groups" not in done.output and "no two items have an equal title" in done.output


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"withhold": ("color",)}, ("no attribute", "'color'", "colour, material")),
        ({"min_titles": 200}, ("no title has a word", "min_titles")),
        ({"max_words": 0}, ("max_words is 0", "at least 1")),
        ({"any_category": 1.5}, ("any_category is 1.5",)),
        ({"negatives_per_positive": 0, "rewrites_per_positive": 0}, ("are 0",)),
    ],
)
def test_what_cannot_be_derived(catalog: Catalog, tmp_path: Path, settings: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        derive_pairs(catalog, tmp_path / "p.parquet", DeriveSettings(**settings))
    assert all(part in str(refused.value) for part in parts), refused.value
    assert not (tmp_path / "p.parquet").exists()
