"""What a recipe reads: the catalogue and table that its settings name, as samples, a builder and batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from mbsd.batch import Batch
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Kind, Table
from mbsd.config.data import DataConfig
from mbsd.config.stages import MaskingConfig
from mbsd.data.damaged import DamagedPictures
from mbsd.data.decode_dali import make_decoder
from mbsd.data.loader import BatchBuilder, CatalogSamples, Samples, TableSamples, eval_batches
from mbsd.errors import UserError
from mbsd.model.config import MbsdConfig
from mbsd.parallel.world import World


def open_inputs(data: DataConfig, table_kind: Kind | None) -> tuple[Catalog, Table | None]:
    """The catalogue, and the table where the settings name one, which must be of this kind and catalogue."""
    catalog = Catalog(data.catalog)
    return catalog, Table(data.table, catalog, kind=table_kind) if data.table is not None else None


def split_samples(catalog: Catalog, table: Table | None, split: str) -> Samples:
    """The rows of the table's split, or the catalogue's items.

    Raises:
        UserError: there are none.
    """
    samples: Samples = TableSamples(table, split) if table is not None else CatalogSamples(catalog, split)
    if len(samples) == 0:
        source = table.path if table is not None else catalog.path
        raise UserError(f"{source}: its {split} split is empty; use more items")
    return samples


def make_builder(
    data: DataConfig,
    catalog: Catalog,
    tokenizer: PreTrainedTokenizerBase,
    model: MbsdConfig,
    views: tuple[str, ...],
    world: World,
    micro_batch: int,
    *,
    masking: MaskingConfig | None = None,
    seed: int = 0,
    train: bool = False,
    label_dtype: torch.dtype | None = torch.float32,
) -> BatchBuilder:
    """Of a run's settings and its model's shape.

    Raises:
        UserError: a view that the model does not read.
    """
    model.require_views(views, "views")
    decoder = make_decoder(data.decoder, data.image_size, world.device, num_threads=2, max_batch=micro_batch)
    return BatchBuilder(
        catalog,
        tokenizer,
        data,
        views,
        patches_per_image=model.num_patches,
        image_cls=model.image_cls,
        masking=masking,
        seed=seed,
        train=train,
        decoder=decoder,
        label_dtype=None if masking is not None else label_dtype,
    )


def batches_of(
    samples: Samples,
    builder: BatchBuilder,
    data: DataConfig,
    world: World,
    micro_batch: int,
    limit: int | None,
    corrupt: DamagedPictures,
) -> Iterator[Batch]:
    """This rank's batches of all samples, or of `limit` of them."""
    return eval_batches(
        samples,
        builder,
        micro_batch=micro_batch,
        rank=world.rank,
        world_size=world.size,
        limit=limit,
        num_workers=data.num_workers,
        device=world.device,
        corrupt=corrupt,
    )
