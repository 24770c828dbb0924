"""A user's mistake: one clear line, exit code 2, on every rank; and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mbsd.data.text import build_tokenizer
from mbsd.model.heads import MbsdForMatching
from mbsd.model.mbsd import MbsdConfig
from tests.conftest import Shop
from tests.ranks import launch, refused
from tests.settings import stage_1_words, write_ds_config


@pytest.fixture
def given(shop: Shop, tmp_path: Path) -> list[object]:
    """A stage-1 command line that is right."""
    return stage_1_words(tmp_path / "run", shop.catalog, 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--run.stepz=3"], ["run.stepz"]),
        (["--run.seed=many"], ["run.seed", "many"]),
        (["--run.epochs=3"], ["run.epochs", "run.max_steps", "both"]),
        (["--run.init_from=a", "--model.backbone=b"], ["run.init_from=a", "model.backbone=b"]),
        (["--stage=matching"], ["data.table"]),
        (["--sdmi.variant=paper"], ["sdmi", "stage=masked"]),
        (["--run.train_batch_size=8"], ["run.train_batch_size", "ds.json"]),
        (["--run.lr=0.1"], ["run.lr", "optimizer", "ds.json"]),
        (["--data.crop_scale=[0.9,0.5]"], ["data.crop_scale", "0.9"]),
    ],
)
def test_settings(given: list[object], arguments: list[str], named: list[str], tmp_path: Path) -> None:
    line = refused(2, [*given, *arguments], tmp_path / "log")
    assert all(name in line for name in named), line
    assert not (tmp_path / "run").exists()


def test_a_key_in_both_files(given: list[object], tmp_path: Path) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text("run:\n  gradient_clipping: 1.0\n")
    line = refused(2, ["--config", yaml, *given], tmp_path / "log")
    assert "run.yaml" in line and "ds.json" in line and "gradient_clipping" in line


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_batch_size": 15}, ["train_batch_size=15", "2 ranks", "14", "16"]),
        ({"train_micro_batch_size_per_gpu": 3}, ["train_micro_batch_size_per_gpu=3", "train_batch_size=16"]),
        ({"optimizer": {"type": "OneBitLamb", "params": {}}}, ["OneBitLamb", "use Lamb"]),
        ({"optimizer": {"type": "Adagrad"}}, ["Adagrad", "Lamb", "AdamW"]),
        ({"optimizer": None}, ["optimizer.type", "Lamb", "AdamW"]),
        ({"zero_optimization": {"stage": 3}}, ["stage=3", '"stage": 2']),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, ["offload_optimizer", "without"]),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, ["cpu_offload", "without"]),
        ({"zero_optimization": True}, ["zero_optimization", '"stage": 2']),
        ({"optimizer": {"type": "Lamb", "params": {"lr": 0.1, "momentum": 0.9}}}, ["momentum", "betas"]),
        ({"tensorboard": {"enabled": True}}, ["tensorboard", "run.dir"]),
        (
            {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}},
            ["total_num_steps=9", "run.max_steps", "ds.json"],
        ),
    ],
)
def test_deepspeeds_json(given: list[object], changes: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    write_ds_config(tmp_path / "run_ds", **changes)
    line = refused(2, given, tmp_path / "log")
    assert all(name in line for name in named), line


def test_a_folder_that_is_no_catalogue(given: list[object], tmp_path: Path) -> None:
    assert str(tmp_path / "nothing") in refused(2, [*given, "--data.catalog", tmp_path / "nothing"], tmp_path / "log")


def test_a_table_of_another_catalogue(given: list[object], shop: Shop, tmp_path: Path) -> None:
    from mbsd.catalog.build.build import BuildOptions, build_catalog
    from mbsd.catalog.sources import Item

    build_catalog(
        [Item(f"i{n}", title=f"red {n}") for n in range(40)], None, tmp_path / "other", BuildOptions(progress=False)
    )
    arguments = ["--stage=matching", "--data.table", shop.pairs, "--data.catalog", tmp_path / "other"]
    line = refused(2, [*given, *arguments], tmp_path / "log")
    assert str(shop.pairs) in line and "another catalogue" in line


def test_weights_and_tokenizer_that_do_not_fit(given: list[object], shop: Shop, tmp_path: Path) -> None:
    words = build_tokenizer(["red dress", "blue coat"], 300, tmp_path / "words")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = MbsdConfig(vocab_size=len(words), image_size=32, patchify_strides=(4, 2), patchify_channels=(16,), **sizes)
    MbsdForMatching(config).save_pretrained(tmp_path / "weights")
    words.save_pretrained(tmp_path / "weights")
    build_tokenizer(["green shirt", "black shoe"], 300, tmp_path / "other_words")
    start = ["--run.init_from", tmp_path / "weights"]

    line = refused(2, [*given, *start, "--data.tokenizer", tmp_path / "other_words"], tmp_path / "log")
    assert "data.tokenizer" in line and str(tmp_path / "weights") in line
    line = refused(2, [*given, *start, "--model.hidden_size=48"], tmp_path / "log")
    assert "model.hidden_size=48" in line and "32" in line
    line = refused(2, [*given, *start, "--data.image_size=64"], tmp_path / "log")
    assert "data.image_size=64" in line and "32" in line
    assert str(tmp_path) in refused(2, [*given, "--run.init_from", tmp_path], tmp_path / "log")


def test_a_run_folder_of_another_catalogue(given: list[object], shop: Shop, tmp_path: Path) -> None:
    """A checkpoint that does not fit is never resumed from, and never silently ignored."""
    from mbsd.catalog.build.build import BuildOptions, build_catalog
    from mbsd.catalog.sources import Item

    launch(1, given, tmp_path / "log")
    run = tmp_path / "run"
    (run / "DONE").unlink()
    build_catalog(
        [Item(f"i{n}", title=f"red {n}") for n in range(40)], None, tmp_path / "other", BuildOptions(progress=False)
    )
    line = refused(1, [*given, "--data.catalog", tmp_path / "other"], tmp_path / "log")
    assert "step-00000002" in line and "catalogue" in line
    assert "run.seed" in refused(1, [*given, "--run.seed=4"], tmp_path / "log")
    (run / "checkpoints" / "step-00000002" / "state-0000.safetensors").write_bytes(b"")
    assert "state-0000.safetensors" in refused(1, given, tmp_path / "log")


def test_an_empty_catalogue(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": "1", "title": "", "image": ""}) + "\n")
    words = ["catalog", "build", tmp_path / "items.jsonl", "--out", tmp_path / "catalog"]
    done = subprocess.run([sys.executable, "-m", "mbsd.cli", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "empty catalogue" in done.stderr
    assert not (tmp_path / "catalog").exists()


def test_a_misspelt_command_is_one_line() -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "mbsd.cli", "catalog", "biuld"], capture_output=True, text=True)
    assert done.returncode == 2 and "biuld" in done.stderr and len(done.stderr.splitlines()) == 1
