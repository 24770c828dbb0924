"""What made runs wait for ever: too little shared memory, too few open files, a worker that is gone, a stuck rank."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Shop
from tests.ranks import Ranks, refused
from tests.settings import stage_1_words
from tests.training.faults import few_files, shared_memory_full_at_validation, small_shared_memory

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a small /dev/shm is mounted, which needs root")
END = 25  # seconds for an end that is at once, on a busy machine; an interpreter alone takes some to leave


def command(run: Path, shop: Shop, *more: object) -> list[object]:
    return stage_1_words(run, shop.catalog, 5000, "--run.log_every=1", "--run.validate_samples=30", *more)


def wait_for(started: Ranks, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline and all(rank.is_alive() for rank in started.processes), started.printed()
        time.sleep(0.02)


def steps_on(started: Ranks, run: Path) -> None:
    wait_for(started, lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 2)


def workers_of(pid: int | None) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def codes_at_once(started: Ranks) -> list[int | None]:
    begun = time.monotonic()
    codes = started.wait(timeout=60, patience=END)
    assert time.monotonic() - begun < END, started.printed()
    return codes


@needs_root
@pytest.mark.distributed
def test_a_small_dev_shm_is_refused_before_the_first_batch(shop: Shop, tmp_path: Path) -> None:
    """Docker gives 64 MB: here one, of which two ranks need more; the line has both numbers, in megabytes."""
    line = refused(2, command(tmp_path / "run", shop), tmp_path / "log", before=(small_shared_memory, (1,)))
    found = re.search(
        r"/dev/shm: has (\d+) MB free and the loaders need up to (\d+) MB, for 2 ranks \((\d+) micro-batches of up to "
        r"(\d\.\d) MB a rank\); enlarge it \(docker run --shm-size\), or lower data.prefetch",
        line,
    )
    assert found is not None, line
    free, needed, batches, each = map(float, found.groups())
    # One worker with four batches ready and two in use; in validation two ready and two in use.
    assert free == 1 and batches == 4 + 2 + 2 + 2 and abs(needed - 2 * batches * each) < 1.5
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


@pytest.mark.distributed
def test_too_few_open_files_are_refused_before_the_first_batch(shop: Shop, tmp_path: Path) -> None:
    line = refused(1, command(tmp_path / "run", shop), tmp_path / "log", before=(few_files, (64,)))
    found = re.search(r"may open 64 files here \(ulimit -n\) and each rank needs up to (\d+); raise the limit", line)
    assert found is not None and 64 < int(found[1]) < 200, line


@needs_root
@pytest.mark.distributed
def test_a_dev_shm_that_somebody_else_fills_ends_the_run(shop: Shop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Batches that are done with leave room for others: at the latest a validation, with new workers, finds none.
    words = command(run, shop, "--run.validate_every=20")
    started = Ranks(1, words, tmp_path / "log", before=(small_shared_memory, (16,)))
    try:
        steps_on(started, run)
        filled = Path(f"/proc/{started.processes[0].pid}/root/dev/shm/filled")
        with pytest.raises(OSError, match="No space left"), filled.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        assert codes_at_once(started) == [2], started.printed()
    finally:
        started.kill()
    (line,) = started.errors()
    assert "a loader worker finds no room for a batch" in line and "/dev/shm has 0 MB left" in line, line
    assert "Traceback" not in started.printed()


@needs_root
@pytest.mark.distributed
def test_a_dev_shm_that_is_full_when_a_loader_starts_ends_the_run(shop: Shop, tmp_path: Path) -> None:
    """A validation starts workers of its own: there is no room for what they are told by."""
    words = command(tmp_path / "run", shop, "--run.validate_every=3")
    line = refused(1, words, tmp_path / "log", before=(shared_memory_full_at_validation, (16,)))
    assert "a loader worker finds no room for a batch (No space left on device): /dev/shm has 0 MB left" in line


@pytest.mark.distributed
def test_a_killed_worker_ends_all_ranks_at_once(shop: Shop, tmp_path: Path) -> None:
    """As the kernel does where memory is full: the rank says which, the other that it has lost a rank."""
    run = tmp_path / "run"
    started = Ranks(2, command(run, shop, "--data.num_workers=2"), tmp_path / "log")
    try:
        steps_on(started, run)
        victim = workers_of(started.processes[1].pid)[-1]
        os.kill(victim, signal.SIGKILL)
        assert codes_at_once(started) == [1, 1]
    finally:
        started.kill()
    (line,) = [text for text in started.logs[1].read_text().splitlines() if "loader worker" in text]
    assert "Traceback" not in started.printed(), started.printed()
    assert re.match(
        rf"rank 1 on \S+: a loader worker \(pid {victim}\) was ended by .*: Killed; this host has [\d.]+ GB", line
    )
    (other,) = [text for text in started.logs[0].read_text().splitlines() if text.startswith("rank 0 on")]
    assert "another rank has ended" in other
    assert "Traceback" not in started.printed(), started.printed()


@pytest.mark.distributed
def test_a_second_sigterm_ends_a_rank_that_is_stuck(shop: Shop, tmp_path: Path) -> None:
    """Rank 1 is stopped in the middle of a step, and rank 0 waits for it in gloo, where no Python handler runs."""
    run = tmp_path / "run"
    started = Ranks(2, command(run, shop), tmp_path / "log")
    stuck, stopped = started.processes
    assert stuck.pid is not None and stopped.pid is not None
    try:
        steps_on(started, run)
        os.kill(stopped.pid, signal.SIGSTOP)
        time.sleep(0.5)
        for _ in range(2):  # at once: a scheduler's and a launcher's
            os.kill(stuck.pid, signal.SIGTERM)
            time.sleep(0.1)
        stuck.join(2.5)
        assert stuck.is_alive(), "the same request, which came twice, ends nothing"
        os.kill(stuck.pid, signal.SIGTERM)
        stuck.join(END)
        assert stuck.exitcode in (128 + signal.SIGTERM, -signal.SIGTERM), started.printed()
        assert "SIGTERM again: ending at once" in started.logs[0].read_text()
    finally:
        started.kill()
