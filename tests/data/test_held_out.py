"""Training on a catalogue without the items on which a table of it is tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Kind, Table, write_table
from mbsd.config.data import DataConfig
from mbsd.config.run import BaseConfig, RunConfig
from mbsd.config.scoring import EmbedConfig
from mbsd.data.inputs import open_catalog, split_samples
from mbsd.errors import UserError
from mbsd.tools.plan.shapes import num_samples


def settings(catalog: Catalog, **data: Any) -> BaseConfig:
    return BaseConfig(RunConfig("run", max_steps=1), DataConfig(str(catalog.path), **data))


def table_of(kind: Kind, catalog: Catalog, out: Path, held_out: list[int], trained: list[int]) -> Path:
    """A row for each two of `held_out`, in validation and test in turn, and of `trained`, in train."""
    items = np.array([held_out, trained]).reshape(-1, 2)
    split = [*(["validation", "test"] * len(held_out))[: len(held_out) // 2], *["train"] * (len(trained) // 2)]
    if kind == "alignment":
        columns: dict[str, Any] = {"item_a": items[:, 0], "item_b": items[:, 1], "label": [1] * len(items)}
    else:
        columns = {"item": items.ravel(), "label": [0] * items.size, "category": ["x"] * items.size}
        split = [name for name in split for _ in range(2)]
    write_table(kind, pa.table({**columns, "split": split}), catalog, out)
    return out


@pytest.mark.parametrize("kind", ["categories", "alignment"])
def test_what_a_table_is_tested_on_is_not_trained_on(catalog: Catalog, tmp_path: Path, kind: Kind) -> None:
    train = catalog.indices("train").tolist()
    held_out, trained = [*train[:3], int(catalog.indices("test")[0])], train[3:7]
    path = table_of(kind, catalog, tmp_path / "t.parquet", held_out, trained)
    assert Table(path).column("split").count("train") and Table(path).column("split").count("test")
    config = settings(catalog, held_out=(str(path),))
    left = split_samples(config, catalog, None, "train")
    assert [left[n].item for n in range(len(left))] == train[3:]
    assert num_samples(config) == len(train) - 3, "as planned"
    both = split_samples(settings(catalog, held_out=(str(path),), drop_incomplete=True), catalog, None, "train")
    whole = catalog.is_complete()
    assert [both[n].item for n in range(len(both))] == [item for item in train[3:] if whole[item]]
    for split in ("validation", "test"):  # these are not trained on
        assert len(split_samples(config, catalog, None, split)) == len(catalog.indices(split))


def test_where_there_is_nothing_to_leave_out(catalog: Catalog, pairs: Table, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"none.parquet: no such file"):
        split_samples(settings(catalog, held_out=(missing,)), catalog, None, "train")
    assert num_samples(settings(catalog, held_out=(missing,))) is None
    data = DataConfig(str(catalog.path), table=str(pairs.path), held_out=(missing,))
    with pytest.raises(UserError, match=r"data.held_out=.* and data.table=.*: a table has splits of its own"):
        open_catalog(data, "pairs")
    with pytest.raises(UserError, match=r"data.held_out=.*: it is a setting of training; remove it"):
        EmbedConfig("model", DataConfig(str(catalog.path), held_out=(missing,)), "out").check()


def test_of_several_tables_all_items_count_and_nothing_left_is_said(catalog: Catalog, tmp_path: Path) -> None:
    train = catalog.indices("train").tolist()
    paths = tuple(
        str(table_of("categories", catalog, tmp_path / f"{n}.parquet", train[2 * n : 2 * n + 2], train[-2:]))
        for n in range(2)
    )
    left = split_samples(settings(catalog, held_out=paths), catalog, None, "train")
    assert [left[n].item for n in range(len(left))] == train[4:]
    whole = train if len(train) % 2 == 0 else [*train, train[0]]
    everything = str(table_of("categories", catalog, tmp_path / "all.parquet", whole, whole))
    with pytest.raises(UserError, match=r"nothing is left beside the items that data.held_out=\[.*all.parquet"):
        split_samples(settings(catalog, held_out=(everything,)), catalog, None, "train")
