from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbsd.catalog.groups import GroupOptions
from mbsd.catalog.mining.mine import MiningReport, MiningSettings, mine_pairs
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Table
from mbsd.errors import UserError
from tests.catalog.helpers import small_catalog
from tests.catalog.mining_reference import Event, Pair, Row, check, expected_of

VALUES = {"colour": ("red", "blue", "navyblue", "green", "black"), "sleeve": ("long", "short", "none")}
CATEGORIES = ("shirt", "dress", "")
KINDS = ("click", "cart", "purchase", "purchase", "Wish")

WORDS = [*VALUES["colour"], *VALUES["sleeve"], "shirt", "dress", "new"]
SPELLINGS = (str, str.upper, lambda text: f"  {text.replace(' ', '   ')}\t", lambda text: text.replace("e", "\uff45"))
shops = st.lists(
    st.tuples(
        st.sampled_from(CATEGORIES),
        st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}),
    ),
    min_size=1,
    max_size=6,
)
logs = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join),
        st.sampled_from(SPELLINGS),
        st.integers(0, 6),  # the last is often an item that is not in the catalogue
        st.sampled_from(KINDS),
    ),
    min_size=4,
    max_size=150,
)


def write_log(path: Path, events: list[Event]) -> Path:
    names = ("user", "query", "item", "kind")
    columns = dict(zip(names, map(list, zip(*events, strict=True)), strict=True))
    pq.write_table(pa.table(columns), path)
    return path


def mine(folder: Path, catalog: Catalog, log: Path, **options: Any) -> tuple[MiningReport, dict[Pair, Row]]:
    report = mine_pairs(log, catalog, folder / "pairs.parquet", MiningSettings(**options))
    return report, read_pairs(folder / "pairs.parquet", catalog)


def read_pairs(path: Path, catalog: Catalog) -> dict[Pair, Row]:
    table = Table(path, catalog, "pairs")
    keys = list(zip(table.column("text"), table.column("item").tolist(), strict=True))
    # In order of (item, text), and no pair is there twice.
    assert keys == sorted(keys, key=lambda key: (key[1], key[0].encode())) and len(set(keys)) == len(keys)
    values = (table.column(name) for name in ("label", "source", "evidence", "replaced", "split"))
    return {
        key: (int(label), source, int(evidence), replaced, split)
        for key, label, source, evidence, replaced, split in zip(keys, *values, strict=True)
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shop=shops, log=logs, buyers=st.integers(1, 3), negatives=st.integers(0, 3), rewrites=st.integers(0, 3),
    match=st.sampled_from([("length", "frequency"), (), ("length",), ("frequency",)]), replaced=st.booleans(),
)  # fmt: skip
def test_against_a_brute_force(  # noqa: PLR0913
    shop: Any, log: Any, buyers: int, negatives: int, rewrites: int, match: tuple[str, ...], replaced: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = [Item(f"i{n}", f"item {n}", "", category, attributes) for n, (category, attributes) in enumerate(shop)]
        catalog = small_catalog(folder / "catalog", items)
        events = [(f"u{user}", spell(query), f"i{item}", kind) for user, query, spell, item, kind in log]
        found = expected_of(events, catalog, buyers)
        options = {"min_buyers": buyers, "negatives_per_positive": negatives, "rewrites_per_positive": rewrites}
        options |= {"match": match, "replace_rewrites": replaced}
        path = write_log(folder / "log.parquet", events)
        if not found.positives:
            with pytest.raises(UserError, match=f"no query led {buyers} users to buy the same item"):
                mine(folder, catalog, path, **options)
            return
        report, rows = mine(folder, catalog, path, **options)
        check(rows, found, catalog, negatives, rewrites, replacing=replaced and "frequency" in match)
    by_source = [row[1] for row in rows.values()]
    assert (report.positives, report.same_category + report.rewrites_replaced, report.rewrites) == tuple(
        by_source.count(source) for source in ("purchase", "same-category", "rewrite")
    )
    assert report.same_category + report.same_category_short == report.same_category_asked
    got = report.rewrites + report.rewrites_replaced
    assert got + report.rewrites_short == report.rewrites_asked == rewrites * len(found.positives)
    assert replaced and "frequency" in match or not report.rewrites_replaced
    assert report.log_rows == len(events) == sum(report.rows_by_kind.values())
    unknown = sum(event[2] >= f"i{len(items)}" for event in events)
    assert report.rejected == ({"unknown item": unknown} if unknown else {})
    assert sum(report.split_rows.values()) == len(rows)


def shop_events() -> tuple[list[Item], list[Event]]:
    """Items of a small shop, and its log."""
    rng = random.Random(5)
    items = [
        Item(f"i{n}", "", "", CATEGORIES[n % 2], {name: rng.choice(values) for name, values in VALUES.items()})
        for n in range(40)
    ]
    events = []
    for _ in range(3000):
        item = rng.choice(items)
        terms = [item.attributes[name] for name in VALUES if rng.random() < 0.6]
        query = " ".join([*terms, *(["new"] if rng.random() < 0.2 else []), item.category])
        seen = item if rng.random() < 0.8 else rng.choice(items)
        events.append((f"u{rng.randrange(20)}", rng.choice(SPELLINGS)(query), seen.item_id, rng.choice(KINDS)))
    titled = [Item(item.item_id, f"title of {item.item_id}", "", item.category, item.attributes) for item in items]
    return titled, events


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, list[Event]]:
    items, events = shop_events()
    return small_catalog(tmp_path_factory.mktemp("mining") / "catalog", items), events


@pytest.mark.parametrize(("negatives", "rewrites", "most"), [(1, 1, 0), (3, 0, 12), (0, 2, 7), (1, 1, 3), (9, 9, 0)])
def test_a_larger_log(tmp_path: Path, shop: Any, negatives: int, rewrites: int, most: int) -> None:
    catalog, events = shop
    report, rows = mine(
        tmp_path, catalog, write_log(tmp_path / "log.parquet", events),
        negatives_per_positive=negatives, rewrites_per_positive=rewrites, max_pairs_per_item=most,
    )  # fmt: skip
    found = expected_of(events, catalog, 2)
    assert len(found.positives) > 60
    check(rows, found, catalog, negatives, rewrites, cap=most // (1 + negatives + rewrites), replacing=True)
    assert report.positives_found == len(found.positives) and report.items == 40
    if most:
        per_item = [item for _, item in rows]
        assert max(map(per_item.count, set(per_item))) <= most and report.positives < report.positives_found
    if negatives == 9:
        assert report.rounds > 1  # the first places of a rotation do not hold that many


def test_same_for_any_threads_memory_and_log_order(tmp_path: Path, shop: Any) -> None:
    catalog, events = shop
    out = tmp_path / "pairs.parquet"
    _, first = mine(tmp_path, catalog, write_log(tmp_path / "a.parquet", events), seed=1, threads=1)
    expected = out.read_bytes()
    shuffled = random.Random(0).sample(events, len(events))
    spill = tmp_path / "spill"
    _, again = mine(
        tmp_path, catalog, write_log(tmp_path / "b.parquet", shuffled), seed=1, threads=3, memory_limit="200MB",
        spill=str(spill),
    )  # fmt: skip
    assert out.read_bytes() == expected and again == first and list(spill.iterdir()) == []
    _, other = mine(tmp_path, catalog, tmp_path / "a.parquet", seed=2)
    assert other != first and {k for k, v in other.items() if v[0]} == {k for k, v in first.items() if v[0]}


def test_clicks_and_unknown_items_make_no_positive(tmp_path: Path, shop: Any) -> None:
    catalog, _ = shop
    events = [
        *((f"u{n}", "red hat", "i0", "click") for n in range(9)),
        *((f"u{n}", "red hat", "stranger", "purchase") for n in range(9)),
        *(("u1", "red hat", "i1", "purchase") for _ in range(9)),
        *((f"u{n}", query, "i2", "purchase") for n, query in enumerate(["\uff32\uff25\uff24 hat", " Red  Hat"])),
    ]
    log = write_log(tmp_path / "log.parquet", events)
    report, pairs = mine(tmp_path, catalog, log, negatives_per_positive=0, rewrites_per_positive=0)
    assert {key: row[:3] for key, row in pairs.items()} == {("red hat", 2): (1, "purchase", 2)}
    assert report.rejected == {"unknown item": 9} and report.distinct_queries == 3


def test_terms_of_another_script_are_no_substitutes(tmp_path: Path) -> None:
    attributes = [{"颜色": value} for value in ("红色", "蓝色", "red", "blue", "Navy blue", "深红色")]
    items = [Item(f"i{n}", f"item {n}", "", "裙", of_item) for n, of_item in enumerate(attributes)]
    catalog = small_catalog(tmp_path / "catalog", items)
    events = [
        (f"u{n}", query, item, "purchase") for n in range(2) for query, item in [("红色裙", "i0"), ("red裙", "i2")]
    ]
    log = write_log(tmp_path / "log.parquet", events)
    report, rows = mine(tmp_path, catalog, log, rewrites_per_positive=9, negatives_per_positive=0)
    # Nobody has searched any of them: queries of the category stand first, red裙 for 红色裙 and the other way round.
    assert report.rewrites_replaced == 2
    # 深红色 holds for no item that is 红色, as far as anyone knows: each contains the other.
    assert {key for key, row in rows.items() if row[1] == "rewrite"} == {
        ("蓝色裙", 0),
        ("blue裙", 2),
        ("navy blue裙", 2),
    }
    assert {row[3] for row in rows.values()} == {
        "",
        "颜色:红色>蓝色",
        "颜色:red>blue",
        "颜色:red>navy blue",
    } and report.rewrites_short == 18 - 3 - 2


DAY = 86_400_000_000


@pytest.mark.parametrize("bounds", [("2024-03-03", "2024-03-05T00:00:00Z"), ("0.5", "0.8")])
def test_split_by_time(tmp_path: Path, shop: Any, bounds: tuple[str, str]) -> None:
    catalog, events = shop
    rng = random.Random(3)
    first = 1_709_251_200_000_000  # 2024-03-01
    times = [first + rng.randrange(6 * DAY) for _ in events]
    timed = pa.table(
        {
            **dict(zip(("user", "query", "item", "kind"), map(list, zip(*events, strict=True)), strict=True)),
            "time": pa.array(times, pa.timestamp("us", tz="Asia/Shanghai")),
        }
    )
    pq.write_table(timed, tmp_path / "log.parquet")
    options = {"split": "time", "validation_from": bounds[0], "test_from": bounds[1]}
    report, rows = mine(tmp_path, catalog, tmp_path / "log.parquet", **options)
    found = expected_of(events, catalog, 2)
    # A pair is a positive from the day of its second buyer on.
    firsts: dict[Pair, dict[str, int]] = {pair: {} for pair in found.positives}
    for (user, query, item_id, kind), time in zip(events, times, strict=True):
        pair = (" ".join(query.replace("\uff45", "e").lower().split()), catalog.item_number(item_id) or 0)
        if kind == "purchase" and pair in firsts:
            firsts[pair][user] = min(time, firsts[pair].get(user, time))
    since = {pair: sorted(of_user.values())[1] for pair, of_user in firsts.items()}
    declared = Table(tmp_path / "pairs.parquet", catalog).split_by
    assert declared.pop("by") == "time"
    ordered = sorted(since.values())
    expected = (
        {"validation_from": first + 2 * DAY, "test_from": first + 4 * DAY}
        if "-" in bounds[0]
        else {"validation_from": ordered[int(0.5 * len(ordered))], "test_from": ordered[int(0.8 * len(ordered))]}
    )
    assert declared == expected
    wanted = {"train": 0, "validation": 0, "test": 0}
    for pair, time in since.items():
        name = (
            "train" if time < expected["validation_from"] else "validation" if time < expected["test_from"] else "test"
        )
        assert rows[pair][4] == name
        wanted[name] += 1
    assert min(wanted.values()) > 10 and report.bad_times == 0
    # Negatives that stand for rewrites take their slots, so a split has two for each of its positives.
    negatives = [row[4] for row in rows.values() if row[0] == 0]
    assert report.rewrites_replaced > 10 and report.rewrites_short == report.same_category_short == 0
    assert {name: negatives.count(name) for name in wanted} == {name: 2 * count for name, count in wanted.items()}
    by_item = {key: row[:4] for key, row in mine(tmp_path, catalog, tmp_path / "log.parquet")[1].items()}
    assert by_item == {key: row[:4] for key, row in rows.items()}
    assert Table(tmp_path / "pairs.parquet", catalog).split_by == GroupOptions().described()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_buyers": 0}, "min_buyers is 0; expected at least 1"),
        ({"threads": -1}, "threads is -1; expected at least 0"),
        ({"max_pairs_per_item": 2}, "max_pairs_per_item is 2; expected at least 3"),
        ({"columns": {"word": "q"}}, "column 'word'; a log has user, query"),
        ({"split": "time"}, "needs --validation-from and --test-from"),
        ({"test_from": "0.5"}, "the split is by item"),
        ({"memory_limit": "many"}, "memory limit 'many'"),
        ({"master": "local"}, "the engine is duckdb"),
        ({"engine": "flink"}, "engine 'flink'; expected duckdb or spark"),
        ({"split": "time", "validation_from": "2", "test_from": "0.9"}, "validation_from is 2; expected a share"),
        ({"split": "time", "validation_from": "May", "test_from": "0.9"}, "validation_from is 'May'; expected a date"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, shop: Any, options: dict[str, Any], message: str) -> None:
    catalog, events = shop
    log = tmp_path / "log.parquet"
    pq.write_table(pa.table({**pq.read_table(write_log(log, events)).to_pydict(), "time": [0] * len(events)}), log)
    with pytest.raises(UserError, match=message):
        mine(tmp_path, catalog, log, **options)
    assert not (tmp_path / "pairs.parquet").exists()
