"""LAMB's moments survive another number of ranks, through DeepSpeed's universal checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from mbsd.optim.zero import bind
from tests.optim.test_zero import build_engine, make_optimizer, train
from tests.optim.textbook import Awkward, mean_gradients, textbook_lamb, worst_relative_error
from tests.ranks import call

pytestmark = pytest.mark.distributed

BEFORE, AFTER = 6, 12
ZERO = {"stage": 2, "overlap_comm": False}


def save(rank: int, world_size: int, folder: str) -> None:
    module = Awkward()
    optimizer = make_optimizer(module, adapt_excluded=True)
    engine = build_engine(module, optimizer, ZERO)
    bind(optimizer, engine.optimizer)
    train(engine, rank, range(BEFORE))
    engine.save_checkpoint(folder, tag="saved")


def go_on(rank: int, world_size: int, folder: str, saved_by: int) -> float:
    module = Awkward(seed=1)
    optimizer = make_optimizer(module, adapt_excluded=True)
    engine = build_engine(module, optimizer, ZERO, checkpoint={"load_universal": True})
    bind(optimizer, engine.optimizer)
    engine.load_checkpoint(folder, tag="universal")
    train(engine, rank, range(BEFORE, AFTER))

    start = Awkward()
    before, after = (mean_gradients(start, size, 1, 0.0) for size in (saved_by, world_size))

    def gradients(step: int) -> dict[str, Tensor]:
        return before(step) if step < BEFORE else after(step)

    expected, _ = textbook_lamb(start, gradients, adapt_excluded=True, steps=AFTER)
    return worst_relative_error(engine.module, expected)


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(2, 1), (2, 3), (3, 2), (1, 4)])
def test_moments_survive_a_change_of_world_size(saved_by: int, loaded_by: int, tmp_path: Path) -> None:
    call(save, saved_by, str(tmp_path))
    convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(tmp_path / "saved"), "--output_folder", str(tmp_path / "universal")]
    subprocess.run([*convert, *folders], check=True, capture_output=True)
    errors = call(go_on, loaded_by, str(tmp_path), saved_by)
    print(f"{saved_by} ranks to {loaded_by}: {max(errors):.1e}")
    assert max(errors) < 1e-6
