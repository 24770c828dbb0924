"""What a user can get wrong about a task: one clear line that names the row, before anything is trained or scored."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Table, write_table
from mbsd.config.parse import parse, parse_scoring
from mbsd.config.run import FinetuneConfig
from mbsd.config.scoring import EmbedConfig, EvaluateConfig
from mbsd.errors import UserError
from tests.ranks import refused
from tests.settings import write_ds_config
from tests.tasks.conftest import Trained
from tests.tasks.market import DRAWN, Market, evaluate_arguments, finetune_arguments
from tests.training.faults import small_shared_memory


def changed(table: Path, out: Path, change: Callable[[dict[str, list[Any]]], None]) -> Path:
    """A table file with other rows, written past every check, as another program might."""
    given = pq.read_table(table)
    columns = given.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=given.schema), out)
    return out


@pytest.mark.distributed
@pytest.mark.parametrize(
    "case", ["label", "empty", "one_label", "unseen", "tag", "catalogue", "kind", "positive", "weights"]
)
def test_fine_tuning(case: str, market: Market, tmp_path: Path) -> None:
    kind, more, table = "categories", ["--task.name=classification"], tmp_path / "table.parquet"
    named: list[str] = [str(table)]
    if case == "label":
        changed(market.table(kind), table, lambda of: of["label"].__setitem__(5, 9))
        named += ["row 6", "label is 9", "0 to 3"]
    elif case == "empty":
        changed(market.table(kind), table, lambda of: of.update(split=["train"] * len(of["split"])))
        named += ["validation split is empty"]
    elif case == "one_label":
        kind, more = "attributes", []
        changed(market.table(kind), table, lambda of: of.update(label=[1] * len(of["label"])))
        named += ["train", "'yes'"]
    elif case == "unseen":
        rows = Table(market.table(kind)).rows("test")

        def add_class(of: dict[str, list[Any]]) -> None:
            of["category"][rows[3]], of["label"][rows[3]] = "hat", 4

        given = pq.read_table(market.table(kind)).to_pydict()
        add_class(given)
        write_table("categories", pa.table(given), Catalog(market.catalog), table)
        named += [f"row {rows[3] + 1}", "'hat'", "test", "train"]
    elif case == "tag":
        kind, more = "attributes", ["--data.max_query_tokens=8"]
        changed(market.table(kind), table, lambda of: of["text"].__setitem__(7, "colour:" + "very " * 9 + "red"))
        named += ["row 8", "data.max_query_tokens=8"]
    elif case == "catalogue":
        build_catalog(
            [Item(f"i{n}", title=f"red {n}") for n in range(40)], None, tmp_path / "other", BuildOptions(progress=False)
        )
        table.write_bytes(market.table(kind).read_bytes())
        more = [*more, f"--data.catalog={tmp_path / 'other'}"]
        named += ["another catalogue", "mbsd tables derive categories"]
    elif case == "kind":
        table.write_bytes(market.table("alignment").read_bytes())
        named += ["holds alignment", "expected categories"]
    elif case == "positive":
        table.write_bytes(market.table(kind).read_bytes())
        more, named = (
            ["--task.name=sensitive", "--task.positive=hats"],
            [str(table), "task.positive=hats", "warm natural"],
        )
    else:
        table.write_bytes(market.table(kind).read_bytes())
        more = [*more, "--task.class_weights=[1,2,3]"]
        named += ["task.class_weights=[1.0, 2.0, 3.0]", "4 classes"]
    words = [*finetune_arguments(market, kind, tmp_path / "run", 2, *DRAWN, *more), "--data.table", table]
    line = refused(2, words, tmp_path / "log", launcher="finetune")
    assert all(name in line for name in named), line
    assert not (tmp_path / "run" / "checkpoints").exists() or not list(
        (tmp_path / "run" / "checkpoints").glob("step-*")
    )


@pytest.mark.distributed
@pytest.mark.parametrize("case", ["unseen", "empty", "another_task", "no_head"])
def test_scoring(case: str, trained: Trained, tmp_path: Path) -> None:
    market, table = trained.market, tmp_path / "table.parquet"
    model, kind, more, named = trained.model("classification"), "categories", [], [str(table)]
    if case == "unseen":
        given = pq.read_table(market.table(kind)).to_pydict()
        row = int(Table(market.table(kind)).rows("test")[3])
        # Classes are known by their names: the new one comes first, so that every number moves.
        names = ["a hat", *sorted(set(given["category"]))]
        given["category"][row] = "a hat"
        given["label"] = [names.index(name) for name in given["category"]]
        write_table("categories", pa.table(given), Catalog(market.catalog), table)
        named += [f"row {row + 1}", "'a hat'", "test", "4"]
    elif case == "empty":
        changed(market.table(kind), table, lambda of: of.update(split=["train"] * len(of["split"])))
        named += ["test split is empty"]
    else:
        table.write_bytes(market.table("attributes").read_bytes())
        kind, more = "attributes", ["--task=attributes"]
        if case == "another_task":
            named = [str(model), "fine-tuned for classification", "task=attributes"]
        else:
            model = tmp_path / "model"
            _save_backbone(trained.model("attributes"), model)
            named = [str(model), "was not fine-tuned"]
    words = [*evaluate_arguments(market, kind, model, tmp_path / "out.json", *more), "--data.table", table]
    line = refused(2, words, tmp_path / "log", launcher="evaluate")
    assert all(name in line for name in named), line
    assert not (tmp_path / "out.json").exists()


def _save_backbone(run: Path, out: Path) -> None:
    from mbsd.checkpoint.resume import weights_folder
    from mbsd.data.text import load_tokenizer
    from mbsd.model.mbsd import MbsdModel

    model = MbsdModel.from_pretrained(weights_folder(str(run)))
    model.config.task = ""
    model.save_pretrained(out)
    load_tokenizer(str(weights_folder(str(run)))).save_pretrained(out)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--task.name=sensitive"], ["task.positive"]),
        (["--task.positive=x"], ["task.positive", "attributes"]),
        (["--task.pair_head=concat"], ["task.pair_head=concat", "attributes"]),
        (["--task.class_weights=[1,2,3]"], ["task.class_weights", "two"]),
        (["--task.class_weights=[1,0]"], ["task.class_weights", "above 0"]),
        (["--task.label_smoothing=1"], ["task.label_smoothing", "below 1"]),
        (["--task.label_smoothing=-0.1"], ["task.label_smoothing=-0.1"]),
        (["--task.class_weights=root"], ["task.class_weights"]),
        (["--task.views=[full,full]"], ["task.views", "once"]),
        (["--best.patience=-1"], ["best.patience=-1"]),
        (["--best.patience=2", "--run.validate_every=0"], ["best.patience=2", "run.validate_every=0"]),
        (["--task.name=clustering"], ["clustering"]),
    ],
)
def test_settings_of_a_task(settings: list[str], named: list[str], tmp_path: Path) -> None:
    words = ["--deepspeed_config", str(write_ds_config(tmp_path)), "--run.dir=r", "--run.max_steps=2",
             "--data.catalog=c", "--data.table=t", *settings]  # fmt: skip
    with pytest.raises(UserError) as error:
        parse(FinetuneConfig, words)
    assert all(name in str(error.value) for name in named), error.value


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (EvaluateConfig, ["--missing.rates=[0.5,1.5]"], "missing.rates"),
        (EvaluateConfig, ["--recalls=[0]"], "recalls"),
        (EvaluateConfig, ["--views=[]"], "nothing would be scored"),
        (EvaluateConfig, ["--views=[text,text]"], "twice"),
        (EvaluateConfig, ["--bootstrap=-1"], "bootstrap=-1"),
        (EvaluateConfig, ["--max_samples=0"], "max_samples=0"),
        (EvaluateConfig, ["--clustering.clusters=1"], "clustering.clusters=1"),
        (EvaluateConfig, ["--micro_batch=0"], "micro_batch=0"),
        (EvaluateConfig, ["--out=o"], "ends in .json"),
        (EmbedConfig, ["--items_per_file=100"], "items_per_file=100"),
        (EmbedConfig, [], "data.table=t"),
    ],
)
def test_settings_of_scoring(kind: Any, settings: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        parse_scoring(
            kind,
            [
                "--model=m",
                "--out=o.json",
                "--data.catalog=c",
                *(["--data.table=t"] if kind is EvaluateConfig or not settings else []),
                *settings,
            ],
        )


def test_the_numbers_of_a_refused_row_count_from_zero(market: Market) -> None:
    assert np.array_equal(Table(market.table("categories")).rows()[:3], [0, 1, 2])


@pytest.mark.distributed
@pytest.mark.skipif(os.geteuid() != 0, reason="a small /dev/shm is mounted, which needs root")
@pytest.mark.parametrize("launcher", ["evaluate", "embed"])
def test_a_small_dev_shm_is_refused_before_anything_is_scored(launcher: str, trained: Trained, tmp_path: Path) -> None:
    market, out = trained.market, tmp_path / ("out.json" if launcher == "evaluate" else "out")
    data = ["--data.image_size=32", "--data.num_workers=2", "--micro_batch=32"]
    words = ["--model", trained.model("attributes"), "--out", out, "--data.catalog", market.catalog, *data]
    if launcher == "evaluate":
        words += ["--data.table", market.table("attributes")]
    line = refused(1, words, tmp_path / "log", launcher=launcher, before=(small_shared_memory, (1,)))
    # Two workers with two batches ready, and two in use.
    assert "/dev/shm: has 1 MB free and the loaders need up to" in line and "(6 micro-batches of up to 0." in line, line
    assert not out.exists() or not list(out.glob("vectors/*.parquet"))
