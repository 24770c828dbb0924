"""`mbsd bench search` in small: what it prints and writes, and that looking into every cell misses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mbsd.tools.bench.search import made_vectors, recall_of
from tests.ranks import command


def test_search_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    words = ["--vectors", 4000, "--width", 16, "--queries", 50, "--turns", 1, "--spread", 1, "--threads", 1]
    done = command("bench", "search", *words, "--probed", 1, "--probed", 100000, "--json", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    few, all_of_them = (found["cells"]["probed"][name]["recall"] for name in ("1", "100000"))
    assert 0.2 < few < all_of_them and all_of_them == 1 and found["cells"]["cells"] == 62
    assert "recall@10 1.0000" in done.stdout


def test_made_vectors_have_the_structure_of_a_shop() -> None:
    vectors, queries = made_vectors(2000, 64, 10, spread=0.6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6) and queries.shape == (10, 64)
    cosines = vectors @ vectors.T
    product, category = np.arange(2000) // 20, np.arange(2000) // 1000
    same = product[:, None] == product
    near, far = cosines[same].mean(), cosines[category[:, None] != category].mean()
    assert near > 0.8 > cosines[~same & (category[:, None] == category)].mean() > 0.4 > far


def test_recall() -> None:
    assert recall_of(np.array([[1, 2], [5, 6]]), np.array([[2, 9], [6, 5]])) == 0.75
