"""Negatives that are like their positive in length and frequency, and what these two still tell."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from typer.testing import CliRunner

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.mining import shortcuts
from mbsd.catalog.mining.mine import MiningReport, MiningSettings, mine_pairs
from mbsd.catalog.mining.report import write_report
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item, read_items
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.cli.main import app
from mbsd.errors import UserError
from tests.catalog.helpers import small_catalog
from tests.catalog.mining_reference import normal
from tests.catalog.test_mining import shop_events, write_log

BOTH = ("length", "frequency")
LONGER = (0.05, 0.25, 0.4, 0.3)
Row = dict[str, Any]


SMALL, LARGE = 1200, 2000  # items
SHOPS = [
    (SMALL, "zh", None), (SMALL, "en", None), (SMALL, "zh", LONGER), (SMALL, "en", LONGER), (LARGE, "zh", None),
    (LARGE, "en", LONGER),
]  # fmt: skip


@pytest.fixture(scope="module", params=SHOPS)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, Path]:
    """A synthetic shop in a language, whose queries are as long as usual, or longer."""
    folder = tmp_path_factory.mktemp("shop")
    items, language, terms = request.param
    more = {"query_terms": terms} if terms else {}
    synthesise(folder / "raw", ShopOptions(items, 1, language, image_side=32, **more), workers=1)
    options = BuildOptions(workers=1, progress=False)
    build_catalog(read_items(folder / "raw/items.jsonl"), None, folder / "catalog", options)
    return Catalog(folder / "catalog"), folder / "raw/log.parquet"


def _mine(shop: tuple[Catalog, Path], out: Path, **options: Any) -> tuple[MiningReport, list[Row]]:
    report = mine_pairs(shop[1], shop[0], out, MiningSettings(**options))
    return report, pq.read_table(out).to_pylist()


def _frequencies(log: Path) -> Counter[str]:
    return Counter(map(normal, pq.read_table(log)["query"].to_pylist()))


def _measures(rows: list[Row], frequency: Counter[str]) -> Any:
    """Characters, words and log2(1 + frequency) of rows in the table's order."""
    texts = [row["text"] for row in sorted(rows, key=lambda row: (row["item"], row["text"].encode()))]
    return np.array([(len(text), len(text.split(" ")), np.log2(1 + frequency[text])) for text in texts])


def test_a_regression_cannot_tell_the_negatives(drawn: tuple[Catalog, Path], tmp_path: Path) -> None:
    before, _ = _mine(drawn, tmp_path / "unmatched.parquet", match=())
    report, rows = _mine(drawn, tmp_path / "pairs.parquet")
    told, told_before = report.length_and_frequency, before.length_and_frequency
    assert told_before["same-category"]["roc_auc"] > 0.58 and told_before["rewrite"]["roc_auc"] > 0.65
    assert 0.45 < told["same-category"]["roc_auc"] <= 0.55
    assert told["rewrite"]["roc_auc"] < told_before["rewrite"]["roc_auc"] - 0.05
    # As many negatives as before.
    asked = report.same_category_asked, report.rewrites_asked
    assert (before.same_category, before.rewrites) == asked
    assert (report.same_category, report.rewrites + report.rewrites_replaced) == asked
    if len(drawn[0]) == LARGE:  # in a small shop it tells too much whether a positive has a rewrite at all
        assert 0.45 < told["rewrite"]["roc_auc"] <= 0.55 and report.rewrites > 0.8 * report.rewrites_asked
    frequency = _frequencies(drawn[1])
    assert all(frequency[row["text"]] for row in rows if row["source"] == "rewrite")
    # Each positive has its own negatives here, and no other's: first those of its category, then all.
    _, own = _mine(drawn, tmp_path / "own.parquet", replace_rewrites=False)
    positives = _measures([row for row in rows if row["label"]], frequency)
    spread = positives.std(axis=0)
    for negatives in ([row for row in own if row["source"] == "same-category"], [r for r in rows if not r["label"]]):
        measured = _measures(negatives, frequency)
        assert np.all(abs(positives.mean(axis=0) - measured.mean(axis=0)) < 0.13 * spread)
        assert np.all(abs(spread - measured.std(axis=0)) < 0.1 * spread)


def test_rewrites_that_are_kept_are_of_any_frequency(drawn: tuple[Catalog, Path], tmp_path: Path) -> None:
    replaced, rows = _mine(drawn, tmp_path / "replaced.parquet")
    report, kept = _mine(drawn, tmp_path / "pairs.parquet", replace_rewrites=False)
    assert report.rewrites == report.rewrites_asked and report.rewrites_replaced == 0 < replaced.rewrites_replaced
    # Those that are as frequent come first, in both.
    drawn_in_both = {(row["item"], row["text"]) for row in kept if row["source"] == "rewrite"}
    assert {(row["item"], row["text"]) for row in rows if row["source"] == "rewrite"} <= drawn_in_both
    assert report.length_and_frequency["rewrite"]["roc_auc"] > replaced.length_and_frequency["rewrite"]["roc_auc"]


@pytest.mark.parametrize("match", [("length",), ("frequency",)])
def test_one_of_the_two_alone(drawn: tuple[Catalog, Path], tmp_path: Path, match: tuple[str, ...]) -> None:
    report, rows = _mine(drawn, tmp_path / "pairs.parquet", match=match, rewrites_per_positive=0)
    frequency = _frequencies(drawn[1])
    positives, negatives = (
        _measures([row for row in rows if row["source"] == source], frequency)
        for source in ("purchase", "same-category")
    )
    apart = abs(positives.mean(axis=0) - negatives.mean(axis=0)) / positives.std(axis=0)
    assert (max(apart[:2]) if match == ("length",) else apart[2]) < 0.13
    assert report.same_category == report.same_category_asked


def test_the_figure_is_that_of_a_regression_on_the_table_and_the_log(
    drawn: tuple[Catalog, Path], tmp_path: Path
) -> None:
    report, rows = _mine(drawn, tmp_path / "pairs.parquet", negatives_per_positive=2)
    frequency = _frequencies(drawn[1])
    positives = _measures([row for row in rows if row["label"]], frequency)
    for source in ("same-category", "rewrite"):
        negatives = _measures([row for row in rows if row["source"] == source], frequency)
        features = np.concatenate([positives, negatives])
        labels = np.array([1] * len(positives) + [0] * len(negatives))
        scores = np.zeros(len(labels))
        for train, held_out in StratifiedKFold(5, shuffle=True, random_state=0).split(features, labels):
            mean, scale = features[train].mean(axis=0), features[train].std(axis=0)
            model = LogisticRegression().fit((features[train] - mean) / scale, labels[train])
            scores[held_out] = (features[held_out] - mean) / scale @ model.coef_[0] + model.intercept_[0]
        assert report.length_and_frequency[source] == {
            "roc_auc": pytest.approx(roc_auc_score(labels, scores), abs=1e-9),
            "positives": len(positives),
            "negatives": len(negatives),
        }


def test_the_figure_of_many_rows_is_that_of_a_sample(
    drawn: tuple[Catalog, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = _mine(drawn, tmp_path / "pairs.parquet")
    monkeypatch.setattr(shortcuts, "SAMPLE", 1000)
    part, _ = _mine(drawn, tmp_path / "pairs.parquet")
    for source, told in part.length_and_frequency.items():
        all_of_them = whole.length_and_frequency[source]
        assert 500 < told["positives"] < 1100 < all_of_them["positives"] and 500 < told["negatives"] < 1100
        assert abs(told["roc_auc"] - all_of_them["roc_auc"]) < 0.06


@pytest.mark.parametrize(
    ("negatives", "rewrites", "most", "seed", "rows", "digest"),
    [
        (1, 1, 0, 0, 639, "9fef5aaeea5bd6d8"),
        (3, 2, 0, 1, 1262, "e4e6a4762a7e40f2"),
        (9, 9, 0, 0, 2118, "5ed8d454bf564dd0"),
        (2, 1, 8, 2, 320, "d30fb7b61613cf98"),
    ],
)
def test_without_match_the_rows_are_those_of_before_there_was_one(  # noqa: PLR0913
    tmp_path: Path, negatives: int, rewrites: int, most: int, seed: int, rows: int, digest: str
) -> None:
    items, events = shop_events()
    shop = small_catalog(tmp_path / "catalog", items), write_log(tmp_path / "log.parquet", events)
    _, found = _mine(
        shop, tmp_path / "pairs.parquet", match=(), seed=seed, max_pairs_per_item=most,
        negatives_per_positive=negatives, rewrites_per_positive=rewrites,
    )  # fmt: skip
    text = "\n".join(repr(tuple(row[name] for name in sorted(row))) for row in found)
    assert (len(found), hashlib.sha256(text.encode()).hexdigest()[:16]) == (rows, digest)


def test_a_positive_draws_from_queries_like_its_own_and_then_from_all(tmp_path: Path) -> None:
    """Four kinds of queries in one category: short or long, frequent or rare."""
    kinds = {
        (words, times): [f"{'w ' * words}{times:02d}q{n:02d}" for n in range(30)]
        for words in (0, 3)
        for times in (3, 40)
    }
    kind_of = {query: kind for kind, queries in kinds.items() for query in queries}
    items = [Item(f"i{n:03d}", f"item {n}", "", "hat", {}) for n in range(len(kind_of))]
    events = [
        (f"u{k % 7}", query, item.item_id, "purchase" if k < 3 else "click")
        for item, query in zip(items, kind_of, strict=True)
        for k in range(kind_of[query][1])
    ]
    # The last item has behaviour under every query but three.
    queries = list(kind_of)
    events += [("u1", query, items[-1].item_id, "click") for query in queries[3:-1]]
    shop = small_catalog(tmp_path / "catalog", items), write_log(tmp_path / "log.parquet", events)
    _, rows = _mine(shop, tmp_path / "pairs.parquet", rewrites_per_positive=0, negatives_per_positive=3)
    own = {row["item"]: kind_of[row["text"]] for row in rows if row["label"]}
    drawn = [(own[row["item"]], kind_of[row["text"]]) for row in rows if not row["label"] and row["item"] != 119]
    assert len(own) == 120 and len(drawn) == 3 * 119
    assert sum(a == b for a, b in drawn) > 0.85 * len(drawn)
    assert sum(a[0] == b[0] for a, b in drawn) > 0.9 * len(drawn)
    # As different draws as there are places in a window.
    assert len({row["text"] for row in rows if not row["label"]}) > 100
    assert {row["text"] for row in rows if not row["label"] and row["item"] == 119} == set(queries[:3])


def test_the_page_and_the_screen_tell_the_figure(tmp_path: Path) -> None:
    items, events = shop_events()
    catalog, log = small_catalog(tmp_path / "catalog", items), write_log(tmp_path / "log.parquet", events)
    words = ["pairs", "mine", "--log", log, "--catalog", catalog.path, "--out", tmp_path / "pairs.parquet"]
    told = []
    for more in ([], ["--match", "none"], ["--match", "frequency"]):
        result = CliRunner().invoke(app, list(map(str, [*words, *more])))
        assert result.exit_code == 0, result.output
        told.append(result.stdout[result.stdout.index("ROC-AUC of length and frequency alone") :])
    assert len(set(told)) == 3
    report = mine_pairs(log, catalog, tmp_path / "pairs.parquet")
    assert report.describe_shortcuts() == told[0].strip()
    page = write_report(report, tmp_path / "pairs.parquet", tmp_path, catalog).read_text("utf-8")
    figure = report.length_and_frequency["same-category"]["roc_auc"]
    assert f"same-category {figure:.3f}" in told[0] and f'<td class="n">{figure:.3f}</td>' in page
    report.length_and_frequency["rewrite"]["roc_auc"] = None
    assert "too few" in write_report(report, tmp_path / "pairs.parquet", tmp_path, catalog).read_text("utf-8")
    assert "rewrite" not in report.describe_shortcuts()


def test_too_few_rows_have_no_figure(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path / "catalog", [Item("i0", "item", "", "hat", {})])
    log = write_log(tmp_path / "log.parquet", [(f"u{n}", "red hat", "i0", "purchase") for n in range(2)])
    report, _ = _mine((catalog, log), tmp_path / "pairs.parquet")
    assert report.length_and_frequency["rewrite"] == {"roc_auc": None, "positives": 1, "negatives": 0}
    assert report.describe_shortcuts() == ""


def test_another_match_is_refused() -> None:
    with pytest.raises(UserError, match="--match 'popularity'; expected some of length, frequency, by commas, or none"):
        MiningSettings(match=("length", "popularity"))
