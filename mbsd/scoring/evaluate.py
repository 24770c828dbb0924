"""The composition root of `launchers/evaluate.py` and `launchers/embed.py`: what is done with a trained model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbsd.batch import Batch
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.scoring import EmbedConfig, EvaluateConfig
from mbsd.data.damaged import DamagedPictures
from mbsd.data.inputs import batches_of, make_builder, open_inputs
from mbsd.data.loader import CatalogSamples, Samples, spread
from mbsd.data.samples import Chosen, Int64, WithMissing
from mbsd.data.text import load_tokenizer, words_digest
from mbsd.errors import UserError
from mbsd.io.console import quiet_libraries, say
from mbsd.io.files import digest_of, replace_text
from mbsd.metrics.table_scores import TableScores, score, whole_batches
from mbsd.model.config import MbsdConfig
from mbsd.model.embedder import Embedder, load_embedder
from mbsd.model.load import load_model, saved_config
from mbsd.parallel.world import gather_objects, on_rank_zero, process_group, same_on_every_rank
from mbsd.scoring.answers import answers, write_answers
from mbsd.scoring.vector_files import VectorFiles
from mbsd.tasks.registry import TASKS
from mbsd.tasks.task import Labels, Task, check_tags, lines_of, report, task_samples

PATIENCE = 7 * 86400.0  # seconds that a rank which is done waits for one that still encodes, or draws intervals


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a task's table: each view by itself, then with titles or pictures missing (`launchers/evaluate.py`)."""
    quiet_libraries()
    with process_group(PATIENCE) as world:
        with same_on_every_rank():
            folder = weights_folder(config.model)
            saved = saved_config(folder)
            task = _task(config, saved)
            catalog, table = open_inputs(config.data, task.kind)
            assert table is not None, "EvaluateConfig.check"
            labels = task.known_labels(table, saved.label_names)
            samples = task_samples(table, config.split, labels)
            chosen = spread(len(samples), config.max_samples)
            tokenizer = load_tokenizer(config.data.tokenizer or str(folder))
            check_tags(table, (config.split,), tokenizer, config.data)
            model, tell = _scorer(task, folder, config.data.image_size)
        model.to(world.device).eval()
        corrupt = DamagedPictures(config.data.max_corrupt, say)
        alone = dataclasses.replace(world, rank=0, size=1)  # its batches are nobody else's

        def scored(samples: Samples, views: tuple[str, ...]) -> TableScores:
            builder = make_builder(
                config.data, catalog, tokenizer, saved, views, world, config.micro_batch,
                label_dtype=task.label_dtype,
            )  # fmt: skip
            mine = whole_batches(len(chosen), config.micro_batch, world.rank, world.size)
            shown = Chosen(samples, chosen[mine])
            batches: Iterable[Batch] = ()
            if len(mine):
                batches = batches_of(shown, builder, config.data, alone, config.micro_batch, None, corrupt)
            return score(tell, batches, world.device, mine)

        passes: dict[str, TableScores] = {"views": scored(samples, config.views)} if config.views else {}
        for rate in config.missing.rates:
            fewer = WithMissing(samples, config.missing.modality, rate, config.missing.seed)
            passes[f"{rate:g}"] = scored(fewer, ("full",))
        damaged = corrupt.check()
        result: dict[str, Any] = on_rank_zero(
            lambda: (
                _report(config, task, labels, table, table.rows(config.split)[chosen], passes)
                | {"corrupt_images": damaged}
            )
        )
        if world.is_first:
            Path(config.out).parent.mkdir(parents=True, exist_ok=True)
            if task.loss is not None:  # vectors are embed.py's to write
                named = [("" if name == "views" else f"missing_{name}", scores) for name, scores in passes.items()]
                found = answers(named, table, table.rows(config.split)[chosen], labels)
                write_answers(found, Path(config.out).with_suffix(".parquet"))
            replace_text(Path(config.out), json.dumps(result, ensure_ascii=False, indent=1) + "\n")
            print("\n".join(lines_of(result["views"]) + lines_of(result["missing"])))
        return result


def _task(config: EvaluateConfig, saved: MbsdConfig) -> Task:
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
    """The model, and what it says of a batch: logits of a head, or the vectors that are to be clustered."""
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
        "model": config.model,
        "task": task.name,
        "split": config.split,
        "catalog": config.data.catalog,
        "table": config.data.table,
        "samples": len(rows),
        "labels": list(labels.names),
        "views": reported.pop("views", {}),
        "missing": {f"{what} missing at {rate}": of_pass["full"] for rate, of_pass in reported.items()},
    }


def embed(config: EmbedConfig) -> None:
    """Encode a catalogue's items into Parquet files (`launchers/embed.py`)."""
    quiet_libraries()
    with process_group(PATIENCE) as world:
        with same_on_every_rank():
            catalog = Catalog(config.data.catalog)
            items = catalog.indices(config.split)
            if len(items) == 0:
                raise UserError(
                    f"{catalog.path}: its {config.split} split is empty; choose another one, or leave it out"
                )
            folder = weights_folder(config.model)
            saved = saved_config(folder)
            embedder = load_embedder(folder, config.data.image_size, config.vector)
            tokenizer = load_tokenizer(config.data.tokenizer or str(folder))
            what = _what(config, catalog, len(items), embedder, folder) | {"vocabulary": words_digest(tokenizer)}
        embedder.to(world.device).eval()
        files = VectorFiles(Path(config.out), config.data.catalog, config.split, what)

        def start() -> list[int]:
            files.start()
            return files.missing()

        todo = on_rank_zero(start)[world.rank :: world.size]
        corrupt = DamagedPictures(config.data.max_corrupt, say)
        builder = make_builder(
            config.data, catalog, tokenizer, saved, (config.view,), world, config.micro_batch, label_dtype=None
        )
        if todo:
            numbers = np.concatenate([files.numbers(part) for part in todo])
            samples = Chosen(CatalogSamples(catalog, config.split), numbers)
            alone = dataclasses.replace(world, rank=0, size=1)  # its parts are nobody else's
            batches = batches_of(samples, builder, config.data, alone, config.micro_batch, None, corrupt)
            with torch.inference_mode():
                vectors = (embedder(batch.to(world.device))[0].float().cpu().numpy() for batch in batches)
                files.write(todo, vectors)
        damaged = corrupt.check()
        gather_objects(None)  # all files are there
        if world.is_first:
            say(files.finish(str(folder), damaged))


def _what(config: EmbedConfig, catalog: Catalog, num_items: int, embedder: Embedder, folder: Path) -> dict[str, Any]:
    """What the vectors are of: whoever goes on with them must mean the same."""
    return {
        "catalogue": catalog.fingerprint,
        "split": config.split or "all",
        "items": num_items,
        "items_per_file": config.items_per_file,
        "model": digest_of(folder / "model.safetensors"),
        "view": config.view,
        "vector": embedder.vector,
        "width": embedder.width,
        "dtype": config.dtype,
        "max_text_tokens": config.data.max_text_tokens,
    }
