"""Values of an attribute that may both be true of one item, so that neither is a wrong tag of an item with the other.

By default they follow from the catalogue. Two values are ambiguous with each other where

words          one holds the words of the other: "Blue" and "Navy Blue"; in scripts without spaces, its letters
together       half of the items that hold the rarer one, and two or more, hold the other too: "Men, Boys"; or half
               of the products that hold the rarer one, and two or more, are listed once as each
anything goes  one is a word for several or all of the others, such as "Unisex" or "Multicolour"

One product are the items with one picture, and those with one title that differ in this attribute alone: titles may be
general. Where most of the latter differ in it, they are variants, as in colours, and do not count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from mbsd.catalog.attribute_values import key_of, parts_of, value_keys
from mbsd.catalog.reader import Record
from mbsd.catalog.record_files import some
from mbsd.catalog.word_forms import UNSPACED_RUN
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.io.settings_text import read_json, read_yaml

HALF = 0.5  # of the items or groups with the rarer value: from here on both are ambiguous
MIN_ITEMS = 2  # or products that hold both values; one "Black/Red" is a pattern in two colours, one product a mistake
FEW_MIXED = 3  # groups of one title that differ in an attribute; fewer are no sign of variants
MAX_PARTS = 16  # a text of more values is a description: its values do not occur "together"
MAX_LETTERS = 32  # of a value whose letters are searched for others
SHOWN = 8  # pairs of an attribute that are printed
ANYTHING_WORDS = """
    unisex all any anything both mixed mix multi multicolor multicolour multicolored multicoloured assorted various
    universal onesize freesize unknown unspecified
    男女 男女款 男女同款 男女通用 通用 中性 情侣 情侣款 多色 彩色 混色 不限 均码
"""
ANYTHING = frozenset(ANYTHING_WORDS.split())  # keys
EXAMPLE = "such as {gender: {unisex: [men, women]}}"

Attributes = Sequence[Mapping[str, str]]  # of each item: name -> text


@dataclass(frozen=True)
class Group:
    """Items of one product, as far as some of their attributes are concerned.

    Attributes:
        items: their numbers.
        said: attribute -> keys of all values that they hold.
    """

    items: tuple[int, ...]
    said: dict[str, frozenset[str]]


def group_of_picture(records: Sequence[Record], items: Iterable[int]) -> Group:
    """Return what items with one picture say."""
    said: dict[str, frozenset[str]] = {}
    numbers = tuple(map(int, items))
    for item in numbers:
        for name, text in records[item].attributes.items():
            said[name] = said.get(name, frozenset()) | value_keys(text)
    return Group(numbers, said)


def groups_of_title(records: Sequence[Record], items: Iterable[int]) -> list[Group]:
    """Return of items with one title, for each attribute, those that have all else in common, category included."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for item in map(int, items):
        record = records[item]
        of_item = sorted(record.attributes.items())
        for n, (name, _) in enumerate(of_item):
            alike[name, record.category, *of_item[:n], *of_item[n + 1 :]].append(item)
    return [
        Group(
            tuple(same), {key[0]: frozenset().union(*(value_keys(records[item].attributes[key[0]]) for item in same))}
        )
        for key, same in alike.items()
        if len(same) > 1
    ]


class Ambiguity:
    """Pairs of values of each attribute; symmetric, not transitive: both blues are "Blue", none is the other."""

    def __init__(self) -> None:
        self._pairs: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)  # (head, other) as shown -> why
        self._with: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # by keys
        self._blocked: dict[tuple[str, frozenset[str]], frozenset[str]] = {}

    def add(self, name: str, head: str, other: str, why: str) -> None:
        """Take in a pair of values in their normal form, unless they are one value or known."""
        one, two = key_of(head), key_of(other)
        if one != two and two not in self._with[name][one]:
            self._with[name][one].add(two)
            self._with[name][two].add(one)
            self._pairs[name][head, other] = why

    def blocked(self, name: str, keys: frozenset[str]) -> frozenset[str]:
        """Return the keys of all values that may be true of an item with these: their own, and those ambiguous."""
        found = self._blocked.get((name, keys))
        if found is None:
            known = self._with.get(name, {})
            found = self._blocked[name, keys] = keys.union(*(known[key] for key in keys if key in known))
        return found

    def tree(self) -> dict[str, dict[str, list[str]]]:
        """Return the pairs as `--ambiguous` reads them: attribute -> value -> values."""
        tree: dict[str, dict[str, list[str]]] = {}
        for name in sorted(self._pairs):
            for head, other in sorted(self._pairs[name]):
                tree.setdefault(name, {}).setdefault(head, []).append(other)
        return tree

    def describe(self) -> list[str]:
        """Return a line for each attribute: how many pairs, why, and the first of them."""
        lines = []
        for name in sorted(self._pairs):
            pairs = self._pairs[name]
            reasons = ", ".join(f"{count} {why}" for why, count in sorted(Counter(pairs.values()).items()))
            shown = ", ".join(f"{head} ~ {other}" for head, other in sorted(pairs)[:SHOWN])
            more = ", …" if len(pairs) > SHOWN else ""
            lines.append(f"{name}: {len(pairs)} pairs of values may both be true ({reasons}): {shown}{more}")
        return lines


def find_ambiguity(attributes: Attributes, groups: Sequence[Group]) -> Ambiguity:
    """Return what a catalogue's items, and its groups of them, say of its values."""
    ambiguity = Ambiguity()
    texts: dict[str, Counter[str]] = defaultdict(Counter)
    for of_item in attributes:
        for name, text in of_item.items():
            texts[name][text] += 1
    of_groups: dict[str, list[tuple[frozenset[str], int]]] = defaultdict(list)
    for group in groups:
        for name, keys in group.said.items():
            of_groups[name].append((keys, 1))
    for name, of_name in texts.items():
        spelled = _spellings(of_name)
        for head, other in _by_words(spelled.values()):
            ambiguity.add(name, head, other, "words")
        for head, other in _for_anything(spelled):
            ambiguity.add(name, head, other, "anything goes")
        items = [(value_keys(text), count) for text, count in of_name.items()]
        for baskets, least in ((items, MIN_ITEMS), (of_groups[name], MIN_ITEMS)):
            for head, other in _together(baskets, least):
                ambiguity.add(name, spelled[head], spelled[other], "together")
    return ambiguity


def without_variants(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """Return groups of one title without those of attributes in which most differ; and these attributes."""
    told, mixed = Counter[str](), Counter[str]()
    for group in groups:
        told.update(group.said.keys())
        mixed.update(name for name, keys in group.said.items() if len(keys) > 1)
    variants = sorted(name for name in mixed if mixed[name] >= FEW_MIXED and mixed[name] > HALF * told[name])
    return [group for group in groups if not set(variants) & group.said.keys()], variants


def read_ambiguity(path: Path, attributes: Attributes, default: Ambiguity) -> tuple[Ambiguity, list[str]]:
    """Read `--ambiguous` (YAML, or JSON): of the attributes that it names it says all, the others keep the default.

    Returns:
        The pairs, and lines about values of the file that no item has.

    Raises:
        UserError: not attribute -> value -> values, or an attribute that no item has.
    """
    tree = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    known: dict[str, set[str]] = defaultdict(set)
    for of_item in attributes:
        for name, text in of_item.items():
            known[name] |= value_keys(text)
    unknown = next((name for name in tree if name not in known), None)
    if unknown is not None:
        raise UserError(f"{path}: no item has an attribute {unknown!r}; found {some(sorted(known)) or 'none at all'}")
    found, notes = Ambiguity(), []
    for name, of_head in default.tree().items():
        if name not in tree:
            for head, others in of_head.items():
                for other in others:
                    found.add(name, head, other, "default")
    for name, of_head in tree.items():
        for head, others in _checked(of_head, f"{path}, {name}", dict).items():
            heads = _parts(head, f"{path}, {name}")
            listed = [part for other in _checked(others, f"{path}, {name}.{head}", list)
                      for part in _parts(other, f"{path}, {name}.{head}")]  # fmt: skip
            notes += [f"{path}, {name}: no item has {part!r}" for part in (*heads, *listed)
                      if key_of(part) not in known[name]]  # fmt: skip
            for one in heads:
                for other in listed:
                    found.add(name, one, other, f"of {path.name}")
    return found, list(dict.fromkeys(notes))


def ambiguity_file(table: Path) -> Path:
    """Return where the pairs of a table lie: beside it."""
    return table.with_suffix(".ambiguous.yaml")


def write_ambiguity(ambiguity: Ambiguity, path: Path) -> None:
    """Write the pairs as `--ambiguous` reads them."""
    text = yaml.safe_dump(ambiguity.tree(), allow_unicode=True, default_flow_style=None, width=120)
    head = "# Values that may both be true of one item: edit a copy and give it to --ambiguous.\n"
    replace_text(path, head + text)


def _checked(value: Any, where: str, kind: type) -> Any:
    if not isinstance(value, kind):
        expected = "values and those that may be true beside each" if kind is dict else "a list of values"
        raise UserError(f"{where}: found {value!r}; expected {expected}, {EXAMPLE}")
    return value


def _parts(value: Any, where: str) -> tuple[str, ...]:
    """The values in a text of the file; YAML reads an unquoted 2012 as a number, and an unquoted no as false."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: found {value!r}; expected a value as text: put it into quotes")
    return parts_of(str(value))


def _spellings(texts: Mapping[str, int]) -> dict[str, str]:
    """Key -> the spelling that is shown: of those with the most words, the first."""
    spelled: dict[str, str] = {}
    for text in sorted(texts):
        for part in parts_of(text):
            key = key_of(part)
            if key not in spelled or part.count(" ") > spelled[key].count(" "):
                spelled[key] = part
    return spelled


def _by_words(values: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Pairs (a value, one that holds all of its words); of scripts without spaces: its letters in a row."""
    words = {value: frozenset(value.split()) for value in sorted(values)}
    holding: dict[str, list[str]] = defaultdict(list)
    for value, of_value in words.items():
        for word in of_value:
            holding[word].append(value)
    for value, of_value in words.items():
        rarest = min((holding[word] for word in sorted(of_value)), key=len, default=[])
        yield from ((value, other) for other in rarest if other != value and of_value <= words[other])
    unspaced = {value for value in words if UNSPACED_RUN.fullmatch(value)}
    for value in words:
        if len(value) <= MAX_LETTERS and UNSPACED_RUN.search(value):
            within = {value[a:b] for a in range(len(value)) for b in range(a + 1, len(value) + 1)}
            yield from ((part, value) for part in sorted(within & unspaced) if part != value)


def _for_anything(spelled: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for key in sorted(spelled.keys() & ANYTHING):
        yield from ((spelled[key], spelled[other]) for other in sorted(spelled) if other != key)


def _together(baskets: Iterable[tuple[frozenset[str], int]], least: int) -> Iterable[tuple[str, str]]:
    """Pairs (the commoner key, the rarer one) of which `least` baskets hold both, and half of those with the rarer."""
    single: Counter[str] = Counter()
    both: Counter[tuple[str, str]] = Counter()
    for keys, count in baskets:
        for key in keys:
            single[key] += count
        if 1 < len(keys) <= MAX_PARTS:
            for pair in combinations(sorted(keys), 2):
                both[pair] += count
    for pair in sorted(both):
        rarer, commoner = sorted(pair, key=lambda key: (single[key], key))
        if both[pair] >= max(least, HALF * single[rarer]):
            yield commoner, rarer
