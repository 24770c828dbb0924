"""`launchers/evaluate.py` for tasks that are measured on vectors: encode once, measure on rank 0, add intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mbsd.catalog.several import item_columns
from mbsd.config.scoring import EvaluateConfig
from mbsd.data.damaged import DamagedPictures
from mbsd.data.inputs import Builders, open_catalog
from mbsd.data.loader import eval_need, spread
from mbsd.data.room import require_room
from mbsd.data.samples import Sample, WithMissing
from mbsd.data.text import load_tokenizer
from mbsd.errors import UserError
from mbsd.io.console import say
from mbsd.model.config import BackboneConfig
from mbsd.model.embedder import load_embedder, shown_for
from mbsd.model.load import saved_config
from mbsd.parallel.world import World, on_rank_zero, same_on_every_rank
from mbsd.scoring.item_vectors import VectorEncoder, require_whole
from mbsd.scoring.report import heading, lines_of_view
from mbsd.tasks.vector_task import VIEWS, Encoded, Int64, Measured, Subject, VectorTask, items_of, split_rows

MISSING_VIEWS = ("mean", "full")


@dataclass(frozen=True)
class Evaluation:
    """What was found, on every rank: the report, and on rank 0 the answers as a pyarrow Table; None: there are none."""

    report: dict[str, Any]
    answers: Any


def evaluate_vectors(config: EvaluateConfig, task: VectorTask, folder: Path, world: World) -> Evaluation:
    """Measure a task on a model's vectors (collective): each view by itself, then with titles or pictures missing."""
    with same_on_every_rank():
        saved = saved_config(folder)
        embedder = load_embedder(folder, config.data.image_size, config.vector)
        _require_shared_space(config, task, embedder.vector, folder)
        views, missing_views = _views(config, task, saved)
        subject = _subject(config, task)
        task.check(subject)
        others = np.unique(np.asarray(task.others(subject), dtype=np.int64))
        texts = list(task.texts(subject))
        tokenizer = load_tokenizer(config.data.tokenizer or str(folder))
        builders = Builders(subject.catalog, tokenizer, config.data, saved, config.micro_batch)
        require_whole(texts, builders)
        samples = [Sample(item) for item in subject.items.tolist()]
        shown = shown_for((*views, *(missing_views if config.missing.rates else ())))
        require_room([eval_need(samples, builders.build(shown, None, world), config.micro_batch)], world.local_size)
    damaged = DamagedPictures(config.data.max_corrupt, say)
    encoder = VectorEncoder(embedder.to(world.device).eval(), builders, world, damaged)
    of_texts = encoder.texts(texts)
    union = np.union1d(subject.items, others)
    all_views = tuple(view for view in VIEWS if view in {*views, *(missing_views if config.missing.rates else ())})
    whole = encoder.items([Sample(item) for item in union.tolist()], union, all_views)
    passes: dict[str, Encoded] = {}
    if world.is_first:
        found = Encoded(whole.at(subject.items), whole.at(others), of_texts)
        passes = {"views": _only(found, views)} if views else {}
    for rate in config.missing.rates:
        fewer = WithMissing(samples, config.missing.modality, rate, config.missing.seed)
        rows = encoder.items(fewer, subject.items, missing_views)
        if world.is_first:
            passes[f"{rate:g}"] = _only(replace(found, rows=rows), missing_views)
    num_damaged = damaged.check()
    answers = _Answers(subject)

    def measured() -> dict[str, Any]:
        reported = {}
        for name, encoded in passes.items():
            of_views = task.measure(subject, encoded)
            reported[name] = {view: lines_of_view(of_view, config) for view, of_view in of_views.items()}
            answers.add("" if name == "views" else f"_missing_{name}", of_views)
        what = config.missing.modality
        class_names = subject.table.class_names if subject.table is not None else ()
        return {
            **heading(config, task.name, len(subject.rows), class_names),
            "vector": embedder.vector,
            "views": reported.pop("views", {}),
            "missing": {
                f"{what} missing at {rate}, {view}": lines
                for rate, of_pass in reported.items()
                for view, lines in of_pass.items()
            },
            "corrupt_images": num_damaged,
        }

    return Evaluation(on_rank_zero(measured), answers.table())


def _require_shared_space(config: EvaluateConfig, task: VectorTask, vector: str, folder: Path) -> None:
    if task.compares and vector != "contrastive" and config.vector == "auto":
        raise UserError(
            f"task={task.name}: compares titles with pictures, and {folder} has no contrastive vectors; name a model "
            f"of the contrastive stage, or set vector={vector} to see how far vectors come that were not trained for it"
        )


def _views(config: EvaluateConfig, task: VectorTask, saved: BackboneConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The views that are measured, and those that are with something missing.

    Raises:
        UserError: one that the task does not measure or the model does not read, or none at all.
    """
    asked = config.views if config.views is not None else _read_by(saved, task.views)
    unknown = [view for view in asked if view not in task.views]
    if unknown:
        raise UserError(f"views: task={task.name} measures {', '.join(task.views)}, and not {unknown[0]}")
    missing = _read_by(saved, tuple(view for view in MISSING_VIEWS if view in task.views))
    saved.require_views(shown_for(asked), "views")
    if config.missing.rates and not missing:
        raise UserError(f"missing.rates: task={task.name} of a {saved.architecture} has no view that shows both")
    return tuple(asked), missing


def _read_by(saved: BackboneConfig, views: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(view for view in views if set(shown_for((view,))) <= set(saved.known_views))


def _subject(config: EvaluateConfig, task: VectorTask) -> Subject:
    catalog, table = open_catalog(config.data, task.kind)
    if table is None:
        items = catalog.indices(config.split)
        if len(items) == 0:
            raise UserError(f"{catalog.path}: its {config.split} split is empty; choose another one")
        return Subject(catalog, None, config, items[spread(len(items), config.max_samples)], np.asarray(items))
    rows = split_rows(table, config.split)
    rows = rows[spread(len(rows), config.max_samples)]
    return Subject(catalog, table, config, rows, items_of(table, rows))


def _only(encoded: Encoded, views: tuple[str, ...]) -> Encoded:
    """The same in these views alone."""
    rows, others = (
        replace(of, vectors={view: of.vectors[view] for view in views if view in of.vectors})
        for of in (encoded.rows, encoded.others)
    )
    return replace(encoded, rows=rows, others=others)


class _Answers:
    """The columns of the Parquet file: facts of each row, and what each view answered."""

    def __init__(self, subject: Subject) -> None:
        self._count = len(subject.rows)
        self._columns: dict[str, Any] = {}
        self._has_answers = False
        if subject.table is None:
            self._columns = item_columns(subject.catalog, {"item": subject.rows})
        else:
            table, rows = subject.table, subject.rows
            columns = {name: table.column(name) for name in ("text", "label") if name in table.column_names}
            named: dict[str, Any] = {name: [of[row] for row in rows.tolist()] for name, of in columns.items()}
            self._columns = {"row": rows, **table.addresses(rows), **named}
            if table.class_names:
                self._columns["label"] = [table.class_names[label] for label in self._columns["label"]]

    def add(self, suffix: str, of_views: Mapping[str, Measured]) -> None:
        """What one pass answered."""
        for view, measured in of_views.items():
            for column, values in measured.answers.items():
                rows: Int64 = np.arange(self._count) if measured.rows is None else measured.rows
                there = np.zeros(self._count, dtype=bool)
                there[rows] = True
                filled = np.zeros((self._count, *values.shape[1:]), dtype=values.dtype)
                filled[rows] = values
                self._columns[f"{column}_{view}{suffix}"] = pa.array(filled, mask=~there)
                self._has_answers = True

    def table(self) -> Any:
        """All of them; None where no view answered."""
        return pa.table(self._columns) if self._has_answers else None
