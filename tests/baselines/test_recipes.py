"""Baselines through the launchers that train and score MBSD, on the same tables; and what they refuse."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import derive_table
from mbsd.config.parse import parse
from mbsd.config.run import FinetuneConfig
from mbsd.errors import UserError
from mbsd.io.stored_vectors import read_vectors
from mbsd.tools.export.export import export
from tests.conftest import Shop
from tests.ranks import Ranks, launch
from tests.settings import ADAM, losses, run_words, scoring_words, stage_2_words, write_ds_config

SIZES = [
    "--data.image_size=32", "--data.num_workers=0", "--data.crop_scale=[1.0,1.0]", "--data.flip_probability=0",
    "--model.hidden_size=32", "--model.num_hidden_layers=2", "--model.num_attention_heads=2",
    "--model.intermediate_size=64", "--model.vocab_size=600", "--model.dropout=0.0", "--model.initializer_range=0.15",
]  # fmt: skip
# Architecture -> kind of table, ranks, rows of a step and of the table's training split, steps, view, settings.
RUNS: dict[str, tuple[str, int, int, int, str, list[str]]] = {
    "bert": ("attributes", 2, 16, 30, "text", []),
    "vit": ("attributes", 2, 16, 30, "image", ["--model.patchify_strides=[8]"]),
    "vilt": ("classification", 2, 16, 30, "full", ["--model.patchify_strides=[8]"]),
    "fashionbert": ("classification", 2, 8, 8, "full", ["--model.crop_size=8"]),
    "kaleido": ("classification", 2, 8, 6, "full", ["--model.crop_size=8", "--model.resnet_blocks=[1,1,1]"]),
    "two_tower": ("attributes", 2, 16, 30, "text", ["--model.patchify_strides=[8]"]),
}
# Architecture -> its own stage of pre-training. two_tower: below; m6, ofa: tests/stages/test_generative.py.
OWN_STAGE = {"bert": "masked", "vit": "masked", "vilt": "vilt", "fashionbert": "fashionbert", "kaleido": "kaleido"}


@pytest.fixture(scope="module")
def tables(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """(kind, rows to train on) -> a table with so few of them that any model can learn them by heart."""
    folder = tmp_path_factory.mktemp("tables")
    derive_table("categories", Catalog(shop.catalog), folder / "categories.parquet")
    whole = {"attributes": shop.tags, "classification": folder / "categories.parquet"}
    few = {}
    for kind, count in {(kind, rows) for kind, _, rows, *_ in RUNS.values()}:
        given = pq.read_table(whole[kind])
        rows = np.array(given["split"].to_pylist())
        keep = np.sort(np.concatenate([np.flatnonzero(rows == "train")[:count], np.flatnonzero(rows != "train")]))
        classes = set(np.array(given["label"].to_pylist())[keep[rows[keep] == "train"]].tolist())
        keep = [row for row in keep.tolist() if given["label"][row].as_py() in classes]
        few[kind, count] = folder / f"few_{kind}_{count}.parquet"
        pq.write_table(given.take(keep), few[kind, count])
    return few


def arguments_of(name: str, shop: Shop, table: Path, run: Path) -> list[object]:
    kind, _, rows, steps, view, more = RUNS[name]
    words = [
        "--data.table", table, "--run.log_every=1", "--run.validate_every=0", "--run.validate_samples=16",
        f"--task.name={kind}", f"--task.views=[{view}]", f"--model.architecture={name}", *SIZES, *more,
    ]  # fmt: skip
    return run_words(run, shop.catalog, steps, *words, train_batch_size=rows, optimizer=ADAM)


@pytest.mark.distributed
@pytest.mark.parametrize("name", RUNS)
def test_it_learns_and_is_scored(name: str, shop: Shop, tables: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    kind, ranks, rows, _, view, _ = RUNS[name]
    table = tables[kind, rows]
    run, out, begun = tmp_path / "run", tmp_path / "scores.json", []
    if name in OWN_STAGE:
        first = tmp_path / "pre-trained"
        words = [*SIZES, *RUNS[name][-1], f"--model.architecture={name}", f"--stage={OWN_STAGE[name]}"]
        launch(2, run_words(first, shop.catalog, 2, *words, train_batch_size=8, optimizer=ADAM), tmp_path / "first")
        begun = [f"--run.init_from={first}"]
    launch(ranks, [*arguments_of(name, shop, table, run), *begun], tmp_path / "log", launcher="finetune")
    found = [line["loss"] for _, line in sorted(losses(run).items())]
    # A ResNet makes few steps in the time that a test has.
    share = 0.97 if name in ("fashionbert", "kaleido") else 0.8
    assert statistics.fmean(found[-3:]) < share * statistics.fmean(found[:3])
    few = ["--bootstrap=0", "--max_samples=12", "--micro_batch=8"]
    scored = scoring_words(run, out, shop.catalog, table, *few)
    launch(2, [*scored, f"--views=[{view}]"], tmp_path / "scoring", launcher="evaluate")
    result = json.loads(out.read_text())
    assert result["samples"] == 12 and 0 <= result["views"][view]["all"]["accuracy"] <= 1
    if name in OWN_STAGE:
        words = ["--model", run, "--out", tmp_path / "vectors", "--data.catalog", shop.catalog, f"--view={view}"]
        launch(2, [*words, "--data.image_size=32", "--data.num_workers=0"], tmp_path / "embedding", launcher="embed")
        vectors = read_vectors(tmp_path / "vectors").vectors_nE
        assert vectors.shape == (len(Catalog(shop.catalog)), 32) and np.ptp(vectors, axis=0).min() > 0
    if name == "bert":
        start = Ranks(1, scored, tmp_path / "refused", launcher="evaluate")  # full, text and image
        assert start.wait() == [2] and "a bert, which reads text alone" in start.errors()[0]
        with pytest.raises(UserError, match="holds a baseline"):
            export(run, tmp_path / "exported")
        more = [*arguments_of(name, shop, table, tmp_path / "next"), f"--run.init_from={run}"]
        start = Ranks(1, [*more, "--model.architecture=mbsd"], tmp_path / "other", launcher="finetune")
        assert start.wait() == [2] and "is a bert; set model.architecture=bert" in start.errors()[0]
        launch(1, [*more, "--run.max_steps=1"], tmp_path / "same", launcher="finetune")
    if name == "two_tower":  # the other tower, from the same weights
        more = [*arguments_of(name, shop, table, tmp_path / "next"), f"--run.init_from={run}", "--task.views=[image]"]
        launch(1, [*more, "--run.max_steps=6"], tmp_path / "image", launcher="finetune")
        found = losses(tmp_path / "next")
        assert sorted(found) == list(range(1, 7)) and found[6]["loss"] < found[1]["loss"]


@pytest.mark.distributed
def test_a_view_that_it_cannot_read(shop: Shop, tmp_path: Path) -> None:
    arguments = [*arguments_of("vit", shop, shop.tags, tmp_path / "run"), "--task.views=[full]"]
    start = Ranks(2, arguments, tmp_path / "log", launcher="finetune")
    assert start.wait() == [2, 2] and len(start.errors()) == 1
    assert "a vit, which reads image alone" in start.errors()[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--model.architecture=bert", "--model.patchify_channels=[16]"], "patchify_channels=.16.*=bert does not read"),
        (["--model.architecture=vit", "--model.image_cls=true"], "model.image_cls=True.*=vit does not read"),
        (["--model.architecture=vilt", "--model.crop_size=64"], "model.crop_size=64.*=vilt does not read"),
        (["--model.crop_size=64"], "model.crop_size=64.*=mbsd does not read"),
        (["--model.architecture=kaleido", "--model.crop_size=0"], "model.crop_size=0: expected 1 or more"),
        (["--model.architecture=kaleido", "--model.image_weights=a.pth", "--run.init_from=b"], "both name weights"),
    ],
)
def test_settings_of_another_architecture(settings: list[str], said: str, tmp_path: Path) -> None:
    config = write_ds_config(tmp_path)
    given: list[Any] = [
        "--deepspeed_config", config, "--run.dir=r", "--run.max_steps=1", "--data.catalog=c", "--data.table=t",
    ]  # fmt: skip
    with pytest.raises(UserError, match=said):
        parse(FinetuneConfig, [*map(str, given), *settings])


@pytest.mark.distributed
def test_a_baseline_is_trained_by_the_stages_it_can_read(shop: Shop, tmp_path: Path) -> None:
    """Matching reads three views: ViLT has them, BERT has not."""
    run = tmp_path / "run"
    vilt = [*SIZES, "--model.architecture=vilt", "--model.patchify_strides=[8]", "--run.log_every=1"]
    words = stage_2_words(run, shop.catalog, shop.pairs, 3, *vilt)
    launch(2, words, tmp_path / "log")
    assert sorted(losses(run)) == [1, 2, 3] and "loss_kl" in losses(run)[1]
    words = stage_2_words(tmp_path / "bert", shop.catalog, shop.pairs, 3, *SIZES, "--model.architecture=bert")
    start = Ranks(1, words, tmp_path / "refused")
    assert start.wait() == [2] and "a bert, which reads text alone" in start.errors()[0]


@pytest.mark.distributed
def test_two_towers_are_trained_by_contrast_and_then_for_a_task(shop: Shop, tmp_path: Path) -> None:
    """In two passes; a task reads one of the two towers. Masked patches and three views are not theirs."""
    run, towers = tmp_path / "run", [*SIZES, "--model.architecture=two_tower", "--model.patchify_strides=[8]"]
    of_stage = [*towers, "--stage=contrastive", "--contrastive.targets=own", "--contrastive.check_passes=true"]
    words = run_words(
        run, shop.catalog, 12, *of_stage, "--run.log_every=1", train_batch_size=16, train_micro_batch_size_per_gpu=4,
        optimizer=ADAM,
    )  # fmt: skip
    launch(2, words, tmp_path / "log")
    found = [line["loss"] for _, line in sorted(losses(run).items())]
    assert len(found) == 12 and statistics.fmean(found[-3:]) < statistics.fmean(found[:3])
    for view in ("text", "image"):
        words = arguments_of("two_tower", shop, shop.tags, tmp_path / view)
        launch(1, [*words, f"--task.views=[{view}]", "--run.max_steps=2", f"--run.init_from={run}"],
               tmp_path / f"log_{view}", launcher="finetune")  # fmt: skip
    for name, words in (
        ("masked", run_words(tmp_path / "masked", shop.catalog, 3, *towers)),
        ("matching", stage_2_words(tmp_path / "matching", shop.catalog, shop.pairs, 3, *towers)),
    ):
        start = Ranks(1, words, tmp_path / f"refused_{name}")
        assert start.wait() == [2] and "two_tower" in start.errors()[0]
