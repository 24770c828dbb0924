"""The contrastive stage as the launcher runs it: it learns, resumes bit for bit, and refuses what cannot be trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbsd.catalog.keys import write_keys
from mbsd.catalog.reader import Catalog
from mbsd.checkpoint.best import best_validation
from tests.catalog.helpers import image_folder, items_of, small_catalog
from tests.checkpoint.runs import checksums, kill_after, step
from tests.checkpoint.test_exact import ADAMW, FP16, allow_fp16
from tests.conftest import Shop
from tests.ranks import Ranks, launch, refused
from tests.settings import TINY, losses, run_words, stage_1_words
from tests.stages.contrastive_runs import HALF, STEPS, arguments, die_between_passes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def catalog(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's catalogue with keys: titles that several items have are one product."""
    folder = tmp_path_factory.mktemp("keyed") / "catalog"
    shutil.copytree(shop.catalog, folder)
    write_keys(Catalog(folder))
    return folder


CASES: dict[str, dict[str, Any]] = {
    "fp32, LAMB, ZeRO-2": {},
    "fp16": {"fp16": FP16, "zero_optimization": {"stage": 1}},
    "bf16, AdamW, one pass": {"bf16": {"enabled": True}, "optimizer": ADAMW, "gradient_accumulation_steps": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_between_its_passes_ends_bitwise_like_an_undisturbed_one(
    case: str, catalog: Path, tmp_path: Path
) -> None:
    allow = (allow_fp16, ())
    whole, cut = (arguments(tmp_path / name, catalog, **CASES[case]) for name in ("whole", "cut"))
    launch(2, whole, tmp_path / "log", before=allow)
    if case.startswith("fp32"):
        killed = Ranks(2, cut, tmp_path / "log", before=(die_between_passes, (HALF + 3,)))
        assert -signal.SIGKILL in killed.wait()
    else:
        kill_after(Ranks(2, cut, tmp_path / "log", before=allow), step(tmp_path / "cut", HALF))
    assert not (tmp_path / "cut" / "DONE").exists()
    resumed = launch(2, cut, tmp_path / "log", before=allow)
    assert f"resuming {step(tmp_path / 'cut', HALF)}" in resumed.printed()
    assert checksums(step(tmp_path / "cut", STEPS)) == checksums(step(tmp_path / "whole", STEPS))


def test_another_number_of_ranks_and_micro_steps_goes_on(catalog: Path, tmp_path: Path) -> None:
    whole = arguments(tmp_path / "whole", catalog, "--model.dropout=0.0")
    launch(2, whole, tmp_path / "log")
    expected = losses(tmp_path / "whole")
    cut = arguments(tmp_path / "cut", catalog, "--model.dropout=0.0")
    kill_after(Ranks(2, cut, tmp_path / "log"), step(tmp_path / "cut", HALF))
    shutil.rmtree(step(tmp_path / "cut", STEPS), ignore_errors=True)
    for ranks, accumulation in ((1, 1), (4, 2)):
        run = tmp_path / f"to{ranks}"
        shutil.copytree(tmp_path / "cut", run)
        more = arguments(run, catalog, "--model.dropout=0.0", gradient_accumulation_steps=accumulation)
        resumed = launch(ranks, more, tmp_path / "log")
        assert f"resuming {step(run, HALF)} of 2 ranks" in resumed.printed()
        found = losses(run)
        assert sorted(found) == list(range(1, STEPS + 1))
        for number, values in expected.items():
            assert found[number] == pytest.approx(values, rel=1e-6), number


def test_other_keys_or_vectors_are_another_run(catalog: Path, tmp_path: Path) -> None:
    words = arguments(tmp_path / "run", catalog)
    kill_after(Ranks(1, words, tmp_path / "log"), step(tmp_path / "run", HALF))
    found = refused(1, [*words, "--contrastive.same=[title]"], tmp_path / "log")
    assert "keys was 'title." in found and "set it back" in found
    found = refused(1, [*words, "--contrastive.dim=8"], tmp_path / "log")
    assert "is [16, 32] in it and [8, 32] in this model; set the model back" in found


def test_it_learns_from_stage_1_and_stage_2_starts_from_it(shop: Shop, catalog: Path, tmp_path: Path) -> None:
    """What is logged, drawn and handed on."""
    launch(1, stage_1_words(tmp_path / "first", catalog, 2), tmp_path / "log")
    more = [*TINY, "--stage=contrastive", "--contrastive.dim=16", "--run.log_every=1", "--run.validate_samples=24"]
    words = run_words(tmp_path / "run", catalog, 40, *more, "--run.init_from", tmp_path / "first", optimizer=ADAMW)
    launch(2, words, tmp_path / "log")
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last, held_out = rows[0], rows[-2], rows[-1]
    expected = {
        "loss", "loss_image", "loss_text", "accuracy_image", "accuracy_text", "temperature", "positives", "incomplete",
        "modality_gap", "alignment", "uniformity_text", "uniformity_image", "empty_steps", "grad_norm", "samples_per_s",
    }  # fmt: skip
    assert expected <= last.keys()
    assert first["temperature"] == pytest.approx(1 / 0.07) and last["temperature"] != first["temperature"]
    assert last["loss"] < first["loss"] and last["positives"] >= 1
    finds = {f"validation/{m}_{d}" for m in ("r1", "r10") for d in ("text_to_image", "image_to_text", "mean")}
    assert {"validation/loss", *finds} <= held_out.keys()

    board = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"tensors": 0, "images": 0})
    board.Reload()
    image = board.Images("nearest/pictures_of_titles")[-1]
    assert (image.width, image.height) == (6 * 36 - 4, 6 * 36 - 4)  # six queries with five pictures each
    (table,) = board.Tensors("nearest/titles_of_pictures/text_summary")[-1].tensor_proto.string_val
    assert len(table.decode().splitlines()) == 8 and table.decode().count("|") == 8 * 7
    assert (tmp_path / f"run/tensorboard/{40:05d}").is_dir()  # vectors of the projector

    best = best_validation(tmp_path / "run")
    assert best.metric == "r1_mean" and best.value == held_out["validation/r1_mean"]
    saved = load_file(tmp_path / f"run/checkpoints/step-{40:08d}/model/model.safetensors")
    assert saved["text_projection.weight"].shape == (16, 32) and saved["logit_scale"].shape == (1,)
    second = run_words(
        tmp_path / "second", shop.catalog, 1, "--stage=matching", "--data.table", shop.pairs, "--data.image_size=32",
        "--data.num_workers=0", "--run.init_from", tmp_path / "run", "--run.validate_samples=8",
    )  # fmt: skip
    launch(1, second, tmp_path / "log")

    for name, words, starts in (
        ("goes_on", (), last["temperature"]),
        ("anew", ("--contrastive.temperature_start=5",), 5.0),
    ):
        ended = ["--run.init_from", tmp_path / "run", "--run.max_steps=1", *words]
        launch(1, run_words(tmp_path / name, catalog, 1, *more, *ended), tmp_path / "log")
        (row, *_) = (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(row)["temperature"] == pytest.approx(starts, rel=0.02)


REFUSED = {
    "a global batch of one": ((), {"train_batch_size": 1, "gradient_accumulation_steps": 1}, "train_batch_size=1: "),
    "no keys": ((), {}, "has no identity keys"),
    "a best metric that no validation has": (("--best.metric=f1_full",), {}, "best.metric=f1_full: validations of"),
    "a model of titles": (
        ("--model.architecture=bert", "--model.patchify_strides=[4,2,2,2]", "--model.patchify_channels=[64,192,384]"),
        {}, "the view image is none of a bert",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained(case: str, shop: Shop, catalog: Path, tmp_path: Path) -> None:
    more, ds, said = REFUSED[case]
    where = shop.catalog if case == "no keys" else catalog
    assert said in refused(1, arguments(tmp_path / "run", where, *more, **ds), tmp_path / "log")


@pytest.mark.parametrize("lacks", ["picture", "title"])
def test_a_split_in_which_nothing_can_be_compared(lacks: str, tmp_path: Path) -> None:
    items = [dataclasses.replace(item, title="" if lacks == "title" else item.title) for item in items_of(30)]
    images = image_folder(tmp_path / "images", 30) if lacks == "title" else None
    catalog = small_catalog(tmp_path / "catalog", items, images)
    write_keys(catalog)
    said = refused(2, arguments(tmp_path / "run", catalog.path), tmp_path / "log")
    number = len(catalog.indices("train"))
    assert f"catalogue {catalog.path}: none of the {number} items of its train split has a {lacks}" in said


def test_without_keys_each_item_can_be_its_own_product(shop: Shop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(1, arguments(run, shop.catalog, "--contrastive.targets=own", "--run.max_steps=2"), tmp_path / "log")
    assert len(losses(run)) == 2
