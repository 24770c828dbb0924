"""Vector floors: canonical correlation finds what two sides share, and the command writes what a report reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from sklearn.cross_decomposition import CCA
from typer.testing import CliRunner

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.keys import write_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.cli.main import app
from mbsd.errors import UserError
from mbsd.scoring.canonical import fit_canonical
from mbsd.scoring.vector_floors import found_across, write_vector_floors
from mbsd.tools.report.gather import read_evaluations
from tests.tasks.market import Market


def two_sides(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three numbers that both sides know, mixed with four of their own each."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(count, 3))
    mixing = np.random.default_rng(9)
    sides = [np.concatenate([shared, rng.normal(size=(count, 4))], axis=1) @ mixing.normal(size=(7, 8)) for _ in "ab"]
    return sides[0] + 0.05 * rng.normal(size=(count, 8)), sides[1] + 0.05 * rng.normal(size=(count, 8))


def test_correlations_are_those_of_scikit_learns_iteration() -> None:
    left, right = two_sides(600)
    found = fit_canonical(left, right)
    expected = CCA(n_components=3, max_iter=5000, tol=1e-9).fit(left, right)
    a, b = expected.transform(left, right)
    by_iteration = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(3)]
    assert found.correlations[:3] == pytest.approx(by_iteration, abs=2e-3)
    assert found.correlations[:3].min() > 0.9 > 0.4 > found.correlations[3:].max()


def test_new_items_find_each_other() -> None:
    """Validation chooses directions and weights; without a shared part nothing is found but by chance."""
    fitted = fit_canonical(*two_sides(600))
    left, right = two_sides(200, seed=1)
    chosen = fitted.choose(lambda one: found_across(one, left, right))
    assert found_across(chosen, left, right) > 0.9 > 0.2 > found_across(chosen, left, right[::-1])
    assert chosen.power in (0.0, 1.0) and found_across(chosen, left, right) >= found_across(fitted, left, right)
    left[3] = 0
    assert not chosen.text(left)[3].any()  # no known word, no vector
    assert np.allclose(np.linalg.norm(np.delete(chosen.text(left), 3, axis=0), axis=1), 1)
    assert fit_canonical(scipy.sparse.csr_matrix(two_sides(60)[0]), two_sides(60)[1]).text(left).shape[0] == 200


@pytest.fixture(scope="module")
def keyed(market: Market) -> Catalog:
    catalog = Catalog(market.catalog)
    write_keys(catalog)
    return catalog


def test_the_command(market: Market, keyed: Catalog, tmp_path: Path) -> None:
    """The market's tone is only in the pictures, its fabric only in the titles: each side knows its half."""
    tables = [word for kind in ("categories", "attributes", "alignment") for word in ("--table", market.table(kind))]
    words = ["vector-floors", "--catalog", keyed.path, *tables, "--out", tmp_path, "--bootstrap", "100"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    found = {
        (path.parent.name, path.stem): json.loads(path.read_text(encoding="utf-8"))
        for path in tmp_path.glob("*/*.json")
    }
    both = {"retrieval", "neighbours", "probe", "clustering", "matching"}
    assert {task for name, task in found if name == "floor_features"} == both
    assert {task for name, task in found if name == "floor_canonical"} == both | {"zero_shot", "attributes"}
    tags = found["floor_canonical", "attributes"]
    assert set(tags["views"]) == {"text", "image", "mean"} and set(tags["views"]["text"]["attribute"]) == {
        "tone",
        "fabric",
    }
    probe = found["floor_features", "probe"]["views"]
    for view, lines in probe.items():
        low, high = lines["interval"]["accuracy"]
        assert 0.3 < low <= lines["all"]["accuracy"] <= high < 0.75, view  # four classes: half of it is known
    within = found["floor_features", "retrieval"]["views"]
    assert set(within) <= {"text->text", "image->image"}
    across = found["floor_canonical", "retrieval"]["views"]["text->image_own"]
    assert across["all"]["r10"] > 3 * across["chance"]["r10"]
    evaluations = read_evaluations([tmp_path])
    assert {evaluation.name for evaluation in evaluations} == {"floor_features", "floor_canonical"}
    assert len(evaluations) == len(found)


def test_what_cannot_be_measured(market: Market, keyed: Catalog, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        write_vector_floors(keyed, [tmp_path / "none.parquet"], tmp_path, 0)
    for titles, said in (
        (["red shirt"] * 30, "their titles have to differ"),
        ([f"w{n}" for n in range(30)], "no word"),
    ):
        raw = market.folder / "raw" / "images"
        items = [Item(f"i{n}", title, f"{n:07d}.jpg") for n, title in enumerate(titles)]
        other = tmp_path / f"catalog{len(said)}"
        build_catalog(items, raw, other, BuildOptions(workers=1, progress=False))
        write_keys(Catalog(other))
        with pytest.raises(UserError, match=said):
            write_vector_floors(Catalog(other), [], tmp_path, 0)
