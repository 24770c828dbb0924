"""The best checkpoint is kept and taken, a run stops when nothing gets better, and interruptions change neither."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mbsd.checkpoint.resume import result, weights_folder
from mbsd.errors import UserError
from mbsd.training.early_stopping import EarlyStopping
from tests.checkpoint.runs import flip_a_bit
from tests.ranks import Ranks, launch
from tests.tasks.market import DRAWN, Market, finetune_arguments

EVERY = 2
STEPS = 40


def command(market: Market, run: Path, **ds: Any) -> list[object]:
    return finetune_arguments(
        market, "attributes", run, STEPS, f"--run.validate_every={EVERY}", "--run.log_every=1", "--run.save_every=3",
        "--run.keep_last=1", "--best.patience=3", "--best.metric=roc_auc_full", "--model.dropout=0.1", *DRAWN,
        **{"train_batch_size": 16, **ds},
    )  # fmt: skip


def signal_at(rank: int, number: int, step: int) -> None:
    """This rank gets a signal when it has made so many steps."""
    from mbsd.training.divergence import SkippedSteps

    check = SkippedSteps.check

    def checked(self: Any, at: int) -> None:
        check(self, at)
        if at == step and rank == 0:
            os.kill(os.getpid(), number)

    SkippedSteps.check = checked  # type: ignore[method-assign]


def decisions(run: Path) -> dict[str, Any]:
    """What the newest checkpoint says of the best one, and every validation."""
    newest = max((run / "checkpoints").glob("step-*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "selection": json.loads((newest / "run.json").read_text())["selection"],
        "validations": {line["step"]: line["validation/roc_auc_full"] for line in lines if "validation/loss" in line},
        "done": (run / "DONE").read_text(),
        "checkpoints": sorted(path.name for path in (run / "checkpoints").glob("step-*")),
    }


@pytest.fixture(scope="module")
def undisturbed(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch(2, command(market, run), run.parent / "log", launcher="finetune")
    return run


@pytest.mark.distributed
def test_it_stops_after_its_patience_and_keeps_the_best(undisturbed: Path) -> None:
    found = decisions(undisturbed)
    values, best = found["validations"], found["selection"]["best_step"]
    ended = int(found["done"])
    assert ended < STEPS, "the run was to stop early"
    assert max(values) == ended == best + 3 * EVERY
    assert best == min(step for step in values if values[step] == max(values.values()))
    assert found["checkpoints"] == [f"step-{best:08d}", f"step-{ended:08d}"]
    assert weights_folder(str(undisturbed)) == undisturbed / "checkpoints" / f"step-{best:08d}" / "model"
    newest = undisturbed / "checkpoints" / f"step-{ended:08d}"
    assert weights_folder(str(newest)) == newest / "model"


@pytest.mark.distributed
def test_a_finished_run_stays_finished(undisturbed: Path, market: Market, tmp_path: Path) -> None:
    """Also where it was killed between its last checkpoint and DONE."""
    before = decisions(undisturbed)
    (undisturbed / "DONE").unlink()
    launch(2, command(market, undisturbed), tmp_path / "log", launcher="finetune")
    assert decisions(undisturbed) == before


@pytest.mark.distributed
def test_interrupted_runs_decide_the_same(undisturbed: Path, market: Market, tmp_path: Path) -> None:
    """Stopped by a signal at a step whose validation is due, then killed between two validations, then left alone."""
    run, expected = tmp_path / "run", decisions(undisturbed)
    ended = int(expected["done"])
    due = 2 * EVERY
    # The ranks stop one step after the one in which any of them was told.
    told = Ranks(
        2, command(market, run), tmp_path / "a", before=(signal_at, (signal.SIGTERM, due - 1)), launcher="finetune"
    )
    assert told.wait() == [0, 0], told.printed()[-3000:]
    assert json.loads((run / "PREEMPTED").read_text())["step"] == due
    killed = Ranks(
        2, command(market, run), tmp_path / "b", before=(signal_at, (signal.SIGKILL, ended - 1)), launcher="finetune"
    )
    assert killed.wait() != [0, 0]
    assert not (run / "DONE").exists()
    launch(2, command(market, run), tmp_path / "c", launcher="finetune")
    assert decisions(run) == expected


@pytest.mark.distributed
def test_another_metric_is_another_run(undisturbed: Path, market: Market, tmp_path: Path) -> None:
    (undisturbed / "DONE").unlink()
    try:
        start = Ranks(1, [*command(market, undisturbed), "--best.metric=loss"], tmp_path / "log", launcher="finetune")
        assert start.wait() == [2]
        assert "best.metric=loss" in start.errors()[0] and "roc_auc_full" in start.errors()[0]
        unknown = Ranks(1, [*command(market, undisturbed), "--best.metric=auc"], tmp_path / "log2", launcher="finetune")
        assert unknown.wait() == [2]
        assert "best.metric=auc" in unknown.errors()[0] and "roc_auc_full" in unknown.errors()[0]
        none = [*command(market, undisturbed), "--best.metric=last", "--best.patience=0"]
        last = Ranks(1, none, tmp_path / "log3", launcher="finetune")
        assert last.wait() == [2]
        assert "best.metric=last: the run's checkpoints were compared by roc_auc_full" in last.errors()[0]
    finally:
        (undisturbed / "DONE").write_text(f"{decisions_end(undisturbed)}\n")


def decisions_end(run: Path) -> int:
    return int(max((run / "checkpoints").glob("step-*")).name.removeprefix("step-"))


@pytest.mark.distributed
def test_a_damaged_best_checkpoint_is_not_taken(undisturbed: Path) -> None:
    best = result(undisturbed / "checkpoints")
    assert best is not None and best != max((undisturbed / "checkpoints").glob("step-*"))
    flip_a_bit(best / "model" / "model.safetensors")
    try:
        assert result(undisturbed / "checkpoints", below="model/") == max((undisturbed / "checkpoints").glob("step-*"))
    finally:
        flip_a_bit(best / "model" / "model.safetensors")


@pytest.mark.distributed
def test_where_none_is_the_best_the_last_step_is_taken(market: Market, tmp_path: Path) -> None:
    words = [*command(market, tmp_path / "run"), "--best.metric=last", "--run.max_steps=6"]
    patient = Ranks(1, words, tmp_path / "log", launcher="finetune")
    assert patient.wait() == [2] and "best.patience=3 waits for a better validation" in patient.errors()[0]
    launch(1, [*words, "--best.patience=0"], tmp_path / "log2", launcher="finetune")
    root = tmp_path / "run/checkpoints"
    assert result(root) == weights_folder(tmp_path / "run").parent == root / "step-00000006"
    assert json.loads((root / "step-00000006/run.json").read_text())["selection"] is None
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/loss" in line] == [2, 4, 6]


def test_better_is_strictly_better_and_patience_counts_validations() -> None:
    selection = EarlyStopping("f1_full", higher_is_better=True, patience=2)
    taken = [selection.take(step, {"f1_full": value}) for step, value in enumerate([0.2, 0.5, 0.5, float("nan")], 1)]
    assert taken == [True, True, False, False]
    assert (selection.best, selection.best_step, selection.stale) == (0.5, 2, 2) and selection.exhausted
    lower = EarlyStopping("loss", higher_is_better=False)
    assert [lower.take(step, {"loss": value}) for step, value in enumerate([0.2, 0.5, 0.1], 1)] == [True, False, True]
    assert not lower.exhausted and lower.owes(4, 4) and not lower.owes(5, 4) and not lower.owes(0, 4)
    again = EarlyStopping("loss", higher_is_better=False, patience=1)
    again.load_state_dict(lower.state_dict())
    assert (again.best, again.best_step, again.seen, again.patience) == (0.1, 3, 3, 1)
    with pytest.raises(UserError, match="no such value"):
        lower.take(5, {"accuracy": 1.0})
