"""`mbsd report`: its numbers are those of the rows' own answers, its examples what they are said to be."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from typer.testing import CliRunner

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.cli.main import app
from mbsd.errors import UserError
from mbsd.tools.report.examples import find_examples
from mbsd.tools.report.gather import read_evaluations
from mbsd.tools.report.tables import paper_tables
from tests.damage import damage
from tests.ranks import launch
from tests.tasks.conftest import Trained
from tests.tasks.market import evaluate_arguments

TASKS = ("attributes", "alignment", "classification")


@pytest.fixture(scope="module")
def runs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, scored: one of each task, and a second seed of the attributes."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        run = folder / task / "seed-0" if task == "attributes" else folder / task
        shutil.copytree(trained.model(task), run)
        more = ["--missing.rates=[0.5]"] if task == "attributes" else []
        arguments = evaluate_arguments(trained.market, trained.kind(task), run, run / "test.json", *more)
        launch(1, arguments, folder.parent / f"{folder.name}_{task}", launcher="evaluate")
    second = folder / "attributes" / "seed-1"
    shutil.copytree(folder / "attributes" / "seed-0", second)
    scores = json.loads((second / "test.json").read_text())
    scores["views"]["full"]["all"]["roc_auc"] -= 0.02
    (second / "test.json").write_text(json.dumps(scores))
    return folder


def test_answers_are_what_the_metrics_are_of(runs: Path, trained: Trained) -> None:
    catalog = Catalog(trained.market.catalog)
    table = Table(trained.market.table("attributes"), catalog)
    answers = pq.read_table(runs / "attributes/seed-0/test.parquet").to_pydict()
    scores = json.loads((runs / "attributes/seed-0/test.json").read_text())
    assert answers["row"] == table.rows("test").tolist()
    assert answers["text"] == [table.column("text")[row] for row in answers["row"]]
    labels = table.column("label")[answers["row"]]
    assert answers["label"] == [("no", "yes")[label] for label in labels]
    for view in ("full", "text", "image", "missing_0.5"):
        expected = scores["missing"]["either missing at 0.5"] if view == "missing_0.5" else scores["views"][view]
        assert roc_auc_score(labels, answers[f"probability_{view}"]) == pytest.approx(
            expected["all"]["roc_auc"], abs=1e-4
        )
        assert np.mean(np.array(answers[f"answer_{view}"]) == np.array(answers["label"])) == pytest.approx(
            expected["all"]["accuracy"]
        )
    classes = pq.read_table(runs / "classification/test.parquet").to_pydict()
    found = json.loads((runs / "classification/test.json").read_text())["views"]["image"]["all"]
    assert accuracy_score(classes["label"], classes["answer_image"]) == pytest.approx(found["accuracy"])
    assert f1_score(classes["label"], classes["answer_image"], average="macro") == pytest.approx(found["macro_f1"])
    assert all(0.25 <= p <= 1 for p in classes["probability_image"])  # the likeliest of four


def test_the_papers_tables(runs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path), "--examples", "3"])
    assert result.exit_code == 0, result.output
    for title in ("Table 1: attribute prediction", "Table 4: product alignment", "Table 5: classification"):
        assert title in result.output and title in (tmp_path / "report.md").read_text()
    with (tmp_path / "attributes.csv").open() as file:
        rows = {(row["view"], row["metric"]): row for row in csv.DictReader(file)}
    seeds = [json.loads((runs / f"attributes/seed-{n}/test.json").read_text())["views"]["full"] for n in (0, 1)]
    values = [seed["all"]["roc_auc"] for seed in seeds]
    row = rows["full", "roc_auc"]
    assert float(row["mean"]) == pytest.approx(np.mean(values)) and row["runs"] == "2"
    assert float(row["deviation"]) == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    assert float(row["low"]) == seeds[0]["interval"]["roc_auc"][0]
    assert f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}" in (tmp_path / "report.md").read_text()
    # The best of each column, and it alone, is bold.
    [table] = [t for t in paper_tables(read_evaluations([runs])) if t.task == "classification"]
    for column, (_, metric) in enumerate(table.columns):
        cells = {
            view: cell for (_, view), values in table.rows.items() for (_, m), cell in values.items() if m == metric
        }
        bold = {
            line.split("|")[1].strip()
            for line in table.markdown().splitlines()[2:]
            if line.split("|")[column + 2].strip().startswith("**")
        }
        best = max(cell.mean for cell in cells.values())
        assert bold == {
            "classification" + {"full": "", "text": " (text)", "image": " (image)"}[view]
            for view, cell in cells.items()
            if f"{100 * cell.mean:.2f}" == f"{100 * best:.2f}"
        }


def test_the_page_needs_nothing_else(runs: Path, tmp_path: Path) -> None:
    CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path), "--examples", "3"])
    page = (tmp_path / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert page.count('class="chart"') == 4 + 0  # each run's curves
    assert page.count('class="example"') == sum(
        len(shown) for run in read_evaluations([runs]) for shown in find_examples(run, 3).values()
    )


def test_examples_are_right_and_wrong(runs: Path, trained: Trained) -> None:
    catalog = Catalog(trained.market.catalog)
    for evaluation in read_evaluations([runs / "attributes/seed-0", runs / "alignment"]):
        found = find_examples(evaluation, 4)
        answers = pq.read_table(evaluation.answers).to_pydict()
        num_wrong = np.sum(np.array(answers["answer_full"]) != np.array(answers["label"]))
        assert len(found["right"]) == 4 and len(found["wrong"]) == min(4, num_wrong) > 0
        table = Table(evaluation.table, catalog)
        for kind, examples in found.items():
            for example in examples:
                assert example.label == ("no", "yes")[table.column("label")[example.row]]
                assert example.answers["full"][2] == (kind == "right")
                numbers = [
                    table.column(n)[example.row] for n in ("item", "item_a", "item_b") if n in table_columns(table)
                ]
                assert [item.title for item in example.items] == [catalog.title(number) for number in numbers]
                assert all(item.picture.startswith("data:image/jpeg") for item in example.items)
        assert {example.label for example in found["right"]} == {"no", "yes"}
    assert find_examples(evaluation, 4) == found


def table_columns(table: Table) -> list[str]:
    return {"attributes": ["item"], "alignment": ["item_a", "item_b"]}[table.kind]


def test_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder; name run folders"):
        read_evaluations([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no evaluation in it; score the run"):
        read_evaluations([tmp_path])
    bad = tmp_path / "other.json"
    bad.write_text('{"model": "x", "task": "attributes"}')
    with pytest.raises(UserError, match=r"other.json: no evaluation, it lacks catalog, missing, samples"):
        read_evaluations([bad])
    gone = json.loads((runs / "alignment/test.json").read_text()) | {"catalog": str(tmp_path / "gone")}
    shutil.copy(runs / "alignment/test.parquet", tmp_path / "gone.parquet")
    (tmp_path / "gone.json").write_text(json.dumps(gone))
    [evaluation] = read_evaluations([tmp_path / "gone.json"])
    with pytest.raises(UserError, match="its catalogue .* is not there; .*--examples 0"):
        find_examples(evaluation, 2)


def test_answers_that_are_not_the_scores(runs: Path, tmp_path: Path) -> None:
    """Damaged ones, or those of another evaluation of the same name."""
    for other in ("damaged", "another"):
        shutil.copy(runs / "alignment/test.json", tmp_path / f"{other}.json")
        shutil.copy(runs / "alignment/test.parquet", tmp_path / f"{other}.parquet")
        [evaluation] = read_evaluations([tmp_path / f"{other}.json"])
        assert find_examples(evaluation, 1)["right"]
        if other == "damaged":
            damage(tmp_path / "damaged.parquet")
        else:
            shutil.copy(runs / "classification/test.parquet", tmp_path / "another.parquet")
        with pytest.raises(UserError, match=f"{other}.parquet: not the answers that were written with .*{other}.json"):
            find_examples(evaluation, 1)
