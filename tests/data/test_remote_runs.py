"""Runs of two ranks, each with a loader process, over a catalogue that lies behind a URL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.runs import arguments, checksums, step
from tests.conftest import Shop
from tests.ranks import launch, refused
from tests.settings import losses
from tests.web import Store

FOUR = ["--run.max_steps=4", "--run.save_every=4"]


@pytest.mark.distributed
def test_a_run_over_a_url_is_the_run_over_the_folder(shop: Shop, tmp_path: Path) -> None:
    store = Store(shop.catalog)
    store.delay = 0.05  # each way of a link takes its time
    try:
        here = arguments(tmp_path / "here", shop.catalog, *FOUR)
        there = arguments(tmp_path / "there", Path("x"), *FOUR, "--data.catalog", store.url)
        line = refused(2, there, tmp_path / "log")
        assert f"data.catalog={store.url}" in line and "data.cache" in line, line
        there += ["--data.cache", tmp_path / "cache", "--data.cache_gb=1"]
        launch(2, here, tmp_path / "log")
        launch(2, there, tmp_path / "log")
        assert losses(tmp_path / "there") == losses(tmp_path / "here")
        assert checksums(step(tmp_path / "there", 4)) == checksums(step(tmp_path / "here", 4))
        fetched = len(store.shards())
        assert fetched == len(list(shop.catalog.glob("shards/*.tar")))  # once for all processes
        (tmp_path / "there" / "DONE").unlink()
        shutil.rmtree(tmp_path / "there" / "checkpoints")
        (tmp_path / "there" / "last_saved").unlink()
        launch(2, there, tmp_path / "log")
        assert len(store.shards()) == fetched
        lines = [json.loads(line) for line in (tmp_path / "there" / "metrics.jsonl").read_text().splitlines()]
        assert all(line.get("corrupt_images", 0) == 0 for line in lines)
    finally:
        store.close()
