"""Which spellings are one value, and which values may both be true of one item: each rule by itself, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mbsd.catalog.ambiguity import (
    Ambiguity,
    find_ambiguity,
    group_of_picture,
    groups_of_title,
    read_ambiguity,
    without_variants,
    write_ambiguity,
)
from mbsd.catalog.attribute_values import parts_of, value_keys
from mbsd.catalog.reader import Record
from mbsd.errors import UserError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Navy-Blue", ("navy blue",)),
        ("  NAVY   BLUE! ", ("navy blue",)),
        ("ＮＡＶＹ　ｂｌｕｅ", ("navy blue",)),  # full width
        ("Men, Boys", ("men", "boys")),
        ("Black/Red", ("black", "red")),
        ("Black & White", ("black", "white")),
        ("Black and White;grey | RED+Red", ("black", "white", "grey", "red")),
        ("红色、蓝色，白", ("红色", "蓝色", "白")),
        ("Sandy", ("sandy",)),
        ("3/4 Sleeve", ("3.4 sleeve",)),
        ("3.5 cm", ("3.5 cm",)),
        ("1,5 l / 2 l", ("1.5 l", "2 l")),
        ("Men's", ("men s",)),
        ("लाल", ("लाल",)),  # its vowel sign is a mark, no letter
        ("★", ("★",)),
        ("-", ("-",)),
        ("36,37,38", ("36", "37", "38")),
        ("36/37/38", ("36", "37", "38")),
        ("1,500", ("1.500",)),
    ],
)
def test_values_in_a_text(text: str, parts: tuple[str, ...]) -> None:
    assert parts_of(text) == parts


def test_spellings_with_and_without_spaces_are_one_value() -> None:
    assert value_keys("T-Shirt") == value_keys("tshirt") == value_keys("t shirt")
    assert value_keys("3.5 cm") != value_keys("35 cm")


def pairs(*attributes: dict[str, str], groups: list[list[int]] | None = None) -> dict[str, dict[str, list[str]]]:
    """What is found among items, with groups of one picture."""
    records = [Record(str(n), "", "", of_item, "train") for n, of_item in enumerate(attributes)]
    return find_ambiguity(attributes, [group_of_picture(records, group) for group in groups or []]).tree()


def colours(*values: str) -> list[dict[str, str]]:
    return [{"colour": value} for value in values]


def test_a_value_that_holds_the_words_of_another() -> None:
    found = pairs(*colours("Blue", "Navy Blue", "Turquoise-blue", "Blueish", "Red"))
    assert found == {"colour": {"blue": ["navy blue", "turquoise blue"]}}
    assert pairs(*[{"for": value} for value in ("Men", "Women")]) == {}  # letters are no words …
    assert pairs(*colours("蓝", "深蓝", "红")) == {"colour": {"蓝": ["深蓝"]}}  # … but where no spaces are written
    assert pairs({"colour": "Blue"}, {"style": "Navy Blue"}) == {}


def test_words_for_anything() -> None:
    found = pairs(*[{"gender": value} for value in ("Men", "Women", "UNISEX")])
    assert found == {"gender": {"unisex": ["men", "women"]}}
    assert pairs(*colours("Multi-Color", "Red")) == {"colour": {"multi color": ["red"]}}


def test_values_that_occur_together_in_half_of_the_items() -> None:
    # Boys: two of four with men. Men: two of six.
    texts = ["Men, Boys", "Boys/Men", "Boys", "Boys", "Men", "Men", "Men", "Men"]
    assert pairs(*colours(*texts)) == {"colour": {"men": ["boys"]}}
    assert pairs(*colours(*texts, "Boys")) == {}  # two of five
    assert pairs(*colours("Black/Red", "Black", "Red")) == {}  # half, but only one


def test_values_of_one_product() -> None:
    items = [{"gender": value} for value in ("Men", "Adults", "Men", "Men", "Adults", "Adults")]
    assert pairs(*items) == {}
    assert pairs(*items, groups=[[0, 1], [2, 3]]) == {}, "one product alone is a mistake"
    assert pairs(*items, groups=[[0, 1], [2, 4], [3, 5]]) == {"gender": {"men": ["adults"]}}
    half = [[0, 1], [2, 4], [3, 9], [5, 7], [8, 6], [10, 11]]
    assert pairs(*items, *items, groups=half) == {"gender": {"men": ["adults"]}}, "two of four"
    assert pairs(*items, *items, groups=[*half, [0, 2], [4, 7]]) == {}, "two of five"


def record(category: str, **attributes: str) -> Record:
    return Record("", "title", category, attributes, "train")


def test_items_of_one_title_are_one_product_where_they_differ_in_one_attribute() -> None:
    records = [
        record("a", gender="Men", year="1"),
        record("a", gender="Unisex", year="1"),
        record("a", gender="Women", year="2"),
        record("b", gender="Boys", year="1"),
    ]
    groups = groups_of_title(records, range(4))
    assert [(group.items, group.said) for group in groups] == [((0, 1), {"gender": frozenset({"men", "unisex"})})]


def test_variants_say_nothing() -> None:
    def titles(mixed: int, equal: int) -> list[str]:
        records = [record("a", size="S"), record("a", size="M"), record("a", size="L"), record("a", size="L")]
        groups = groups_of_title(records, [0, 1]) * mixed + groups_of_title(records, [2, 3]) * equal
        kept, variants = without_variants(groups)
        assert len(kept) == (0 if variants else mixed + equal)
        return variants

    assert titles(mixed=3, equal=2) == ["size"]
    assert titles(mixed=3, equal=3) == titles(mixed=2, equal=0) == []


def test_pairs_are_symmetric_and_not_transitive() -> None:
    blues = Ambiguity()
    blues.add("colour", "blue", "navy blue", "words")
    blues.add("colour", "blue", "sky blue", "words")
    assert blues.blocked("colour", value_keys("Navy Blue")) == {"navyblue", "blue"}
    assert blues.blocked("colour", value_keys("Blue")) == {"navyblue", "blue", "skyblue"}
    assert blues.blocked("colour", value_keys("Red/Sky-Blue")) == {"red", "skyblue", "blue"}
    assert blues.blocked("style", value_keys("Blue")) == {"blue"}


ITEMS = [{"gender": "Men", "colour": "Blue"}, {"gender": "Unisex", "colour": "Navy Blue"}, {"colour": "Teal"}]


def read(tmp_path: Path, text: str, name: str = "mine.yaml") -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    ambiguity, notes = read_ambiguity(path, ITEMS, find_ambiguity(ITEMS, []))
    return ambiguity.tree(), notes


def test_a_file_replaces_the_list_of_each_attribute_that_it_names(tmp_path: Path) -> None:
    default = {"gender": {"unisex": ["men"]}, "colour": {"blue": ["navy blue"]}}
    assert find_ambiguity(ITEMS, []).tree() == default
    mine = "{colour: {BLUE: [Teal, azure]}}"
    found, notes = read(tmp_path, mine)
    assert found == {"gender": default["gender"], "colour": {"blue": ["azure", "teal"]}}
    assert notes == [f"{tmp_path / 'mine.yaml'}, colour: no item has 'azure'"]
    assert read(tmp_path, "gender: {}")[0] == {"colour": default["colour"]}
    assert read(tmp_path, '{"gender": {"men": ["unisex"]}}', "mine.json")[0]["gender"] == {"men": ["unisex"]}
    # What is written is what is read.
    write_ambiguity(find_ambiguity(ITEMS, []), tmp_path / "default.yaml")
    text = (tmp_path / "default.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == default and read(tmp_path, text) == (default, [])


def test_words_that_yaml_reads_otherwise_are_written_in_quotes(tmp_path: Path) -> None:
    pocket = Ambiguity()
    pocket.add("pocket", "no", "2012", "mine")
    write_ambiguity(pocket, tmp_path / "a.yaml")
    assert yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8")) == {"pocket": {"no": ["2012"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{color: {blue: [teal]}}", "no item has an attribute 'color'; found colour, gender"),
        ("{colour: [blue, teal]}", r"mine.yaml, colour: found \['blue', 'teal'\]; expected values and those"),
        ("{colour: {blue: teal}}", "mine.yaml, colour.blue: found 'teal'; expected a list of values, such as"),
        ("{colour: {blue: [no]}}", "mine.yaml, colour.blue: found False; expected a value as text: put it into quotes"),
        ("{colour: {blue: [teal], blue: [red]}}", "colour.blue is there twice"),
        ("- blue", "found list"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)
