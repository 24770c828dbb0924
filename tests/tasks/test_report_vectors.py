"""`mbsd report` of vectors: retrieval by direction; zero-shot, neighbours and probe side by side; beside floors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mbsd.cli.main import app


def write(path: Path, model: str, task: str, views: dict[str, dict[str, float]]) -> None:
    """An evaluation as evaluate.py writes it, with intervals of 0.01 on either side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: dict[str, Any] = {
        view: {"all": values, "interval": {name: [value - 0.01, value + 0.01] for name, value in values.items()}}
        for view, values in views.items()
    }
    table = None if task == "retrieval" else "data/categories.parquet"
    written = {"model": model, "task": task, "split": "test", "samples": 9, "catalog": "data/shop", "table": table,
               "vector": "contrastive", "labels": [], "views": lines, "missing": {}}  # fmt: skip
    path.write_text(json.dumps(written), encoding="utf-8")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for model, gain in (("contrastive", 0.2), ("floor_canonical", 0.0)):
        across = {"text->image": {"r1": 0.2 + gain, "median_rank": 4.0}, "category->text": {"p10": 0.5 + gain}}
        write(folder / model / "retrieval.json", model, "retrieval", across)
        write(folder / model / "zero_shot.json", model, "zero_shot", {"text": {"accuracy": 0.4 + gain}})
        write(folder / model / "probe.json", model, "probe", {"text": {"accuracy": 0.7 - gain, "macro_f1": 0.3}})
    answers = pa.table({"item": [3], "rank_text->image": [1]})
    pq.write_table(answers, folder / "contrastive" / "retrieval.parquet")  # ranks are no answers to be shown
    return folder


def test_side_by_side(runs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    with (tmp_path / "report" / "frozen.csv").open(encoding="utf-8") as file:
        rows = {(row["model"], row["metric"]): row for row in csv.DictReader(file)}
    assert float(rows["contrastive", "zero_shot/accuracy"]["mean"]) == pytest.approx(0.6)
    assert float(rows["contrastive", "probe/accuracy"]["mean"]) == pytest.approx(0.5)  # one task's is not another's
    assert float(rows["floor_canonical", "probe/accuracy"]["high"]) == pytest.approx(0.71)
    assert {row["runs"] for row in rows.values()} == {"1"} and {row["dataset"] for row in rows.values()} == {
        "categories"
    }
    with (tmp_path / "report" / "retrieval.csv").open(encoding="utf-8") as file:
        found = {(row["model"], row["view"], row["metric"]): float(row["mean"]) for row in csv.DictReader(file)}
    assert found["contrastive", "text->image", "r1"] == pytest.approx(0.4)
    assert found["floor_canonical", "category->text", "p10"] == 0.5
    assert not any(metric == "median_rank" for _, _, metric in found)  # no share
    for text in (result.output, (tmp_path / "report" / "report.md").read_text(encoding="utf-8")):
        assert "Retrieval (test)" in text and "Categories by frozen vectors (test)" in text
        # Which model a column's best value is of: the words of its line.
        [zero_shot] = [line for line in text.splitlines() if "**60.00**" in line]
        [best_probe] = [line for line in text.splitlines() if "**70.00**" in line and "floor" in line]
        assert zero_shot.startswith("| contrastive (text)") and best_probe.startswith("| floor_canonical (text)")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "contrastive (text-&gt;image)" in page and "data/shop" in page and 'class="example"' not in page
