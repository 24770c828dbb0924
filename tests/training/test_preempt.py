"""Leaving early and well: signals to ranks and launchers, a rank that hangs, a loss that is no number."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mbsd.checkpoint import store
from mbsd.data.text import build_tokenizer
from mbsd.errors import UserError
from mbsd.model.heads import MbsdForMaskedModelling
from mbsd.model.load import load_model
from mbsd.model.mbsd import MbsdConfig
from tests.conftest import Shop
from tests.ranks import CPU, ROOT, Ranks, call, deepspeed_command, launch, refused
from tests.settings import losses, stage_1_words
from tests.training.faults import sleep, slow_save

STEPS = 120


def command(run: Path, shop: Shop, *more: object, **ds_changes: Any) -> list[object]:
    words = ["--run.log_every=1", "--run.validate_samples=30", "--run.seed=3", "--model.dropout=0.1"]
    return stage_1_words(run, shop.catalog, STEPS, *words, *more, **ds_changes)


def wait_until(true: Callable[[], bool], *processes: subprocess.Popen[Any] | BaseProcess) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline and all(map(runs, processes))
        time.sleep(0.01)


def runs(process: subprocess.Popen[Any] | BaseProcess) -> bool:
    return process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None


def send(number: signal.Signals, *ranks: BaseProcess) -> None:
    for rank in ranks:
        assert rank.pid is not None
        with suppress(ProcessLookupError):  # it may have ended of the one before
            os.kill(rank.pid, number)


def steps_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def steps_on(run: Path) -> Callable[[], bool]:
    """Whether the run has made three steps from now."""
    begun = steps_of(run)
    return lambda: steps_of(run) >= begun + 3


def preempted(run: Path, name: str) -> int:
    """The step after which all ranks stopped, as PREEMPTED and the checkpoint say."""
    assert not (run / "DONE").exists()
    said = json.loads((run / "PREEMPTED").read_text())
    assert said["signal"] == name and said["time"].startswith("20")
    newest = store.newest(run / "checkpoints")
    assert newest is not None and store.step_of(newest) == said["step"] == max(losses(run))
    assert 0 < said["step"] < STEPS
    return int(said["step"])


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def ranks_of(launcher: int) -> list[int]:
    """The launcher's processes that were told a rank, without their loader workers."""
    found = []
    for pid in descendants(launcher):
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        parents = Path(f"/proc/{parent}/environ").read_bytes()
        if any(line.startswith(b"RANK=") for line in told) and b"\0RANK=" not in parents:
            found.append(pid)
    return found


def start_deepspeed(arguments: list[object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        deepspeed_command(2, "pretrain", *arguments), cwd=ROOT, env={**os.environ, **CPU}, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(launcher: subprocess.Popen[str]) -> int:
    try:
        launcher.communicate(timeout=300)
    finally:
        launcher.kill()
    return launcher.returncode


@pytest.mark.distributed
def test_a_run_stopped_by_every_signal_ends_like_an_undisturbed_one(shop: Shop, tmp_path: Path) -> None:
    """Each start is the same command; all but the last are stopped. The losses are bitwise the undisturbed run's."""
    log = tmp_path / "log"
    launch(2, command(tmp_path / "undisturbed", shop), log)
    run = tmp_path / "run"
    arguments = command(run, shop)

    # One rank is told; while it is saved, more signals come to both.
    saving = tmp_path / "saving"
    start = Ranks(2, arguments, log, before=(slow_save, (saving,)))
    wait_until(steps_on(run), *start.processes)
    send(signal.SIGTERM, start.processes[1])
    wait_until(saving.exists, *start.processes)
    send(signal.SIGTERM, start.processes[0])
    send(signal.SIGUSR1, start.processes[1])
    send(signal.SIGINT, start.processes[1])
    assert start.wait() == [0, 0], start.printed()
    said_0, said_1 = (path.read_text() for path in start.logs)
    first = preempted(run, "SIGTERM")
    assert f"SIGTERM: saved and stopped after step {first} of {STEPS}" in said_0
    assert "rank 1: SIGUSR1: stopping already" in said_1 and "rank 1: SIGINT: stopping already" in said_1

    # All ranks are told; the launcher sees two good ends.
    launcher = start_deepspeed(arguments)
    wait_until(steps_on(run), launcher)
    assert not (run / "PREEMPTED").exists()
    ranks_now = ranks_of(launcher.pid)
    assert len(ranks_now) == 2
    for pid in ranks_now:
        os.kill(pid, signal.SIGUSR1)
    assert wait_for(launcher) == 0
    second = preempted(run, "SIGUSR1")
    assert second > first

    # DeepSpeed's launcher is told: it hands SIGTERM on, and ends with 1 itself.
    launcher = start_deepspeed(arguments)
    wait_until(steps_on(run), launcher)
    below = [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
    assert len(below) == 1
    os.kill(below[0], signal.SIGTERM)
    assert wait_for(launcher) == 1
    third = preempted(run, "SIGTERM")
    assert third > second

    # Ctrl-C twice while it is saved: it ends at once, and what stood before stands.
    saving.unlink()
    start = Ranks(2, arguments, log, before=(slow_save, (saving,)))
    wait_until(steps_on(run), *start.processes)
    send(signal.SIGINT, start.processes[0])
    wait_until(saving.exists, *start.processes)
    for _ in range(2):
        send(signal.SIGINT, *start.processes)
        time.sleep(0.1)
    assert start.wait() == [-signal.SIGINT] * 2, start.printed()
    assert not (run / "PREEMPTED").exists() and not (run / "DONE").exists()

    launch(2, arguments, log)
    assert (run / "DONE").exists() and not (run / "PREEMPTED").exists()
    assert losses(run) == losses(tmp_path / "undisturbed")


def poll_until_stopped(rank: int, world_size: int, seed: int) -> list[int]:
    """The steps at which this rank was told to stop, over rounds in which ranks get signals at any time."""
    from mbsd.training.preempt import stop_requests

    chance, told = random.Random(seed * world_size + rank), []
    for _ in range(15):
        with stop_requests(60) as requests:
            mine = chance.choice([None, chance.randrange(1, 12)])
            for step in range(1, 40):
                time.sleep(chance.random() * 0.004)
                if step == mine or (rank == 0 and step == 12):
                    os.kill(os.getpid(), chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))
                if requests.poll() is not None:
                    told.append(step)
                    break
            requests.close()
    return told


@pytest.mark.distributed
def test_all_ranks_stop_after_the_same_step() -> None:
    first, *others = call(poll_until_stopped, 3, 1)
    assert len(first) == 15 and len(set(first)) > 3 and max(first) <= 14
    assert all(steps == first for steps in others)


@pytest.mark.distributed
def test_a_rank_that_sleeps_for_ever_ends_with_its_stacks(shop: Shop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = command(run, shop, "--run.timeout=12", "--data.num_workers=0")
    start = Ranks(2, arguments, tmp_path / "log", before=(sleep, (1,)))
    assert start.wait()[1] == 1
    said = start.logs[1].read_text()
    line = next(line for line in said.splitlines() if line.startswith("rank 1 on "))
    assert os.uname().nodename in line and "step 4: waiting for data" in line and "run.timeout=12" in line
    stacks = (run / "stacks-rank-0001.txt").read_text()
    assert stacks.splitlines()[0] == line
    assert "faults.py" in stacks and "in never" in stacks and "in train" in stacks
    assert "in never" in said


HOLDS_THE_INTERPRETER = """
import ctypes, sys, time
from pathlib import Path
from mbsd.training.watchdog import Watchdog
with Watchdog(Path(sys.argv[1]), 0, 2.0) as watchdog:
    for _ in range(30):
        time.sleep(0.1)
        watchdog.beat("step 1: training")
    print("alive after 3 s", flush=True)
    ctypes.PyDLL(None).sleep(1000)
"""


def test_a_rank_that_never_lets_go_of_the_interpreter_ends_too(tmp_path: Path) -> None:
    """PyDLL calls without releasing the interpreter's lock: no other Python thread runs any more."""
    import sys

    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_INTERPRETER, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "alive" in done.stdout
    assert "Timeout" in done.stderr and "line 10 in <module>" in done.stderr
    assert time.monotonic() - started > 5


def finite_checkpoints(run: Path) -> list[int]:
    """The steps of a run's checkpoints, none of which holds a weight that is no number."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    for folder in folders:
        assert not store.broken_files(folder)
        assert all(weight.isfinite().all() for weight in load_file(folder / "model" / "model.safetensors").values())
    return [store.step_of(folder) for folder in folders]


def diverging(lr: float) -> dict[str, Any]:
    return {
        "optimizer": {"type": "Lamb", "params": {"lr": lr}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": lr, "warmup_num_steps": 4}},
    }


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("lr", "log_every", "named", "ranks"), [(1e30, 100, "loss_mlm=", 2), (1e39, 1, "weights hold", 1)]
)
def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(
    lr: float, log_every: int, named: str, ranks: int, shop: Shop, tmp_path: Path
) -> None:
    """It is seen before a save, whatever is logged: in the losses, or in the weights that follow from them."""
    run = tmp_path / "run"
    arguments = command(run, shop, "--run.save_every=1", **diverging(lr))
    line = refused(ranks, [*arguments, f"--run.log_every={log_every}"], tmp_path / "log")
    assert named in line and "lr" in line, line
    failed = int(line.split("step ")[1].split(":")[0])
    assert finite_checkpoints(run) == list(range(max(1, failed - 2), failed))
    assert not (run / "DONE").exists() and not (run / "PREEMPTED").exists()


def poisoned(folder: Path, value: float) -> Path:
    """A transformers folder of a model with one such weight."""
    words = build_tokenizer(["red dress", "blue coat"], 300, folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = MbsdConfig(vocab_size=len(words), image_size=32, patchify_strides=(4, 2), patchify_channels=(16,), **sizes)
    model = MbsdForMaskedModelling(config)
    with torch.no_grad():
        model.mbsd.modality_2D[0, 0] = value
    model.save_pretrained(folder)
    return folder


@pytest.mark.distributed
def test_a_loss_that_is_no_number_at_the_first_step(shop: Shop, tmp_path: Path) -> None:
    start = poisoned(tmp_path / "start", 3e38)
    line = refused(1, command(tmp_path / "run", shop, "--run.init_from", start), tmp_path / "log")
    assert line.startswith("error: step 1: the mean over steps 1-1 is loss=nan, loss_mlm=nan")
    assert not list(tmp_path.glob("run/checkpoints/*step-*"))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    start = poisoned(tmp_path / "start", math.nan)
    with pytest.raises(UserError, match="1 weights hold values that are no numbers, mbsd.modality_2D"):
        load_model(MbsdForMaskedModelling, start, 32)
