"""The generative stage as the launcher runs it: M6 and OFA learn to write, resume bit for bit, and are fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import derive_table
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.errors import UserError
from mbsd.io.stored_vectors import read_vectors
from mbsd.stages.generative import GENERATIVE
from tests.checkpoint.runs import checksums, kill_after, step
from tests.conftest import Shop
from tests.ranks import Ranks, launch
from tests.settings import ADAM, losses, run_words, scoring_words, write_ds_config

STEPS, HALF = 10, 5
OF_8 = {"train_batch_size": 8, "gradient_accumulation_steps": 2, "optimizer": ADAM}
TASKS = {"m6": "attributes", "ofa": "classification"}
SMALL = [
    "--data.image_size=32", "--data.num_workers=0", "--model.hidden_size=32", "--model.num_hidden_layers=2",
    "--model.num_attention_heads=2", "--model.intermediate_size=64", "--model.vocab_size=600",
    "--model.initializer_range=0.15", "--model.dropout=0.0",
]  # fmt: skip
MODELS: dict[str, list[str]] = {
    "m6": ["--model.architecture=m6", "--model.crop_size=8", "--model.resnet_blocks=[1,1,1]"],
    "ofa": ["--model.architecture=ofa", "--model.resnet_blocks=[1,1,1]"],
}


def arguments(name: str, run: Path, shop: Shop, **ds: Any) -> list[object]:
    """Saved in the middle of its first epoch and at its end."""
    words = [
        "--stage=generative", *SMALL, *MODELS[name], f"--run.save_every={HALF}", "--run.log_every=1",
        f"--run.validate_every={HALF}", "--run.validate_samples=24",
    ]  # fmt: skip
    return run_words(run, shop.catalog, STEPS, *words, **{**OF_8, **ds})


@pytest.mark.distributed
@pytest.mark.parametrize("name", MODELS)
def test_it_learns_to_write_and_then_a_task(name: str, shop: Shop, tmp_path: Path) -> None:
    """A killed run ends bitwise like the whole; one rank has the losses of two with micro-steps; held-out losses fall;
    then a task on two ranks, its scores, and vectors of both."""
    whole, cut, one = (tmp_path / run for run in ("whole", "cut", "one"))
    launch(2, arguments(name, whole, shop), tmp_path / "log")
    kill_after(Ranks(2, arguments(name, cut, shop), tmp_path / "log"), step(cut, HALF))
    assert not (cut / "DONE").exists()
    resumed = launch(2, arguments(name, cut, shop), tmp_path / "log")
    assert f"resuming {step(cut, HALF)}" in resumed.printed()
    assert checksums(step(cut, STEPS)) == checksums(step(whole, STEPS))

    launch(1, arguments(name, one, shop, gradient_accumulation_steps=1), tmp_path / "log")
    for prefix, steps in (("", list(range(1, STEPS + 1))), ("validation/", [HALF, STEPS])):
        expected, found = losses(whole, prefix), losses(one, prefix)
        assert sorted(found) == sorted(expected) == steps
        for number, values in expected.items():
            assert found[number] == pytest.approx(values, rel=2e-4), (prefix, number)
    held_out = losses(one, "validation/")
    for task in ("", "_captioning", "_denoising"):
        assert held_out[STEPS][f"validation/loss{task}"] < held_out[HALF][f"validation/loss{task}"] - 0.05

    kind = TASKS[name]
    table, tuned, out = shop.tags, tmp_path / kind, tmp_path / "scores.json"
    if kind == "classification":
        table = tmp_path / "categories.parquet"
        derive_table("categories", Catalog(shop.catalog), table)
    words = [
        "--data.table", table, f"--task.name={kind}", "--task.views=[full,text,image]", "--run.init_from", whole,
        "--data.image_size=32", "--data.num_workers=0", *MODELS[name][:1], "--run.validate_every=0",
        "--run.validate_samples=8",
    ]  # fmt: skip
    launch(2, run_words(tuned, shop.catalog, 2, *words, optimizer=ADAM), tmp_path / "log", launcher="finetune")
    few = ["--bootstrap=0", "--max_samples=12", "--micro_batch=8"]
    launch(2, scoring_words(tuned, out, shop.catalog, table, *few), tmp_path / "log", launcher="evaluate")
    assert set(json.loads(out.read_text())["views"]) == {"full", "text", "image"}
    for model, kind_of in ((whole, "mean"), (tuned, "h")):
        out = tmp_path / f"vectors_{model.name}"
        words = [
            "--model", model, "--out", out, "--data.catalog", shop.catalog, "--data.image_size=32",
            "--data.num_workers=0",
        ]  # fmt: skip
        launch(2, words, tmp_path / "log", launcher="embed")
        vectors = read_vectors(out).vectors_nE
        assert vectors.shape == (240, 32) and np.ptp(vectors, axis=0).min() > 0
        assert json.loads((out / "manifest.json").read_text())["vector"] == kind_of


REFUSED = {
    "no writer": (["--model.architecture=vilt"], "model.architecture=vilt: stage=generative.*expected m6 or ofa"),
    "dropped words": ([*MODELS["ofa"], "--data.word_dropout=0.1"], "data.word_dropout=0.1: .*whole titles"),
    "filled batches": ([*MODELS["m6"], "--data.token_bucket=64"], "data.token_bucket=64: "),
    "another stage's": (["--stage=masked", "--generative.noise=0.5"], "stage=masked does not read generative"),
    "four stages": (["--model.architecture=ofa", "--model.resnet_blocks=[1,1,1,1]"], "expected 3 numbers"),
    "two stages": (["--model.architecture=m6", "--model.resnet_blocks=[1,1]"], "expected 3 or 4 numbers"),
    "no h to pool": ([*MODELS["ofa"], "--model.representation=cls"], "model.representation=cls.*ofa does not read it"),
    "a noise above 1": ([*MODELS["ofa"], "--generative.noise=1.5"], "generative.noise=1.5: expected a number between"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_refuses(case: str, tmp_path: Path) -> None:
    given, said = REFUSED[case]
    words = [
        "--deepspeed_config",
        str(write_ds_config(tmp_path)),
        "--run.dir=r",
        "--run.max_steps=1",
        "--data.catalog=c",
    ]
    with pytest.raises(UserError, match=said):
        GENERATIVE.needs(parse(PretrainConfig, [*words, "--stage=generative", *given])[0])
