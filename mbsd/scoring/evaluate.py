"""`launchers/evaluate.py`: a task's table scored with a trained model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from mbsd.batch import Batch
from mbsd.catalog.tables import Table
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.scoring import EvaluateConfig
from mbsd.data.damaged import DamagedPictures
from mbsd.data.inputs import Builders, open_catalog
from mbsd.data.loader import eval_batches, eval_need, spread
from mbsd.data.room import require_room
from mbsd.data.samples import Chosen, Int64, Samples, WithMissing
from mbsd.data.spec import Labelled
from mbsd.data.text import load_tokenizer
from mbsd.errors import UserError
from mbsd.io.console import quiet_libraries, say
from mbsd.io.files import digest_of, replace_text
from mbsd.metrics.table_scores import TableScores, score, whole_batches
from mbsd.model.config import BackboneConfig
from mbsd.model.embedder import load_embedder
from mbsd.model.heads import MbsdForContrastive
from mbsd.model.load import load_model, saved_config
from mbsd.parallel.world import on_rank_zero, process_group, same_on_every_rank
from mbsd.scoring.answers import answers, write_answers
from mbsd.scoring.evaluate_vectors import evaluate_vectors
from mbsd.scoring.report import heading, lines_of, report
from mbsd.tasks.checks import check_tags
from mbsd.tasks.registry import TASKS, VECTOR_TASKS
from mbsd.tasks.task import Labels, Task, task_samples
from mbsd.tasks.vector_task import VectorTask

HEAD_VIEWS = ("full", "text", "image")
PATIENCE = 7 * 86400.0  # seconds that a rank which is done waits for one that still encodes, or draws intervals


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a task's table: each view by itself, then with titles or pictures missing (`launchers/evaluate.py`)."""
    quiet_libraries()
    with process_group(PATIENCE) as world:
        with same_on_every_rank():
            folder = weights_folder(config.model)
            saved = saved_config(folder)
            on_vectors = _vector_task(config, saved)
        if on_vectors is not None:
            found = evaluate_vectors(config, on_vectors, folder, world)
            if world.is_first:
                _publish(config, found.report, found.answers)
            return found.report
        with same_on_every_rank():
            task = _task(config, saved)
            shown_views = _views(config)
            catalog, table = open_catalog(config.data, task.kind)
            assert table is not None, "EvaluateConfig.check"
            labels = task.known_labels(table, saved.label_names)
            samples = task_samples(table, config.split, labels)
            chosen = spread(len(samples), config.max_samples)
            tokenizer = load_tokenizer(config.data.tokenizer or str(folder))
            check_tags(table, (config.split,), tokenizer, config.data)
            model, scorer = _scorer(task, folder, config.data.image_size)
        model.to(world.device).eval()
        damaged = DamagedPictures(config.data.max_corrupt, say)
        builders = Builders(catalog, tokenizer, config.data, saved, config.micro_batch)
        with same_on_every_rank():
            for views in filter(None, (shown_views, ("full",) if config.missing.rates else ())):
                builder = builders.build(views, Labelled(task.label_dtype), world)
                require_room([eval_need(samples, builder, config.micro_batch)], world.local_size)
        mine = whole_batches(len(chosen), config.micro_batch, world.rank, world.size)

        def scored(samples: Samples, views: tuple[str, ...]) -> TableScores:
            builder = builders.build(views, Labelled(task.label_dtype), world)
            batches: Iterable[Batch] = ()
            if len(mine):
                shown = Chosen(samples, chosen[mine])
                batches = eval_batches(shown, builder, world.alone(), config.micro_batch, damaged=damaged)
            return score(scorer, batches, mine)

        passes: dict[str, TableScores] = {"views": scored(samples, shown_views)} if shown_views else {}
        for rate in config.missing.rates:
            fewer = WithMissing(samples, config.missing.modality, rate, config.missing.seed)
            passes[f"{rate:g}"] = scored(fewer, ("full",))
        num_damaged = damaged.check()
        result: dict[str, Any] = on_rank_zero(
            lambda: (
                _report(config, task, labels, table, table.rows(config.split)[chosen], passes)
                | {"corrupt_images": num_damaged}
            )
        )
        if world.is_first:
            found_rows = None
            if task.loss is not None:  # vectors are embed.py's to write
                named = [("" if name == "views" else f"missing_{name}", scores) for name, scores in passes.items()]
                found_rows = answers(named, table, table.rows(config.split)[chosen], labels)
            _publish(config, result, found_rows)
        return result


def _publish(config: EvaluateConfig, result: dict[str, Any], found: Any) -> None:
    """Write the report and the answers (None: there are none), and print the report."""
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    if found is not None:
        written = Path(config.out).with_suffix(".parquet")
        write_answers(found, written)
        result["answers_sha256"] = digest_of(written)  # the report takes over this file and no other
    replace_text(Path(config.out), json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    print("\n".join(lines_of(result["views"]) + lines_of(result["missing"])))


def _vector_task(config: EvaluateConfig, saved: BackboneConfig) -> VectorTask | None:
    """The task on vectors that is asked for; None: it asks for the answers of a head, or no task is named.

    A model of the contrastive stage has no head for tasks: what is asked of it is asked of its vectors.
    """
    if config.task is None or config.task not in VECTOR_TASKS:
        return None
    of_head = config.task in TASKS and saved.architectures != [MbsdForContrastive.__name__]
    return None if of_head else VECTOR_TASKS[config.task]


def _views(config: EvaluateConfig) -> tuple[str, ...]:
    """What a head's answers are asked for.

    Raises:
        UserError: settings of vectors.
    """
    if config.vector != "auto":
        raise UserError(f"vector={config.vector}: task={config.task or 'of this model'} scores no vectors: remove it")
    if "mean" in (config.views or ()):
        raise UserError(
            "views: mean is one of vectors, and this task asks for a head's answers; name full, text, image"
        )
    return HEAD_VIEWS if config.views is None else config.views


def _task(config: EvaluateConfig, saved: BackboneConfig) -> Task:
    """The task that is asked for, or that the model was fine-tuned for."""
    name = config.task or saved.task
    if not name:
        raise UserError(
            f"{config.model}: was not fine-tuned for a task; name a fine-tuned model, or set task=clustering, which "
            "takes any"
        )
    if TASKS[name].loss is not None and saved.task != name:
        trained = f"was fine-tuned for {saved.task}" if saved.task else "was not fine-tuned"
        raise UserError(f"task={name}: {config.model} {trained}; name a model that was fine-tuned for {name}")
    return TASKS[name]


def _scorer(task: Task, folder: Path, image_size: int) -> tuple[Any, Any]:
    """The model, and what scores a batch: logits of a head, or the vectors that are to be clustered."""
    if task.loss is None:
        embedder = load_embedder(folder, image_size)
        return embedder, embedder
    model: Any = load_model(task.head_class, folder, image_size, with_head=True)

    def logits(batch: Batch) -> Tensor:
        found: Tensor = model(batch).logits
        return found

    return model, logits


def _report(
    config: EvaluateConfig, task: Task, labels: Labels, table: Table, rows: Int64, passes: dict[str, TableScores]
) -> dict[str, Any]:
    reported = {name: report(task, scores, table, rows, config) for name, scores in passes.items()}
    what = config.missing.modality
    return {
        **heading(config, task.name, len(rows), labels.names),
        "views": reported.pop("views", {}),
        "missing": {f"{what} missing at {rate}": of_pass["full"] for rate, of_pass in reported.items()},
    }
