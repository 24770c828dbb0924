"""Stage 1 on gradients and colours in whole runs: ranks, micro-steps, precision, pictures, and a change of target."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import Shop
from tests.ranks import launch, refused
from tests.settings import losses, stage_1_words

STEPS = 8
HOG = "--masking.mpm_target=hog"
OFTEN = ["--run.log_every=1", "--run.validate_every=4", "--run.validate_samples=30", "--run.seed=3"]

pytestmark = pytest.mark.distributed


def words(run: Path, shop: Shop, *more: object, **ds: Any) -> list[object]:
    return stage_1_words(run, shop.catalog, STEPS, *OFTEN, *more, **ds)


@pytest.fixture(scope="module")
def runs(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One rank with two micro-steps; two ranks; the same in bf16 with filled batches and more workers; on pixels."""
    folder = tmp_path_factory.mktemp("targets")
    one_rank = {"gradient_accumulation_steps": 2}
    ways: dict[str, tuple[int, list[object], dict[str, Any]]] = {
        "one": (1, [HOG], one_rank),
        "two": (2, [HOG], {}),
        "bf16": (2, [HOG, "--data.num_workers=2", "--data.token_bucket=32"], {"bf16": {"enabled": True}}),
        "pixels": (1, [], one_rank),
    }
    for name, (ranks, more, ds) in ways.items():
        launch(ranks, words(folder / name, shop, *more, **ds), folder / "log")
    return {name: folder / name for name in ways}


def test_ranks_workers_and_precision_learn_the_same(runs: dict[str, Path]) -> None:
    one, two, half = (losses(runs[name]) for name in ("one", "two", "bf16"))
    assert sorted(one) == sorted(two) == sorted(half) == list(range(1, STEPS + 1))
    for step, values in one.items():
        assert two[step] == pytest.approx(values, rel=1e-4, abs=1e-6), step
        assert half[step] == pytest.approx(values, rel=0.05), step
    for step, values in losses(runs["one"], "validation/").items():
        assert losses(runs["two"], "validation/")[step] == pytest.approx(values, rel=1e-4, abs=1e-6)
    assert one[STEPS]["loss_mpm"] < one[1]["loss_mpm"] - 0.05


def test_the_head_is_as_wide_as_its_target(runs: dict[str, Path]) -> None:
    sizes = {name: len(load_file(weights(runs[name]))["patch_decoder.bias"]) for name in ("one", "pixels")}
    assert sizes == {"one": 12, "pixels": 3 * 8**2}


def weights(run: Path) -> Path:
    return run / "checkpoints" / f"step-{STEPS:08d}" / "model" / "model.safetensors"


def test_pictures_show_what_is_hidden_predicted_true_and_there(runs: dict[str, Path]) -> None:
    for name, columns in (("one", 4), ("pixels", 3)):
        events = EventAccumulator(str(runs[name] / "tensorboard")).Reload()
        (tag,) = (tag for tag in events.Tags()["images"] if "masked_patches" in tag)
        picture = np.asarray(Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string)).convert("RGB"))
        assert (picture.shape[1] + 4) % 36 == 0 and (picture.shape[1] + 4) // 36 == columns
        parts = [picture[:32, 36 * n : 36 * n + 32] for n in range(columns)]
        assert all(part.std() > 1 for part in parts) and len({part.tobytes() for part in parts}) == columns


def test_a_run_does_not_change_its_target(runs: dict[str, Path], shop: Shop, tmp_path: Path) -> None:
    for name, more in (("one", []), ("pixels", [HOG])):
        shutil.copytree(runs[name], tmp_path / name)
        (tmp_path / name / "DONE").unlink()  # as if it had been stopped
        command = words(tmp_path / name, shop, "--run.max_steps=12", *more, gradient_accumulation_steps=2)
        error = refused(1, command, tmp_path / "log")
        assert "'mpm_target': 'hog'" in error and "set it back" in error


def test_another_target_starts_from_the_other_with_a_new_head(
    runs: dict[str, Path], shop: Shop, tmp_path: Path
) -> None:
    start = launch(1, words(tmp_path / "run", shop, HOG, "--run.init_from", runs["pixels"]), tmp_path / "log")
    assert "word_bias, word_transform; dropped patch_decoder; new: patch_decoder" in start.printed()
    first, fresh = losses(tmp_path / "run")[1], losses(runs["one"])[1]
    assert first["loss_mlm"] < fresh["loss_mlm"] - 0.05
