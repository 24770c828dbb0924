"""Catalogue → batches: what a run's settings name, opened: catalogue, task table, samples, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mbsd.catalog.keys import open_keys
from mbsd.catalog.remote import open_catalog_at
from mbsd.catalog.several import Catalogs, Items
from mbsd.catalog.tables import Kind, Table
from mbsd.config.data import DataConfig
from mbsd.config.run import BaseConfig
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.decode_dali import make_decoder
from mbsd.data.samples import CatalogSamples, Samples, TableSamples
from mbsd.data.spec import BatchSpec, Targets
from mbsd.errors import UserError
from mbsd.model.config import BackboneConfig
from mbsd.parallel.world import World


@dataclass(frozen=True)
class Inputs:
    """What a training run reads.

    Attributes:
        catalog, table: as the settings name them; no table where the stage reads none.
        tokenizer: that the run begins with.
        weights: the transformers folder of run.init_from; None where that is not set.
    """

    catalog: Items
    table: Table | None
    tokenizer: PreTrainedTokenizerBase
    weights: Path | None = None

    @property
    def labels(self) -> Table:
        """The table of a stage that has one."""
        assert self.table is not None, "a stage that reads labels needs a table, which its settings check"
        return self.table


def open_items(data: DataConfig) -> Items:
    """The catalogue that the settings name, or all of them behind one face.

    Raises:
        UserError: one is not there or cannot be read.
    """
    data.check()
    if data.catalogs is not None:
        return Catalogs({one.known_as: open_catalog_at(one.path, data.cache, data.cache_gb) for one in data.catalogs})
    assert data.catalog is not None, "DataConfig.check"
    return open_catalog_at(data.catalog, data.cache, data.cache_gb)


def open_catalog(data: DataConfig, table: Kind | None) -> tuple[Items, Table | None]:
    """The catalogue, or all of them, and a table of this kind over it; None: what is trained or scored reads no table.

    Raises:
        UserError: one of them is not there or cannot be read, the table is of another kind or catalogue, or a table is
            named where none is read, or the other way round.
    """
    if table is None and data.table is not None:
        raise UserError(f"data.table={data.table}: no table is read here, only the catalogue: remove it")
    if table is not None and data.table is None:
        raise UserError(f"data.table is not set: name a table of {table} (`mbsd tables`, `mbsd pairs mine`)")
    if data.table is not None and data.held_out:
        raise UserError(
            f"data.held_out={list(data.held_out)} and data.table={data.table}: a table has splits of its own, and only "
            "where the catalogue alone is read are the items of another one's left out: remove it"
        )
    if data.table is not None and data.drop_incomplete:
        raise UserError(
            f"data.drop_incomplete=true and data.table={data.table}: a table names its own items, and only where the "
            "catalogue alone is read are some left out: remove it"
        )
    catalog = open_items(data)
    return catalog, Table(data.table, catalog, kind=table) if data.table is not None else None


def catalog_samples(data: DataConfig, catalog: Items, split: str) -> CatalogSamples:
    """The items of a split, without those that data.drop_incomplete and, of train, data.held_out leave out.

    Raises:
        UserError: a table of data.held_out is not there, cannot be read, or is of another catalogue.
    """
    without = None
    if data.held_out and split == "train":
        without = np.unique(np.concatenate([_tested_items(Table(path, catalog)) for path in data.held_out]))
    return CatalogSamples(catalog, split, complete=data.drop_incomplete, without=without)


def _tested_items(table: Table) -> NDArray[np.int64]:
    rows = np.concatenate([table.rows("validation"), table.rows("test")])
    names = ("item_a", "item_b") if table.kind == "alignment" else ("item",)
    return np.concatenate([table.column(name)[rows] for name in names])


def split_samples(config: BaseConfig, catalog: Items, table: Table | None, split: str) -> Samples:
    """The rows of the table's split, or the catalogue's items, as `catalog_samples` has them.

    Raises:
        UserError: there are none.
    """
    complete = config.data.drop_incomplete
    samples: Samples = TableSamples(table, split) if table is not None else catalog_samples(config.data, catalog, split)
    if len(samples) == 0:
        source = table.path if table is not None else catalog.path
        empty = "has no item with both title and picture (data.drop_incomplete=true)" if complete else "is empty"
        if table is None and config.data.held_out and split == "train":
            raise UserError(
                f"{source}: of its train split nothing is left beside the items that data.held_out="
                f"{list(config.data.held_out)} tests{', and those without title or picture' if complete else ''}; use "
                "more items, or leave data.held_out out"
            )
        raise UserError(f"{source}: its {split} split {empty}; use more items")
    return samples


@dataclass(frozen=True)
class Builders:
    """Makes the builders of a run, which differ in views and targets alone.

    Attributes:
        source, tokenizer, data: what they read.
        model: configuration of the model that reads their batches.
        max_batch: samples that a batch has at most.
    """

    source: Items
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    model: BackboneConfig
    max_batch: int

    def build(
        self, views: tuple[str, ...], targets: Targets, world: World, *, train: bool = False, seed: int = 0
    ) -> BatchBuilder:
        """A builder of batches in these views.

        Raises:
            UserError: a view that the model does not read, or keys of items that are needed and not there, or damaged.
        """
        self.model.require_views(views, "views")
        decoder = make_decoder(
            self.data.decoder, self.data.image_size, world.device, num_threads=2, max_batch=self.max_batch
        )
        spec = BatchSpec(views, targets, self.model.num_patches, self.model.has_image_cls, train, seed)
        keys, same = None, spec.same_product
        if same is not None:
            keys = open_keys(self.source, same.same, required=same.required)
        return BatchBuilder(self.source, self.tokenizer, self.data, spec, decoder, keys)
