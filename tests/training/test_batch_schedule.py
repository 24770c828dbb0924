"""`contrastive.batch_schedule`: batches grow where they should, by micro-steps alone; a killed run is the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.runs import checksums, kill_after, step
from tests.conftest import Shop
from tests.ranks import Ranks, launch, refused
from tests.settings import TINY, run_words

pytestmark = pytest.mark.distributed

STEPS = 14
SCHEDULE = "--contrastive.batch_schedule=[[0,8],[0.15,16],[0.4,24]]"
BATCHES = [8, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 24, 24]


def words(run: Path, shop: Shop, *more: object, micro_batch: int = 4) -> list[object]:
    settings = ("--stage=contrastive", "--contrastive.targets=own", "--contrastive.dim=16", "--run.log_every=1",
                "--run.save_every=1", "--run.keep_last=100", "--run.validate_every=0", "--run.validate_samples=16",
                "--model.dropout=0.1", SCHEDULE, *more)  # fmt: skip
    return run_words(run, shop.catalog, STEPS, *TINY, *settings, train_batch_size=24,
                     train_micro_batch_size_per_gpu=micro_batch)  # fmt: skip


def log(run: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "samples_per_s" in line}


@pytest.fixture(scope="module")
def whole(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    launch(2, words(folder / "run", shop), folder / "log")
    return folder / "run"


def test_each_step_has_the_batch_of_its_position(whole: Path) -> None:
    samples = [log(whole)[number]["samples"] for number in range(1, STEPS + 1)]
    grown = [after - before for before, after in zip([0, *samples], samples, strict=False)]
    assert grown == BATCHES


@pytest.mark.parametrize("killed", [4, 5, 8])
def test_a_run_killed_around_a_boundary_ends_bitwise_like_the_whole(
    killed: int, whole: Path, shop: Shop, tmp_path: Path
) -> None:
    """With dropout, crops and flips; the checkpoint that it resumes from is of the last step before, or the first."""
    cut = words(tmp_path / "run", shop)
    kill_after(Ranks(2, cut, tmp_path / "log"), step(tmp_path / "run", killed))
    assert not (tmp_path / "run" / "DONE").exists()
    launch(2, cut, tmp_path / "log")
    assert checksums(step(tmp_path / "run", STEPS)) == checksums(step(whole, STEPS))


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 8), (1, 2), (2, 4)])
def test_ranks_and_micro_batches_do_not_change_it(ranks: int, micro_batch: int, shop: Shop, tmp_path: Path) -> None:
    still = ("--model.dropout=0.0",)
    launch(2, words(tmp_path / "two", shop, *still, micro_batch=1), tmp_path / "log")
    launch(ranks, words(tmp_path / "other", shop, *still, micro_batch=micro_batch), tmp_path / "log_other")
    expected, found = log(tmp_path / "two"), log(tmp_path / "other")
    for number in expected:
        assert found[number]["samples"] == expected[number]["samples"]
        assert found[number]["loss"] == pytest.approx(expected[number]["loss"], rel=1e-5), number


def test_a_run_goes_on_with_its_own_schedule_alone(whole: Path, shop: Shop, tmp_path: Path) -> None:
    other = [*words(tmp_path / "run", shop), f"--run.resume={step(whole, 6)}"]
    for change in ("--contrastive.batch_schedule=null", "--contrastive.batch_schedule=[[0,8],[0.5,24]]"):
        said = refused(2, [*other, change], tmp_path / "log")
        assert "train_batch_size was [[0, 8]" in said and "set it back" in said
    odd = [*words(tmp_path / "odd", shop), "--contrastive.batch_schedule=[[0,12],[0.5,24]]"]
    said = refused(2, odd, tmp_path / "log_odd")
    assert "a batch of 12 is no multiple of train_micro_batch_size_per_gpu=4 x 2 ranks" in said
