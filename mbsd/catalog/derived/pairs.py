"""A catalogue's titles -> the pair table of stage 2, for a shop that has no log.

    title            a query of one to four of the title's own words, and the item itself: label 1
    same-category    the same query, and an item of the category whose title does not contain all of its words
    any-category     the same, of any category
    rewrite          the query with one word replaced by another of the same kind, and the item itself

Every query of a title stands beside as many negatives, a rewrite has as many words as its query and holds for about as
many titles: neither a query's length nor its frequency tells the label. Nobody has judged the negatives: an item may be
what a query asks for although its title does not say so.

What is evaluated later must not be asked here. Words of the values of `DeriveSettings.withhold` are in no query, and
the table names these attributes (`Table.made`).

Every draw is an md5 of the seed and the item's id, so the table is the same for any order of the items.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from sklearn.metrics import roc_auc_score

from mbsd.catalog.derived.queries import Query, queries_of, rewrites_of
from mbsd.catalog.derived.settings import DeriveSettings
from mbsd.catalog.derived.titles import Kinds, Titles, kinds_of
from mbsd.catalog.groups import find_groups
from mbsd.catalog.layout import SPLITS, draw
from mbsd.catalog.mining.report import describe_pairs
from mbsd.catalog.reader import Catalog
from mbsd.catalog.table_file import write_table
from mbsd.errors import UserError
from mbsd.io.files import replace_text

SOURCES = ("title", "same-category", "any-category", "rewrite")
Row = dict[str, Any]


@dataclass
class DerivedPairs:
    """What was written.

    Attributes:
        rows: split -> source -> rows.
        items: with a query; the others have no word that a query may have.
        without_query: these.
        queries: distinct ones.
        rewrites_short: queries without a rewrite; another item's row stands for it.
        negatives_short: negatives that do not exist.
        auc: what is known of a query alone -> ROC-AUC of the labels of all rows: its number of words, the number of
            titles that contain it; and, of the rows behind train, the share of positives among its rows in train. 0.5
            tells nothing; it is absent where no row is negative.
    """

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    items: int = 0
    without_query: int = 0
    queries: int = 0
    rewrites_short: int = 0
    negatives_short: int = 0
    auc: dict[str, float] = field(default_factory=dict)
    groups: str = ""
    seconds: float = 0.0

    def describe(self) -> list[str]:
        """Return lines: rows by split and source, what is short, and what a query alone tells."""
        rows = sum(map(sum, (of.values() for of in self.rows.values())))
        told = ", ".join(f"{name} {value:.3f}" for name, value in self.auc.items())
        return [
            f"{rows} rows, {self.queries} queries, {self.items} items ({self.without_query} without a word that a "
            f"query may have), {self.seconds:.1f} s",
            *(
                f"{split}: " + ", ".join(f"{count} {source}" for source, count in of.items())
                for split, of in self.rows.items()
            ),
            f"{self.rewrites_short} queries without a rewrite (another item stands for it), {self.negatives_short} "
            "negatives that do not exist",
            f"ROC-AUC of the labels by the query alone (0.5 tells nothing): {told}",
            self.groups,
        ]


def derive_pairs(catalog: Catalog, out: Path, settings: DeriveSettings | None = None) -> DerivedPairs:
    """Write the table of kind `pairs` that follows from the items' titles, in the order of (item, text).

    Args:
        catalog: its titles and categories; attributes are read for what they withhold and for rewrites alone.
        out: the table's file.
        settings: None = the defaults.

    Raises:
        UserError: no item has the attribute that is to be withheld, or no title has a word for a query.
    """
    started, settings = time.monotonic(), settings or DeriveSettings()
    groups = find_groups(catalog, settings.group)
    titles = Titles(catalog, groups, settings)
    report = DerivedPairs(groups=groups.describe())
    rows = _Pairs(titles, kinds_of(catalog, titles), report).rows()
    if not rows:
        raise UserError(
            f"catalogue {catalog.path}: no title has a word for a query (in {settings.min_titles} titles or more, and "
            "not withheld); withhold less, or lower min_titles"
        )
    report.queries = len({row["text"] for row in rows})
    report.auc = _told_by_query(rows)
    report.rows = {
        split: {source: counts[source] for source in SOURCES if counts[source]}
        for split in SPLITS
        if (counts := Counter(row["source"] for row in rows if row["split"] == split))
    }
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: (row["item"], row["text"])))
    made = {"withheld": sorted(settings.withhold), "withheld_categories": settings.withhold_categories}
    write_table("pairs", table, catalog, out, made=made, split_by=settings.group.described())
    report.seconds = time.monotonic() - started
    return report


def write_report(report: DerivedPairs, settings: DeriveSettings, pairs: Path, folder: Path) -> Path:
    """Write `report.json` in `folder`: the report, its settings, and lengths and examples of the table `pairs`."""
    whole = {**asdict(report), "settings": asdict(settings), **describe_pairs(pairs)}
    path = folder / "report.json"
    replace_text(path, json.dumps(whole, ensure_ascii=False, indent=1, default=str) + "\n")  # paths as text
    return path


class _Pairs:
    """Makes the rows, title by title in the drawn order.

    Attributes:
        used: (text, item) that are taken.
        open_to: split -> query -> its positives, less the rewrites to it.
        exhausted: (category, split, query) for which no title is left; None: of any category.
    """

    def __init__(self, titles: Titles, kinds: Kinds, report: DerivedPairs) -> None:
        self.titles, self.kinds, self.report = titles, kinds, report
        self.used: set[tuple[str, int]] = set()
        self.open_to: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.exhausted: set[tuple[str | None, str, tuple[str, ...]]] = set()

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        asked: list[tuple[int, Query]] = []
        for number, title in enumerate(self.titles.titles):
            queries = queries_of(self.titles, number)
            self.report.items += bool(queries)
            self.report.without_query += not queries
            for query in queries:
                asked.append((number, query))
                self.used.add((query.text, title.item))
                self.open_to[title.split][query.text] += 1
                rows.append(self._row(number, query.text, "title", frequency=self._frequency(query)))
        for number, query in asked:  # behind all positives: none of these may become a negative
            rows += self._negatives(number, query)
        return rows

    def _negatives(self, number: int, query: Query) -> Iterator[Row]:
        settings, title = self.titles.settings, self.titles.titles[number]
        wanted, most = settings.negatives_per_positive, settings.rewrites_per_positive
        open_to = self.open_to[title.split]
        rewrites = rewrites_of(self.titles, self.kinds, number, query, open_to) if most else []
        free = [one for one in rewrites if (one.text, title.item) not in self.used][:most]
        for one in free:
            self.used.add((one.text, title.item))
            open_to[one.text] -= 1
            frequency = len(self.titles.holding_all(one.words))
            yield self._row(number, one.text, "rewrite", frequency=frequency, replaced=one.replaced)
        self.report.rewrites_short += most - len(free)
        wanted += most - len(free)
        for source in self._sources(number, query, wanted):
            other = self._other_item(number, query, source == "any-category")
            if other is None and source == "same-category":
                source, other = "any-category", self._other_item(number, query, True)
            if other is None:
                self.report.negatives_short += 1
                continue
            self.used.add((query.text, self.titles.titles[other].item))
            yield self._row(other, query.text, source, frequency=self._frequency(query))

    def _sources(self, number: int, query: Query, wanted: int) -> Iterator[str]:
        title, settings = self.titles.titles[number], self.titles.settings
        for slot in range(wanted):
            share = draw(settings.seed, title.item_id, query.text, slot, "source") / 16**15
            yield "any-category" if share < settings.any_category or not title.category else "same-category"

    def _other_item(self, number: int, query: Query, any_category: bool) -> int | None:
        """A title of the same split for which the query does not hold, nor for any of its group."""
        title = self.titles.titles[number]
        category = None if any_category else title.category
        key = (category, title.split, (query.text, *query.texts()))
        if key in self.exhausted:  # for good: what is taken stays so, and the query holds for its own titles' groups
            return None
        numbers = self.titles.of_split[category, title.split]
        holding = self.titles.holding_all(query.texts())
        start = draw(self.titles.settings.seed, title.item_id, query.text, "item", any_category)
        for step in range(len(numbers)):
            other = numbers[(start + step) % len(numbers)]
            found = self.titles.titles[other]
            free = (query.text, found.item) not in self.used
            if free and holding.isdisjoint(self.titles.of_group[found.group]):  # which its own group's is not
                return other
        self.exhausted.add(key)
        return None

    def _frequency(self, query: Query) -> int:
        return len(self.titles.holding_all(query.texts()))

    def _row(self, number: int, text: str, source: str, *, frequency: int, replaced: str = "") -> Row:
        title = self.titles.titles[number]
        return {
            "text": text, "item": title.item, "label": int(source == "title"), "source": source, "evidence": 0,
            "replaced": replaced, "split": title.split, "frequency": frequency,
        }  # fmt: skip


def _told_by_query(rows: list[Row]) -> dict[str, float]:
    """ROC-AUC of the labels by what is known of a row's query alone (see `DerivedPairs.auc`)."""
    of_query: dict[str, list[int]] = {}
    for row in rows:
        if row["split"] == "train":
            of_query.setdefault(row["text"], []).append(row["label"])
    held_out = [row for row in rows if row["split"] != "train"]
    train = [row["label"] for row in rows if row["split"] == "train"]
    share_of = {text: sum(labels) / len(labels) for text, labels in of_query.items()}
    of_all = sum(train) / max(1, len(train))
    share = [share_of.get(row["text"], of_all) for row in held_out]
    told = {
        "words": (rows, [len(row["text"].split()) for row in rows]),
        "titles with it": (rows, [row["frequency"] for row in rows]),
        "its labels in train": (held_out, share),
    }
    return {
        name: float(roc_auc_score([row["label"] for row in of], values))
        for name, (of, values) in told.items()
        if len({row["label"] for row in of}) == 2
    }
