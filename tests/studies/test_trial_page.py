"""The trial's page says what the files of answers say, item by item."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.errors import UserError
from mbsd.io.files import digest_of
from mbsd.tools.studies.trial import table as trial_table
from mbsd.tools.studies.trial.page import page_of
from mbsd.tools.studies.trial.settings import Trial
from mbsd.tools.studies.trial_report.curves import slope_at_end
from mbsd.tools.studies.trial_report.inputs import Answers, read_comparison
from mbsd.tools.studies.trial_report.margins import RESAMPLES, class_f1, margin
from mbsd.tools.studies.trial_report.page import TrialPage
from tests.studies.page_shop import CLASSES, HOSTILE, VIEWS, Shop, compared, page, scored


@pytest.mark.parametrize("task", ["classification", "attributes"])
def test_numbers_are_those_of_the_answers(
    task: Literal["classification", "attributes"], page_shop: Shop, tmp_path: Path
):
    one = compared(page_shop, task, scored(page_shop, task, "model", 0.15))
    root = page(tmp_path, one)
    ours = pq.read_table(one.models[0].evaluation.with_suffix(".parquet")).to_pydict()
    floors = pq.read_table(one.floor_answers).to_pydict()
    label = np.array(ours["label"])
    metric = "macro_f1" if task == "classification" else "roc_auc"

    def value(found: dict[str, Any], name: str, metric: str) -> float:
        if metric == "accuracy":
            return float(accuracy_score(label, found[f"answer_{name}"]))
        if metric == "macro_f1":
            return float(f1_score(label, found[f"answer_{name}"], average="macro"))
        return float(roc_auc_score(label == "yes", found[f"probability_{name}"]))

    alone = ["prior"] if task == "attributes" else []
    readable = {"text": ["tfidf", *alone], "image": ["colours", "hog", "hog_colours", *alone]}
    readable["full"] = ["all", *readable["text"], *readable["image"]]
    lines = {
        (row.given["data-view"], row.given["data-metric"]): row.cells() for row in root.all("tr", data_model="model")
    }
    assert set(lines) == {(view, name) for view in VIEWS for name in ("accuracy", metric)}
    for (view, name), cells in lines.items():
        best = max(value(floors, floor, name) for floor in readable[view])
        assert cells[2] == f"{value(ours, view, name):.3f}" and cells[3] == f"{best:.3f}"
        difference, low, high = (float(text.replace("−", "-")) for text in (cells[4], *cells[5].split(" … ")))
        assert difference == pytest.approx(value(ours, view, name) - best, abs=6e-4) and low <= difference <= high

    # Who has which row right, counted from the two files.
    counts = {
        row.given["data-view"]: row.cells() for row in next(root.all("table", class_="counts")).all("tr") if row.given
    }
    for view in VIEWS:
        best = max(readable[view], key=lambda floor: value(floors, floor, "accuracy"))
        model, floor = (np.array(answer) == label for answer in (ours[f"answer_{view}"], floors[f"answer_{best}"]))
        expected = [np.sum(model & floor), np.sum(model & ~floor), np.sum(~model & floor), np.sum(~model & ~floor)]
        assert counts[view][2:] == [f"{number}" for number in expected]
        if view != "full":
            continue
        assert min(expected[1:3]) > 3
        for side, rows, wrong in (
            ("model", model & ~floor, floors[f"answer_{best}"]), ("floor", ~model & floor, ours["answer_full"]),
        ):  # fmt: skip
            part = next(root.all("details", data_side=side))
            assert part.text.startswith(f"The {side} is right") and f": {rows.sum()} " in part.text
            text = ours.get("text", [""] * len(label))
            pairs = Counter((text[n], label[n], wrong[n]) for n in np.flatnonzero(rows))
            shown = [heading.text for heading in part.all("h5")]
            expected_pairs = [
                f"{tag} {true} taken for {said} {count}".strip() for (tag, true, said), count in pairs.items()
            ]
            assert set(shown) <= set(expected_pairs) and len(shown) == min(8, len(pairs))
            numbers = [int(heading.rsplit(" ", 1)[1]) for heading in shown]
            assert numbers == sorted(pairs.values(), reverse=True)[: len(numbers)]
            assert {int(example.given["data-row"]) for example in part.all("div", class_="example")} <= set(
                np.array(ours["row"])[rows].tolist()
            )


def test_classes_and_seeds(page_shop: Shop, tmp_path: Path) -> None:
    runs = [scored(page_shop, "classification", f"seed-{n}", 0.1 + 0.2 * n, seed=n, model="MBSD") for n in range(2)]
    one = compared(page_shop, "classification", *runs)
    root = page(tmp_path, one)
    found = [pq.read_table(run.evaluation.with_suffix(".parquet")).to_pydict() for run in runs]
    table = Table(one.table, Catalog(one.catalog))
    each = [f1_score(of["label"], of["answer_full"], average=None, labels=sorted(CLASSES)) for of in found]
    train = Counter(np.array(table.class_names)[table.column("label")[table.rows("train")]].tolist())
    lines = {row.cells()[0]: row.cells() for row in next(root.all("table", class_="classes")).all("tr") if row.cells()}
    assert set(lines) == set(CLASSES)
    for k, name in enumerate(sorted(CLASSES)):
        assert lines[name][1] == str(train[name]) and lines[name][3] == f"{np.mean([f1[k] for f1 in each]):.3f}"
    values = [accuracy_score(of["label"], of["answer_full"]) for of in found]
    cells = next(root.all("tr", data_view="full", data_metric="accuracy")).cells()
    assert cells[2] == f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def test_hostile_names_stay_text(page_shop: Shop, tmp_path: Path) -> None:
    tasks: tuple[Literal["classification", "attributes"], ...] = ("classification", "attributes")
    one = [compared(page_shop, task, scored(page_shop, task, "hostile", 0.3, model="<u>model</u>")) for task in tasks]
    root = page(tmp_path, *one)
    text = (tmp_path / "trial.html").read_text(encoding="utf-8")
    assert not [*root.all("script"), *root.all("u")] and "<b>Bags" not in text and "<u>model</u>" in root.text
    assert all("style" in mark.given for mark in root.all("i"))  # those of the bars
    assert HOSTILE in root.text and CLASSES[0] in root.text and "kind:<i>a</i>" in root.text and "靴子" in root.text
    assert "items & <more>" in root.text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith("data:image/") for source in sources) and "url(" not in text
    assert "no picture" in root.text and len(text) < 2_000_000


def test_the_interval_is_paired(page_shop: Shop, tmp_path: Path) -> None:
    """A model with the floor's very answers differs from it by 0, whichever rows are drawn."""
    model = scored(page_shop, "classification", "same", 0.0)
    one = compared(page_shop, "classification", model)
    floors = pq.read_table(one.floor_answers)
    accuracy = {
        name: np.mean(np.array(floors[f"answer_{name}"]) == np.array(floors["label"]))
        for name in ("tfidf", "colours", "hog", "all")
    }
    best = max(accuracy, key=lambda name: accuracy[name])
    file = model.evaluation.with_suffix(".parquet")
    own = pq.read_table(file)
    for column in ("answer", "probability", "label_probability"):
        at = own.column_names.index(f"{column}_full")
        own = own.set_column(at, f"{column}_full", floors[f"{column}_{best}"])
    pq.write_table(own, file)
    model.evaluation.write_text(json.dumps({"answers_sha256": digest_of(file)}))
    cells = next(page(tmp_path, one).all("tr", data_view="full", data_metric="accuracy")).cells()
    assert cells[4] == "+0.000" and cells[5] == "+0.000 … +0.000"


def test_other_answers_are_refused(page_shop: Shop, tmp_path: Path) -> None:
    model = scored(page_shop, "classification", "refused", 0.3)
    one = compared(page_shop, "classification", model)
    gone = replace(one, floor_answers=tmp_path / "nowhere.parquet")
    with pytest.raises(
        UserError, match=r"nowhere.parquet: cannot be read .*; remove .*categories_floors.json: the same"
    ):
        page(tmp_path, gone)
    other = replace(one, floor_answers=page_shop.folder / "attributes_floors.parquet")
    with pytest.raises(UserError, match=r"holds answers to 160 rows, expected the 80 test rows of"):
        page(tmp_path, other)
    file = model.evaluation.with_suffix(".parquet")
    pq.write_table(pq.read_table(file).append_column("more", pa.array([0] * 80)), file)
    with pytest.raises(UserError, match=r"refused.parquet: not the answers that were written with .*refused.json"):
        page(tmp_path, one)


def test_an_item_is_drawn_with_all_its_rows(page_shop: Shop) -> None:
    """Rows of an item twice over tell no more than once: the interval is that of the items."""
    found = read_comparison(compared(page_shop, "attributes", scored(page_shop, "attributes", "twice", 0.2)))

    def twice(answers: Answers) -> Answers:
        label = answers.of_label
        parts = (answers.answer, answers.score, answers.probability, label)
        return Answers(*(None if part is None else np.tile(part, 2) for part in parts))  # type: ignore[arg-type]

    doubled = replace(
        found,
        rows=np.tile(found.rows, 2),
        label=np.tile(found.label, 2),
        floors={name: twice(one) for name, one in found.floors.items()},
        models={name: {v: [*map(twice, runs)] for v, runs in of.items()} for name, of in found.models.items()},
    )
    for metric in ("accuracy", "roc_auc"):
        one, two = (margin(each, "twice", "full", metric, 50) for each in (found, doubled))
        assert one.low is not None and one.high is not None and one.low < one.high
        assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high))


def test_the_page_draws_as_often_as_the_table() -> None:
    assert TrialPage("", ()).resamples == RESAMPLES == trial_table.RESAMPLES


def test_a_note_stands_above_its_section_alone(page_shop: Shop, tmp_path: Path) -> None:
    plain = compared(page_shop, "classification", scored(page_shop, "classification", "noted", 0.2))
    noted = replace(
        compared(page_shop, "attributes", scored(page_shop, "attributes", "noted", 0.2)), note="From <categories>."
    )
    sections = list(page(tmp_path, plain, noted).all("section"))
    assert [[note.text for note in section.all("p", class_="note")] for section in sections] == [
        [], ["From <categories>."],
    ]  # fmt: skip


def test_only_attributes_are_noted_in_a_trial() -> None:
    for given in page_of(Trial("items", "images", label_shares=(1.0, 0.1)), Path("out")).comparisons:
        assert ("floors of attributes have learned those labels too" in given.note) == (given.task == "attributes")


def test_kernels() -> None:
    rng = np.random.default_rng(0)
    labels, said = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    labels[labels == 4], said[said == 3] = 0, 1
    ours = class_f1(labels, said, 7)
    assert ours[:5] == pytest.approx(f1_score(labels, said, average=None, labels=range(5), zero_division=0.0))
    assert np.isnan(ours[5:]).all()
    assert np.nanmean(ours) == pytest.approx(f1_score(labels, said, average="macro", zero_division=0.0))
    counts = rng.integers(0, 3, 200)
    repeated = class_f1(labels, said, 7, counts.astype(float))
    assert repeated[:5] == pytest.approx(class_f1(labels.repeat(counts), said.repeat(counts), 7)[:5])
    points = [(float(100 * 2**n), 0.1 + 0.05 * n) for n in range(8)]
    slope = slope_at_end(points, 0.1, 4)
    assert slope is not None and slope.value == pytest.approx(0.05) and slope.error == pytest.approx(0, abs=1e-9)
    assert (slope.points, slope.first) == (4, 1600.0) and slope_at_end(points[:3], 0.1, 4) is None
