"""Whole runs, one of them through DeepSpeed's launcher: world sizes agree, losses are the golden ones."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import Shop
from tests.ranks import deepspeed, launch
from tests.settings import losses, stage_1_words, stage_2_words

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20
EVERY_STEP = ["--run.log_every=1", "--run.validate_samples=30", "--run.seed=3"]


def stage_1(run: Path, shop: Shop, *more: object, **ds: Any) -> list[object]:
    return stage_1_words(run, shop.catalog, STEPS, *EVERY_STEP, *more, **ds)


def stage_2(run: Path, shop: Shop, start: Path, **ds: Any) -> list[object]:
    small = ["--data.image_size=32", "--data.num_workers=1", "--model.dropout=0.0"]
    return stage_2_words(run, shop.catalog, shop.pairs, STEPS, *EVERY_STEP, "--run.init_from", start, *small, **ds)


@pytest.fixture(scope="module")
def runs(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both stages, each on 1 rank with 2 micro-steps and on 2 ranks, for the same global batch."""
    folder = tmp_path_factory.mktemp("runs")
    done = {}
    # Through DeepSpeed's launcher where there are two; else, and faster, as ranks that are forked.
    starts = {1: partial(launch, log=folder / "log"), 2: lambda ranks, words: deepspeed(ranks, "pretrain", *words)}
    for ranks, start in starts.items():
        ds = {"gradient_accumulation_steps": 2 // ranks}
        done[f"stage1_{ranks}"] = folder / f"stage1_{ranks}"
        start(ranks, stage_1(done[f"stage1_{ranks}"], shop, **ds))
        done[f"stage2_{ranks}"] = folder / f"stage2_{ranks}"
        launch(ranks, stage_2(done[f"stage2_{ranks}"], shop, done["stage1_1"], **ds), folder / "log")
    return done


@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_ranks_learn_what_one_rank_learns(runs: dict[str, Path], stage: str) -> None:
    one, two = losses(runs[f"{stage}_1"]), losses(runs[f"{stage}_2"])
    assert sorted(one) == sorted(two) == list(range(1, STEPS + 1))
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-4, abs=1e-6), step
    for step, values in losses(runs[f"{stage}_1"], "validation/").items():
        assert losses(runs[f"{stage}_2"], "validation/")[step] == pytest.approx(values, rel=1e-4, abs=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_golden_losses(runs: dict[str, Path], stage: str, request: pytest.FixtureRequest) -> None:
    """The losses of 20 seeded steps; a change that moves them is either a mistake or is written anew and explained."""
    found = {str(step): values for step, values in losses(runs[f"{stage}_1"]).items()}
    path = GOLDEN / f"{stage}.json"
    if request.config.getoption("--write-golden"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert found.keys() == golden.keys()
    for step, values in golden.items():
        assert found[step] == pytest.approx(values, rel=1e-3, abs=1e-5), step


@pytest.mark.distributed
def test_losses_fall(runs: dict[str, Path]) -> None:
    first, last = losses(runs["stage1_2"])[1], losses(runs["stage1_2"])[STEPS]
    assert last["loss_mlm"] < first["loss_mlm"] - 0.05
    assert last["loss_mpm"] < first["loss_mpm"] - 0.05


@pytest.mark.distributed
def test_a_run_folder_holds_what_it_says(runs: dict[str, Path]) -> None:
    run = runs["stage2_2"]
    assert {"config.yaml", "ds_config.json", "environment.json", "metrics.jsonl", "DONE"} <= set(os.listdir(run))
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    low, middle, high = (board.Scalars(f"trust_ratio/layer_01/{kind}") for kind in ("min", "median", "max"))
    assert [e.step for e in middle] == list(range(1, STEPS + 1))
    assert all(0 < a.value < b.value < c.value for a, b, c in zip(low, middle, high, strict=True))
    checkpoint = run / "checkpoints" / f"step-{STEPS:08d}"
    assert (run / "checkpoints" / "latest").read_text() == checkpoint.name
    assert (checkpoint / "model" / "model.safetensors").is_file()
    resolved = json.loads((run / "ds_config.json").read_text())
    assert resolved["scheduler"]["params"]["total_num_steps"] == STEPS
    assert resolved["scheduler"]["params"]["warmup_num_steps"] == STEPS // 10
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])
    expected = "step epoch samples loss loss_qi loss_qt loss_qv loss_kl loss_rs lr grad_norm samples_per_s tokens_per_s"
    assert set(expected.split()) | {"data_wait"} <= last.keys()


@pytest.mark.distributed
def test_what_gets_no_gradient_is_named_once_and_stays(shop: Shop, tmp_path: Path) -> None:
    """Without masked patches nothing reaches their decoder; ZeRO gives it gradients of 0, and LAMB would decay it."""
    run = tmp_path / "run"
    every_step = ["--run.max_steps=4", "--run.save_every=1", "--run.keep_last=9"]
    arguments = stage_1(run, shop, "--masking.mpm_probability=0", *every_step)
    named = launch(2, arguments, tmp_path / "log").lines("no gradient in step 1")
    assert len(named) == 1 and "model.patch_decoder.weight" in named[0] and "encoder" not in named[0]
    first, last = (load_file(run / f"checkpoints/step-0000000{step}/model/model.safetensors") for step in (1, 4))
    assert torch.equal(first["patch_decoder.weight"], last["patch_decoder.weight"])
    assert not torch.equal(first["word_transform.dense.weight"], last["word_transform.dense.weight"])


@pytest.mark.distributed
def test_a_finished_run_is_not_run_again(runs: dict[str, Path], shop: Shop) -> None:
    run = runs["stage1_1"]
    before = (run / "metrics.jsonl").read_bytes()
    launch(1, stage_1(run, shop), run.parent / "log")
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.distributed
def test_bf16_with_dali_learns_what_float32_with_torchvision_learns(
    shop: Shop, runs: dict[str, Path], tmp_path: Path
) -> None:
    ds = {"gradient_accumulation_steps": 1, "bf16": {"enabled": True}}
    launch(2, stage_1(tmp_path / "run", shop, "--data.decoder=dali", **ds), tmp_path / "log")
    expected = losses(runs["stage1_2"])
    for step, values in losses(tmp_path / "run").items():
        assert values == pytest.approx(expected[step], rel=0.03), step


@pytest.mark.distributed
def test_titles_and_images_may_be_missing(tmp_path: Path) -> None:
    """Micro-batches without any image on one rank and with some on the other: neither rank waits for the other."""
    from PIL import Image

    from mbsd.catalog.build.build import BuildOptions, build_catalog
    from mbsd.catalog.sources import Item

    (tmp_path / "images").mkdir()
    items = []
    for number in range(60):
        name = f"{number}.jpg" if number % 8 == 0 else ""
        if name:
            Image.new("RGB", (40, 40), (4 * number, 80, 120)).save(tmp_path / "images" / name)
        items.append(Item(f"i{number}", title="" if number % 16 == 0 else f"red dress {number}", image=name))
    build_catalog(items, tmp_path / "images", tmp_path / "catalog", BuildOptions(workers=1, progress=False))
    shop = Shop(tmp_path / "catalog", tmp_path, tmp_path)
    launch(2, stage_1(tmp_path / "run", shop, train_batch_size=4), tmp_path / "log")
    logged = losses(tmp_path / "run")
    assert sorted(logged) == list(range(1, STEPS + 1))
    assert any(values["loss_mpm"] == 0 for values in logged.values()), "no global batch was without an image"
    assert any(values["loss_mpm"] > 0 for values in logged.values())
