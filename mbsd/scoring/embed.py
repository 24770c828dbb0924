"""`launchers/embed.py`: a vector of every item of a catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbsd.batch import Batch
from mbsd.catalog.several import Catalogs, Items
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.scoring import EmbedConfig
from mbsd.data.damaged import DamagedPictures
from mbsd.data.inputs import Builders, open_items
from mbsd.data.loader import eval_batches, eval_need
from mbsd.data.room import require_room
from mbsd.data.samples import CatalogSamples, Chosen
from mbsd.data.text import load_tokenizer, words_digest
from mbsd.errors import UserError
from mbsd.io.console import quiet_libraries, say
from mbsd.io.files import digest_of
from mbsd.model.embedder import SHARED_VIEWS, Embedder, load_embedder, shown_for
from mbsd.model.load import saved_config
from mbsd.parallel.world import gather_objects, on_rank_zero, process_group, same_on_every_rank
from mbsd.scoring.evaluate import PATIENCE
from mbsd.scoring.vector_files import VectorFiles, Vectors


def embed(config: EmbedConfig) -> None:
    """Encode a catalogue's items into Parquet files (`launchers/embed.py`)."""
    quiet_libraries()
    with process_group(PATIENCE) as world:
        with same_on_every_rank():
            catalog = open_items(config.data)
            items = catalog.indices(config.split)
            if len(items) == 0:
                raise UserError(
                    f"{catalog.path}: its {config.split} split is empty; choose another one, or leave it out"
                )
            folder = weights_folder(config.model)
            saved = saved_config(folder)
            embedder = load_embedder(folder, config.data.image_size, config.vector)
            tokenizer = load_tokenizer(config.data.tokenizer or str(folder))
            views = chosen_views(config, embedder)
            what = _what(config, catalog, len(items), folder) | {"vocabulary": words_digest(tokenizer)}
            what |= _columns(config, embedder, views)
        embedder.to(world.device).eval()
        files = VectorFiles(Path(config.out), catalog, config.split, what)
        todo = on_rank_zero(lambda: files.start(say))[world.rank :: world.size]
        damaged = DamagedPictures(config.data.max_corrupt, say)
        builders = Builders(catalog, tokenizer, config.data, saved, config.micro_batch)
        builder = builders.build(shown_for(views), None, world)
        with same_on_every_rank():
            require_room(
                [eval_need(CatalogSamples(catalog, config.split), builder, config.micro_batch)], world.local_size
            )
        if todo:
            numbers = np.concatenate([files.numbers(part) for part in todo])
            samples = Chosen(CatalogSamples(catalog, config.split), numbers)
            batches = eval_batches(samples, builder, world.alone(), config.micro_batch, damaged=damaged)
            with torch.inference_mode():
                files.write(todo, (_vectors(embedder, batch, views, config) for batch in batches))
        num_damaged = damaged.check()
        gather_objects(None)  # all files are there
        if world.is_first:
            several = {one.known_as: one.path for one in config.data.catalogs or ()}
            where = {"catalog_paths": several} if several else {"catalog_path": config.data.catalog}
            say(files.finish({"model_path": str(folder), **where}, num_damaged))


def chosen_views(config: EmbedConfig, embedder: Embedder) -> tuple[str, ...]:
    """The views whose vectors are written."""
    if config.views or config.view:
        return config.views or (config.view or "full",)
    return SHARED_VIEWS if embedder.vector == "contrastive" else ("full",)


def _vectors(embedder: Embedder, batch: Batch, views: tuple[str, ...], config: EmbedConfig) -> dict[str, Vectors]:
    """View -> the vectors of a batch, and which of its items have one."""
    if not config.views and embedder.vector != "contrastive":  # one column, in which every item has a vector, as ever
        return {views[0]: (embedder(batch)[0].cpu().numpy(), np.ones(batch.num_samples, dtype=bool))}
    found = embedder.of_views(batch, views)
    return {view: (of.vectors_BE.cpu().numpy(), of.present_B.cpu().numpy()) for view, of in found.items()}


def _what(config: EmbedConfig, catalog: Items, num_items: int, folder: Path) -> dict[str, Any]:
    """What the vectors are of: whoever resumes them must mean the same."""
    named = {"catalogs": list(catalog.names)} if isinstance(catalog, Catalogs) else {}
    return {
        **named,
        "catalogue": catalog.fingerprint,
        "split": config.split or "all",
        "items": num_items,
        "items_per_file": config.items_per_file,
        "model": digest_of(folder / "model.safetensors"),
        "dtype": config.dtype,
        "max_text_tokens": config.data.max_text_tokens,
    }


def _columns(config: EmbedConfig, embedder: Embedder, views: tuple[str, ...]) -> dict[str, Any]:
    """The part of `_what` about the vectors' columns (`mbsd.io.stored_vectors.column_widths`)."""
    if config.views or len(views) > 1:
        return {"vector": embedder.vector, "views": {view: embedder.width(view) for view in views}}
    return {"vector": embedder.vector, "view": views[0], "width": embedder.width(views[0])}
