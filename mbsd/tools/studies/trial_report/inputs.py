"""What the page is made of: which files hold whose answers, and reading them row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.errors import UserError
from mbsd.io.files import difference, read_own_json

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

VIEWS = {"full": "title and picture", "text": "title", "image": "picture"}
# Name in the files of `mbsd floors` -> as shown, and the view that it reads ("": the tag alone, which all views have).
# One that is not here is shown by its name, and counts as reading both title and picture.
FLOORS = {
    "tfidf": ("TF-IDF", "text"),
    "colours": ("colour histogram", "image"),
    "hog": ("HOG", "image"),
    "hog_colours": ("HOG and colours", "image"),
    "all": ("TF-IDF, colours and HOG", "full"),
    "prior": ("the tag alone", ""),
}
AGAIN = "remove it: the same command makes it again"


@dataclass(frozen=True)
class Scored:
    """A fine-tuned model and what it was measured to answer.

    Attributes:
        model: as shown; runs that differ in seed alone have the same one.
        evaluation: JSON of `launchers/evaluate.py`; the answers lie beside it.
        run: the run's folder.
        pretrained: started from stage 1; False: from drawn weights.
    """

    model: str
    evaluation: Path
    run: Path
    pretrained: bool = True


@dataclass(frozen=True)
class Comparison:
    """Models beside floors on the test rows of one table.

    Attributes:
        title: unique on the page, say "Categories, titles masked".
        floors: JSON of `mbsd floors`.
        floor_answers: Parquet of its --answers.
        models: one or more; the first is whose answers are shown with pictures.
        views: that are compared, of full, text and image; the first is shown with pictures.
        clustering: JSON of an evaluation of clustering on the same table; None: there is none.
        labels: share of the training labels that all of its models were given.
        note: what a reader has to know of the models beside the floors, a sentence; "": nothing.
    """

    title: str
    task: Literal["classification", "attributes"]
    catalog: Path
    table: Path
    floors: Path
    floor_answers: Path
    models: tuple[Scored, ...]
    views: tuple[str, ...] = ("full", "text", "image")
    clustering: Path | None = None
    labels: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class Answers:
    """What one model or floor answered to n test rows.

    Attributes:
        answer: [n], numbers of `Compared.names`.
        score: [n], probability of yes; of a task with classes, that of the answer.
        probability: [n] of the answer.
        of_label: [n], probability of the true label; None: the file is older and has none.
    """

    answer: Int64
    score: Float64
    probability: Float64
    of_label: Float64 | None


@dataclass(frozen=True)
class Compared:
    """A comparison with its files read.

    Attributes:
        names: of the labels; sorted, "no" and "yes" of attributes.
        rows: [n], of the table.
        label: [n], numbers of `names`.
        floors: by the name in their files.
        models: model -> view -> the answers of each of its runs, in the order of the seeds.
        evaluations: JSON of `Scored.evaluation`, as for `given.models`.
    """

    given: Comparison
    catalog: Catalog
    table: Table
    names: list[str]
    rows: Int64
    label: Int64
    floors: Mapping[str, Answers]
    models: Mapping[str, Mapping[str, list[Answers]]]
    evaluations: Sequence[Mapping[str, Any]]

    @property
    def main(self) -> str:
        """The model whose answers are shown with pictures."""
        return self.given.models[0].model

    @cached_property
    def items(self) -> Int64:
        """[n], the item of each test row."""
        return np.asarray(self.table.column("item"))[self.rows]

    @property
    def is_binary(self) -> bool:
        """Labels are yes or no."""
        return self.given.task == "attributes"

    def floors_of(self, view: str) -> dict[str, Answers]:
        """The floors that read no more than a view shows."""
        readable = {"full": ("full", "text", "image", ""), "text": ("text", ""), "image": ("image", "")}[view]
        return {name: found for name, found in self.floors.items() if shown_floor(name)[1] in readable}


def shown_floor(name: str) -> tuple[str, str]:
    """(as shown, view that it reads) of a floor."""
    return FLOORS.get(name, (name, "full"))


def read_comparison(given: Comparison) -> Compared:
    """Read answers and check that they are of the same rows.

    Raises:
        UserError: a file is missing or damaged, or its rows are not those of the others.
    """
    catalog = Catalog(given.catalog)
    table = Table(given.table, catalog)
    rows = np.asarray(table.rows("test"))
    labels = np.array(table.class_names if given.task == "classification" else ["no", "yes"], dtype=object)
    of_floors = _columns(given.floor_answers, rows, given.table, given.floors)
    reports = [read_own_json(scored.evaluation, AGAIN) for scored in given.models]
    of_models = []
    for scored, report in zip(given.models, reports, strict=True):
        file = scored.evaluation.with_suffix(".parquet")
        recorded = report.get("answers_sha256")  # older versions recorded none
        if recorded and (wrong := difference(file, {"sha256": recorded})):
            raise UserError(
                f"{file}: not the answers that were written with {scored.evaluation} ({wrong}); remove "
                f"{scored.evaluation}: the same command makes both again"
            )
        of_models.append(_columns(file, rows, given.table, scored.evaluation))
    names = sorted(labels.tolist())
    number = {name: n for n, name in enumerate(names)}
    binary = given.task == "attributes"
    models: dict[str, dict[str, list[Answers]]] = {}
    for scored, columns in zip(given.models, of_models, strict=True):
        views = models.setdefault(scored.model, {view: [] for view in given.views})
        for view in given.views:
            views[view].append(_answers(columns, view, number, binary))
    asked = [name.removeprefix("answer_") for name in of_floors if name.startswith("answer_")]
    label = np.array([number[name] for name in labels[np.asarray(table.column("label"))[rows]]], dtype=np.int64)
    return Compared(
        given, catalog, table, names, rows, label,
        {floor: _answers(of_floors, floor, number, binary) for floor in asked}, models, reports,
    )  # fmt: skip


def _columns(file: Path, rows: Int64, table: Path, report: Path) -> dict[str, list[Any]]:
    """The columns of an answers' file, whose command is done when `report` exists."""
    remedy = f"remove {report}: the same command makes both again"
    try:
        columns: dict[str, list[Any]] = pq.read_table(file).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())}); {remedy}") from None
    found = columns.get("row", [])
    if not np.array_equal(found, rows):
        raise UserError(
            f"{file}: holds answers to {len(found)} rows, expected the {len(rows)} test rows of {table}; {remedy}"
        )
    return columns


def _answers(columns: Mapping[str, list[Any]], name: str, number: Mapping[str, int], binary: bool) -> Answers:
    answer = np.array([number[value] for value in columns[f"answer_{name}"]], dtype=np.int64)
    score = np.array(columns[f"probability_{name}"], dtype=np.float64)
    of_label = columns.get(f"label_probability_{name}")
    return Answers(
        answer,
        score,
        np.where(answer == number["yes"], score, 1 - score) if binary else score,
        None if of_label is None else np.array(of_label, dtype=np.float64),
    )
