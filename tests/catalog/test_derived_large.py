"""Pairs from the titles of a large category: the same as if all were listed, without walking through all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mbsd.catalog.derived.pairs import DerivedPairs, _Pairs
from mbsd.catalog.derived.settings import DeriveSettings
from mbsd.catalog.derived.titles import Titles, kinds_of
from mbsd.catalog.groups import find_groups
from mbsd.catalog.sources import Item
from tests.catalog.helpers import small_catalog


def test_titles_without_a_word_are_those_of_the_sorted_set(tmp_path: Path) -> None:
    texts = [f"{'red ' * (n % 9 == 0)}{'wool ' * (n % 5 > 0)}{'tall ' * (n % 3 > 0)}shirt {n % 4}x" for n in range(90)]
    items = [Item(f"id-{n}", text, "", f"kind {n % 2}", {}) for n, text in enumerate(texts)]
    catalog = small_catalog(tmp_path / "c", items)
    titles = Titles(catalog, find_groups(catalog), DeriveSettings())
    held = {number: set(texts[title.item].split()) for number, title in enumerate(titles.titles)}
    words = ["red", "wool", "tall", "shirt", "1x"]
    for category in ("kind 0", "kind 1"):
        members = [number for number, title in enumerate(titles.titles) if title.category == category]
        for others in ([], *([word] for word in words), ["tall", "wool"], ["1x", "red"]):
            for lacking in set(words) - set(others):
                near = [n for n in members if held[n] >= set(others) and lacking not in held[n]]
                for start, most in ((0, 3), (7, 5), (10**9 + 3, 1000)):
                    turned = near[start % len(near) :] + near[: start % len(near)] if near else []
                    found = list(titles.some_without(category, others, lacking, start, most))
                    assert found == turned[:most], (others, lacking, start)


class Counted(list[int]):
    """A list that counts what is read of it."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return super().__getitem__(at)


def test_whether_a_negative_is_left_is_found_once(tmp_path: Path) -> None:
    """ "Shirt" holds for every item: to walk through all titles again for each would be quadratic in their number."""
    count = 400
    items = [Item(f"id-{n}", f"Line{n // 8} Shirt", "", "Shirts", {}) for n in range(count)]
    catalog = small_catalog(tmp_path / "c", items)
    titles = Titles(catalog, find_groups(catalog), DeriveSettings(max_titles=1))
    for key, numbers in list(titles.of_split.items()):
        titles.of_split[key] = Counted(numbers)
    report = DerivedPairs()
    assert _Pairs(titles, kinds_of(catalog, titles), report).rows()
    reads = sum(numbers.reads for numbers in titles.of_split.values() if isinstance(numbers, Counted))
    assert report.negatives_short > count // 3 and 0 < reads < 20 * count, reads
