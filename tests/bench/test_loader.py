"""`mbsd bench loader` on a small shop: every way of loading is measured, and against the loader written by hand."""

from __future__ import annotations

import json
from pathlib import Path

from mbsd.data.decode_dali import dali_installed
from tests.conftest import Shop
from tests.ranks import command

WAYS = ["torchvision", *(["dali"] if dali_installed() else [])]


def test_every_way_is_measured(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "loader.json"
    small = ["--image-size", 64, "--batch", 8, "--batches", 4, "--turns", 1, "--workers", 1, "--json", out]
    done = command("bench", "loader", "--catalog", shop.catalog, *small)
    assert done.returncode == 0, done.stderr[-4000:]
    numbers = json.loads(out.read_text())
    assert list(numbers["decoders"]) == WAYS and min(numbers["decoders"].values()) > 0
    rows = numbers["loaders"]
    assert [(row["workers"], row["way"]) for row in rows] == [(1, way) for way in [*WAYS, "plain"]]
    plain = rows[-1]["images_per_s"]
    for row in rows:
        assert row["ratio"] == row["images_per_s"] / plain > 0 and row["cpu_ms_per_image"] > 0
    assert 0 <= numbers["training"]["data_wait"] < 1 and numbers["training"]["samples_per_s"] > 0
    for megabytes in (numbers["memory"][way] for way in WAYS):
        assert len(megabytes) == 3 and min(megabytes) > 10


def test_a_mixture_is_measured_beside_one_catalogue(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "loader.json"
    small = [
        "--image-size",
        64,
        "--batch",
        8,
        "--batches",
        4,
        "--turns",
        1,
        "--workers",
        0,
        "--no-train",
        "--no-epochs",
    ]
    done = command("bench", "loader", "--catalog", shop.catalog, "--mixed", 3, *small, "--json", out)
    assert done.returncode == 0, done.stderr[-4000:]
    rate = {row["way"]: row["images_per_s"] for row in json.loads(out.read_text())["loaders"]}
    ratio = rate["torchvision, 3 catalogues"] / rate["torchvision"]
    assert f"3 catalogues, 0 workers: {ratio:.3f} x one" in done.stdout


def test_what_cannot_be_measured_is_said(shop: Shop) -> None:
    done = command("bench", "loader", "--catalog", shop.catalog, "--batch", 5000)
    assert done.returncode == 2 and "expected at least a micro-batch of 5000" in done.stderr
    done = command("bench", "loader", "--catalog", shop.catalog, "--image-size", 50)
    assert done.returncode == 2 and "multiple of 32" in done.stderr
