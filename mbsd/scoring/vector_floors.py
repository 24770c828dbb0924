"""`mbsd vector-floors`: what vectors without a network reach on the tasks of `launchers/evaluate.py`, on the same rows.

Two kinds are measured by the tasks' own functions. "floor_features": TF-IDF of titles, and colours and gradients (HOG)
of pictures, which cannot be compared with each other. "floor_canonical": both in one space (`mbsd.scoring.canonical`),
fitted on the training items and chosen on validation items, so that titles find pictures and names find items.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Kind, Table
from mbsd.config.data import DataConfig
from mbsd.config.scoring import EvaluateConfig
from mbsd.data.loader import spread
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.metrics.ranking import Identified, ranking
from mbsd.scoring.canonical import Canonical, fit_canonical
from mbsd.scoring.floor_features import Features, colours, edges, vocabulary
from mbsd.scoring.report import heading, lines_of, lines_of_view
from mbsd.tasks.registry import VECTOR_TASKS
from mbsd.tasks.retrieval import retrieved_within
from mbsd.tasks.vector_task import Encode, Encoded, Int64, ItemVectors, Measured, Subject, items_of, split_rows

TASKS_OF_KIND: dict[Kind, tuple[str, ...]] = {
    "categories": ("zero_shot", "neighbours", "probe", "clustering"),
    "attributes": ("attributes",),
    "alignment": ("matching",),
}
LEAST_ITEMS = 3  # that canonical correlation is fitted on
JUDGED = 2000  # validation items, at most, by which directions and weights are chosen


@dataclass(frozen=True)
class Floor:
    """Vectors of all items of a catalogue.

    Attributes:
        name: that the report has it under.
        vectors: of items 0, 1, …
        texts: in the space of the items; None: texts cannot be compared with them.
        said: further lines of the JSON.
    """

    name: str
    vectors: ItemVectors
    texts: Encode | None
    said: Mapping[str, Any]


def write_vector_floors(catalog: Catalog, tables: Sequence[Path], out: Path, bootstrap: int) -> None:
    """Measure the test split, print each report and write it to `out`/FLOOR/TASK.json.

    Raises:
        UserError: a table of another kind or catalogue; no keys of the catalogue; too few items with both modalities.
    """
    read = [Table(path, catalog) for path in tables]
    for table in read:
        if table.kind not in TASKS_OF_KIND:
            raise UserError(f"table {table.path}: holds {table.kind}; vector floors are of {', '.join(TASKS_OF_KIND)}")
    asked = [("retrieval", None), *((task, table) for table in read for task in TASKS_OF_KIND[table.kind])]
    subjects = [(task, _subject(catalog, table, task, out, bootstrap)) for task, table in asked]
    for task, subject in subjects:
        VECTOR_TASKS[task].check(subject)
    # The matrices are small: on a machine that others use too, a second thread of BLAS mostly waits and burns its core.
    with threadpool_limits(1):
        for floor in build_floors(catalog):
            for task, subject in subjects:
                if floor.texts is None and VECTOR_TASKS[task].compares and task != "retrieval":
                    continue
                report = _report(floor, task, subject)
                replace_text(out / floor.name / f"{task}.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
                print(f"{floor.name}, {task}\n" + "\n".join(f"  {line}" for line in lines_of(report["views"])))


def build_floors(catalog: Catalog) -> Iterator[Floor]:
    """Both kinds of vectors of all items, fitted on the training items.

    Raises:
        UserError: too few of them have a title with known words and a picture.
    """
    items, train = np.arange(len(catalog), dtype=np.int64), np.asarray(catalog.indices("train"))
    words = vocabulary(catalog, train)
    text = words.transform(catalog.title(item) for item in items.tolist())
    image = normalize(np.concatenate([of(catalog, items, train) for of in (colours, edges)], axis=1))
    has_image = np.array([catalog.has_image(item) for item in items.tolist()])
    image[~has_image] = 0  # the gradients of no picture are not zeros once their mean is taken off
    present = {"text": _nonzero(text), "image": _nonzero(image)}
    yield Floor("floor_features", ItemVectors(items, {"text": text, "image": image}, present), None, {})
    both = train[present["text"][train] & present["image"][train]]
    for side, shown in ((text, "titles"), (image, "pictures")):
        if len(both) < LEAST_ITEMS or _varying(side[both]) < 2:
            raise UserError(
                f"catalogue {catalog.path}: {len(both)} items of the train split have a title with known words and a "
                f"picture, and their {shown} have to differ; canonical correlation takes {LEAST_ITEMS} or more"
            )
    fitted = fit_canonical(text[both], image[both])
    held_out = catalog.indices("validation")
    held_out = held_out[present["text"][held_out] & present["image"][held_out]]
    held_out = held_out[spread(len(held_out), JUDGED)]
    chosen = fitted.choose(lambda one: found_across(one, text[held_out], image[held_out]))
    of_text, of_image = chosen.text(text), chosen.image(image)
    vectors = {"text": of_text, "image": of_image, "mean": normalize(of_text + of_image)}
    present["mean"] = present["text"] | present["image"]
    said = {"directions": chosen.directions, "power": chosen.power}
    yield Floor(
        "floor_canonical",
        ItemVectors(items, vectors, present),
        lambda texts: chosen.text(words.transform(texts)),
        said,
    )


def found_across(canonical: Canonical, text: Features, image: Features) -> float:
    """How many of some items' titles find their own picture among the first ten, and the other way round: the mean."""
    if text.shape[0] == 0:
        return 0.0
    numbers, no_keys = np.arange(text.shape[0]), np.zeros((text.shape[0], 0), dtype=np.int64)
    sides = [Identified(side, numbers, no_keys) for side in (canonical.text(text), canonical.image(image))]
    return sum(ranking(*pair).means(("r10",))["r10"] for pair in (sides, sides[::-1])) / 2


def _subject(catalog: Catalog, table: Table | None, task: str, out: Path, bootstrap: int) -> Subject:
    path = None if table is None else str(table.path)
    known: Any = task
    settings = EvaluateConfig(
        model="floor", data=DataConfig(str(catalog.path), table=path), out=str(out), task=known, bootstrap=bootstrap
    )
    if table is None:
        items = np.asarray(catalog.indices("test"))
        return Subject(catalog, None, settings, items, items)
    rows = split_rows(table, "test")
    return Subject(catalog, table, settings, rows, items_of(table, rows))


def _report(floor: Floor, name: str, subject: Subject) -> dict[str, Any]:
    task, table = VECTOR_TASKS[name], subject.table
    others: Int64 = np.unique(np.asarray(task.others(subject), dtype=np.int64))
    rows = floor.vectors.at(subject.items)
    measured: Mapping[str, Measured]
    if floor.texts is None and name == "retrieval":
        measured = retrieved_within(subject, _dense(rows))
    else:
        measured = task.measure(subject, Encoded(rows, floor.vectors.at(others), floor.texts or _no_texts))
    return {
        **heading(subject.settings, name, len(subject.rows), () if table is None else table.class_names),
        "model": floor.name,
        "vector": floor.name,
        **floor.said,
        "views": {view: lines_of_view(of_view, subject.settings) for view, of_view in measured.items()},
        "missing": {},
    }


def _no_texts(texts: Sequence[str]) -> Any:
    raise AssertionError("tasks that compare texts are not measured here")


def _dense(vectors: ItemVectors) -> ItemVectors:
    text = vectors.vectors["text"].toarray().astype(np.float32)
    return ItemVectors(vectors.items, {**vectors.vectors, "text": text}, vectors.present)


def _varying(features: Features) -> int:
    """How many columns hold different numbers."""
    dense = [part.toarray() if scipy.sparse.issparse(part) else part for part in (features.max(0), features.min(0))]
    return int(np.sum(dense[0] > dense[1]))


def _nonzero(features: Features) -> NDArray[np.bool_]:
    return np.asarray(abs(features).sum(axis=1)).reshape(-1) > 0
