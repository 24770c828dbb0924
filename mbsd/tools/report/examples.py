"""Items with pictures that a model classifies right and wrong, those of the highest probability first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs, Items
from mbsd.catalog.thumbnail import thumbnail_of
from mbsd.errors import UserError
from mbsd.io.files import difference
from mbsd.tools.report.gather import Evaluation

THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Shown:
    """An item of an example: its title, and its picture as a data URI; empty: it has no picture."""

    title: str
    picture: str


@dataclass(frozen=True)
class Example:
    """A row of the table with the answer of each view.

    Attributes:
        row: its number in the table.
        items: one, or the two of an alignment row.
        text: the attribute's text; empty: the task has none.
        label: the true answer.
        answers: view -> (answer, its probability, whether it is right).
    """

    row: int
    items: tuple[Shown, ...]
    text: str
    label: str
    answers: dict[str, tuple[str, float, bool]]


def find_examples(evaluation: Evaluation, number: int) -> dict[str, list[Example]]:
    """The right and the wrong rows that the first view answers with the highest probability.

    Labels take turns, so that in a yes/no task half of the rows are labelled yes, if there are enough.

    Returns:
        "right" and "wrong" -> at most `number` rows; empty if the evaluation wrote no answers with probabilities.

    Raises:
        UserError: the evaluation's catalogue is missing, or its answers are not those that it wrote.
    """
    if evaluation.answers is None or not evaluation.views:
        return {}
    if evaluation.vector and evaluation.task != "probe":
        return {}  # ranks and distances say nothing of how sure an answer is
    paths = [evaluation.catalog] if isinstance(evaluation.catalog, str) else list(evaluation.catalog.values())
    for path in (path for path in paths if not Path(path).is_dir()):
        raise UserError(
            f"{evaluation.file}: its catalogue {path} is not there; start from the folder that the "
            "evaluation was started from, or leave the pictures out with --examples 0"
        )
    recorded = {"sha256": evaluation.answers_sha256}
    if evaluation.answers_sha256 and (wrong := difference(evaluation.answers, recorded)):
        raise UserError(
            f"{evaluation.answers}: not the answers that were written with {evaluation.file} ({wrong}); score the run "
            "again, or leave the pictures out with --examples 0"
        )
    catalog = Catalog(evaluation.catalog) if isinstance(evaluation.catalog, str) else Catalogs(evaluation.catalog)
    found = pq.read_table(evaluation.answers).to_pydict()
    views = list(evaluation.views)
    answer, probability = np.array(found[f"answer_{views[0]}"]), np.array(found[f"probability_{views[0]}"])
    labels = np.array(found["label"])
    if set(labels) | set(answer) <= {"yes", "no"}:  # the probability is that of yes
        probability = np.where(answer == "yes", probability, 1 - probability)
    right = answer == labels
    return {
        name: [_example(catalog, found, views, row) for row in _surest(probability, labels, chosen, number)]
        for name, chosen in (("right", right), ("wrong", ~right))
    }


def _surest(probability: Any, labels: Any, chosen: Any, number: int) -> list[int]:
    """At most `number` rows of `chosen`, by falling probability of the answer, the labels taking turns."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(-probability[rows], kind="stable")]
    turn: dict[str, int] = {}
    place = []
    for row in rows.tolist():
        place.append(turn.get(labels[row], 0))
        turn[labels[row]] = place[-1] + 1
    order = np.argsort(np.array(place), kind="stable") if len(rows) else rows
    return [int(row) for row in rows[order][:number]]


def _example(catalog: Items, found: dict[str, list[Any]], views: list[str], row: int) -> Example:
    numbers = [found[name][row] for name in ("item", "item_a", "item_b") if name in found]
    if isinstance(catalog, Catalogs):
        numbers = [catalog.number(found["catalog"][row], number) for number in numbers]
    label, answers = str(found["label"][row]), {}
    for view in views:
        answer, probability = str(found[f"answer_{view}"][row]), float(found[f"probability_{view}"][row])
        answers[view] = (answer, probability, answer == label)
    text = str(found["text"][row]) if "text" in found else ""
    shown = tuple(Shown(catalog.title(number), thumbnail_of(catalog, number, THUMBNAIL)) for number in numbers)
    return Example(int(found["row"][row]), shown, text, label, answers)
