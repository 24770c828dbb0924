from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.mining import MiningReport, mine_pairs, normalise_query, tag_terms
from mbsd.catalog.sources import Item
from mbsd.catalog.store import Catalog
from mbsd.catalog.tables import Table
from mbsd.errors import UserError
from tests.catalog.helpers import small_catalog

COLOURS = ("red", "blue", "navy blue", "green", "black", "white")
SLEEVES = ("long", "short", "none")
CATEGORIES = ("shirt", "dress", "hat")
Event = tuple[str, str, str, str]


def _items(rng: random.Random, count: int) -> list[Item]:
    items = []
    for n in range(count):
        attributes = {"colour": rng.choice(COLOURS)}
        if rng.random() < 0.8:
            attributes["sleeve"] = rng.choice(SLEEVES)
        items.append(Item(f"i{n}", f"item {n}", "", rng.choice(CATEGORIES), attributes))
    return items


def _events(rng: random.Random, items: list[Item], count: int) -> list[Event]:
    events = []
    for _ in range(count):
        item = rng.choice(items)
        words = [rng.choice([item.attributes["colour"], rng.choice(COLOURS)])] if rng.random() < 0.9 else []
        words += [item.attributes["sleeve"]] if "sleeve" in item.attributes and rng.random() < 0.4 else []
        query = " ".join([*words, item.category])
        query = rng.choice([query, query.upper(), f"  {query.replace(' ', '   ')}"])
        seen = item if rng.random() < 0.8 else rng.choice(items)
        events.append((f"u{rng.randrange(12)}", query, seen.item_id, rng.choice(["click", "purchase"])))
    return events


def _write_log(path: Path, events: list[Event]) -> Path:
    names = ("user", "query", "item", "kind")
    columns = dict(zip(names, map(list, zip(*events, strict=True)), strict=True))
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Catalog, list[Event]]:
    rng = random.Random(5)
    items = _items(rng, 40)
    return small_catalog(tmp_path / "catalog", items), _events(rng, items, 1500)


Pairs = dict[tuple[str, int], tuple[int, str, int]]


def _mine(folder: Path, catalog: Catalog, events: list[Event], **options: int) -> tuple[MiningReport, Pairs]:
    report = mine_pairs(_write_log(folder / "log.parquet", events), catalog, folder / "pairs.parquet", **options)
    table = Table(folder / "pairs.parquet", catalog, "pairs")
    keys = list(zip(table.column("text"), table.column("item").tolist(), strict=True))
    assert keys == sorted(keys, key=lambda key: (key[1], key[0])) and len(set(keys)) == len(keys)
    assert table.column("split") == [catalog.record(item).split for _, item in keys]
    values = zip(*(table.column(name) for name in ("label", "source", "evidence")), strict=True)
    return report, {key: (int(a), b, int(c)) for key, (a, b, c) in zip(keys, values, strict=True)}


@pytest.mark.parametrize(("min_buyers", "negatives", "rewrites"), [(2, 1, 1), (1, 3, 2), (3, 0, 1), (2, 1, 0)])
def test_against_a_brute_force(
    tmp_path: Path, shop: tuple[Catalog, list[Event]], min_buyers: int, negatives: int, rewrites: int
) -> None:
    catalog, events = shop
    options = {"min_buyers": min_buyers, "negatives_per_positive": negatives, "rewrites_per_positive": rewrites}
    report, pairs = _mine(tmp_path, catalog, events, **options)
    buyers: dict[tuple[str, int], set[str]] = defaultdict(set)
    behaviour, sold = set(), defaultdict(set)
    for user, query, item_id, kind in events:
        item = catalog.item_number(item_id)
        assert item is not None
        key = (normalise_query(query), item)
        behaviour.add(key)
        if kind == "purchase":
            buyers[key].add(user)
            sold[catalog.record(item).category].add(key[0])
    expected = {key: len(users) for key, users in buyers.items() if len(users) >= min_buyers}
    assert len(expected) > 20
    assert {key: evidence for key, (label, _, evidence) in pairs.items() if label} == expected
    assert {source for _, source, _ in (v for v in pairs.values() if v[0])} == {"purchase"}
    by_source = {
        source: {key for key, value in pairs.items() if value[1] == source} for source in ("same-category", "rewrite")
    }
    assert sum(map(len, by_source.values())) + len(expected) == len(pairs)
    for key in by_source["same-category"] | by_source["rewrite"]:
        assert key not in behaviour and pairs[key][0] == pairs[key][2] == 0
    of_item: dict[int, list[str]] = defaultdict(list)
    for query, item in expected:
        of_item[item].append(query)

    # Rewrites: all that are allowed, worked out from the words instead of by tagging spans.
    allowed: dict[tuple[str, int], set[str]] = {}
    for item, queries in of_item.items():
        own = catalog.record(item).attributes
        for query in queries:
            allowed[query, item] = _rewrites_of(query, own) - {q for q, i in behaviour if i == item}
    for query, item in by_source["rewrite"]:
        assert any(query in allowed[origin, item] for origin in of_item[item])
    for item, queries in of_item.items():
        drawn = [query for query, i in by_source["rewrite"] if i == item]
        assert len(drawn) <= rewrites * len(queries)
        if len(drawn) < rewrites * len(queries):  # short only where all that some query could become is used up
            assert any(allowed[query, item] <= set(drawn) for query in queries)
    # Same category: as many as asked for, or all there are.
    for item, queries in of_item.items():
        category = catalog.record(item).category
        free = {q for q in sold[category] if (q, item) not in behaviour and (q, item) not in by_source["rewrite"]}
        drawn_free = {q for q, i in by_source["same-category"] if i == item}
        assert drawn_free <= free and len(drawn_free) == min(negatives * len(queries), len(free))
    assert (report.positives, report.log_rows, report.unknown_rows) == (len(expected), len(events), 0)
    assert report.same_category == len(by_source["same-category"]) and report.rewrites == len(by_source["rewrite"])
    assert report.same_category + report.same_category_short == negatives * len(expected)
    assert report.rewrites + report.rewrites_short == rewrites * len(expected)


def _rewrites_of(query: str, own: dict[str, str]) -> set[str]:
    words = query.split()
    result = set()
    for name, values in (("colour", COLOURS), ("sleeve", SLEEVES)):
        said = max((v for v in values if f" {v} " in f" {query} "), key=len, default=None)
        if said is None or name not in own:
            continue
        for new in values:
            if new != said and new not in own[name] and own[name] not in new:
                result.add(f" {' '.join(words)} ".replace(f" {said} ", f" {new} ", 1).strip())
    return result


def test_same_for_any_threads_and_log_order(tmp_path: Path, shop: tuple[Catalog, list[Event]]) -> None:
    catalog, events = shop
    _, first = _mine(tmp_path, catalog, events, seed=1, threads=1)
    expected = (tmp_path / "pairs.parquet").read_bytes()
    _mine(tmp_path, catalog, events[::-1], seed=1, threads=3)
    assert (tmp_path / "pairs.parquet").read_bytes() == expected
    _, other = _mine(tmp_path, catalog, events, seed=2)
    assert other != first and {k for k, v in other.items() if v[0]} == {k for k, v in first.items() if v[0]}


def test_clicks_and_unknown_items_make_no_positive(tmp_path: Path, shop: tuple[Catalog, list[Event]]) -> None:
    catalog, _ = shop
    events = [
        *((f"u{n}", "red hat", "i0", "click") for n in range(9)),
        *((f"u{n}", "red hat", "stranger", "purchase") for n in range(9)),
        *(("u1", "red hat", "i1", "purchase") for _ in range(9)),
        *((f"u{n}", query, "i2", "purchase") for n, query in enumerate(["ＲＥＤ hat", " Red  Hat"])),
        ("u1", " ", "i3", "purchase"),
    ]
    report, pairs = _mine(tmp_path, catalog, events, negatives_per_positive=0, rewrites_per_positive=0)
    assert pairs == {("red hat", 2): (1, "purchase", 2)} and report.unknown_rows == 10


def test_a_folder_of_logs(tmp_path: Path, shop: tuple[Catalog, list[Event]]) -> None:
    catalog, events = shop
    _, expected = _mine(tmp_path, catalog, events)
    (tmp_path / "logs/day=1").mkdir(parents=True)
    _write_log(tmp_path / "logs/day=1/a.parquet", events[:700])
    _write_log(tmp_path / "logs/b.parquet", events[700:])
    report = mine_pairs(tmp_path / "logs", catalog, tmp_path / "again.parquet")
    assert report.log_rows == len(events) and len(Table(tmp_path / "again.parquet", catalog)) == len(expected)


def test_users_mistakes(tmp_path: Path, shop: tuple[Catalog, list[Event]]) -> None:
    catalog, events = shop
    log = _write_log(tmp_path / "log.parquet", events)
    with pytest.raises(UserError, match="no query led 99 users to buy the same item .*1500 rows"):
        mine_pairs(log, catalog, tmp_path / "p.parquet", min_buyers=99)
    with pytest.raises(UserError, match="min_buyers is 0; expected at least 1"):
        mine_pairs(log, catalog, tmp_path / "p.parquet", min_buyers=0)
    pq.write_table(
        pa.table({"user": ["u"], "search": ["q"], "item": ["i0"], "kind": ["click"]}), tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match="no column 'query'; found user, search, item, kind"):
        mine_pairs(tmp_path / "x.parquet", catalog, tmp_path / "p.parquet")
    with pytest.raises(UserError, match="no such Parquet file"):
        mine_pairs(tmp_path / "none.parquet", catalog, tmp_path / "p.parquet")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        mine_pairs(tmp_path / "bad.parquet", catalog, tmp_path / "p.parquet")


def test_normalise_query() -> None:
    assert normalise_query("  ＮＩＫＥ　红色\tT恤 ") == "nike 红色 t恤"
    assert normalise_query("Straße") == "strasse" and normalise_query("\u3000") == ""


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("navy blue hat", [("colour", "navy blue", "", " hat")]),
        ("nike红色t恤", [("brand", "nike", "", "红色t恤"), ("colour", "红色", "nike", "t恤")]),
        ("credit blueish", []),
        ("red2 red", [("colour", "red", "red2 ", "")]),
        ("blue or red hat", [("colour", "blue", "", " or red hat")]),
        ("圆领 长袖", [("sleeve", "长袖", "圆领 ", "")]),
    ],
)
def test_tagging(query: str, expected: list[tuple[str, str, str, str]]) -> None:
    names = {"red": ("colour",), "blue": ("colour",), "navy blue": ("colour",), "红色": ("colour",)}
    names |= {"nike": ("brand",), "长袖": ("sleeve",), "袖": ("style",), "navy": ("mood",)}
    assert [(t.name, t.value, t.head, t.tail) for t in tag_terms(query, names)] == expected
