"""A fine-tuning whose disk is lost: its best checkpoint comes back from the mirror with the newest one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mbsd.checkpoint.mirror import Mirror
from mbsd.checkpoint.resume import weights_folder
from tests.checkpoint.runs import checksums, step
from tests.ranks import Ranks, launch
from tests.tasks.market import DRAWN, Market, finetune_arguments


def stop_behind(rank: int, best: int) -> None:
    """SIGTERM to this rank once it has validated after `best`: what is validated then is never better."""
    import os
    import signal

    from mbsd.training.early_stopping import EarlyStopping

    take = EarlyStopping.take

    def taken(self: EarlyStopping, at: int, metrics: object) -> bool:
        value = -1.0 if at > best else at
        better = take(self, at, {self.metric: float(value)})
        if rank == 0 and at == best + 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return better

    EarlyStopping.take = taken  # type: ignore[assignment, method-assign]


@pytest.mark.distributed
def test_the_best_checkpoint_comes_back_too(market: Market, tmp_path: Path) -> None:
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    words = finetune_arguments(
        market, "attributes", run, 12, "--run.validate_every=2", "--run.save_every=2", "--run.keep_last=1",
        "--best.metric=roc_auc_full", f"--run.mirror=file://{mirror}", *DRAWN, train_batch_size=16,
    )  # fmt: skip
    first = Ranks(2, words, tmp_path / "log", before=(stop_behind, (4,)), launcher="finetune")
    assert first.wait() == [0, 0] and (run / "PREEMPTED").exists(), first.printed()[-3000:]
    newest = max(Mirror(f"file://{mirror}").steps())
    assert newest > 8 and Mirror(f"file://{mirror}").steps() == {newest: True, 4: True}
    sums = checksums(step(run, 4))
    shutil.rmtree(run)
    again = launch(2, words, tmp_path / "log", before=(stop_behind, (4,)), launcher="finetune")
    assert f"taken from file://{mirror}: {step(run, newest).name} (none is here)" in again.printed()
    assert checksums(step(run, 4)) == sums
    assert weights_folder(str(run)) == step(run, 4) / "model"
    assert Mirror(f"file://{mirror}").steps() == {12: True, 4: True}
