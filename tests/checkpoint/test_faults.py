"""Each fault, really done to real runs of two ranks: named, survived where it can be, refused where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.checkpoint.runs import arguments, checksums, flip_a_bit, step
from tests.conftest import Shop
from tests.ranks import Ranks, command, launch, refused

pytestmark = pytest.mark.distributed

FOUR = ["--run.max_steps=4", "--run.save_every=2", "--model.dropout=0.0"]


@pytest.fixture(scope="module")
def finished(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("faults") / "run"
    launch(2, arguments(run, shop.catalog, *FOUR), run.parent / "log")
    assert (run / "checkpoints" / "latest").read_text() == "step-00000004"
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that is not finished."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "DONE").unlink()
    return copy


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_damaged_files_are_named_and_the_older_checkpoint_is_taken(run: Path, finished: Path, shop: Shop) -> None:
    """Four starts, each after other damage to step 4; all come to it again from step 2, bitwise."""
    damage = [
        ("state-0001.safetensors", flip_a_bit, "checksum"),
        ("run.json", flip_a_bit, "checksum"),
        ("state-0000.safetensors", truncate, "bytes, expected"),
        ("model/model.safetensors", Path.unlink, "missing"),
    ]
    for latest, (name, harm, word) in zip(["step-00000009", "", None, "step-00000004"], damage, strict=True):
        harm(step(run, 4) / name)
        hint = run / "checkpoints" / "latest"
        hint.unlink() if latest is None else hint.write_text(latest)
        again = launch(2, arguments(run, shop.catalog, *FOUR), run.parent / "log")
        said = again.lines("is not taken")
        assert len(said) == 1 and name in said[0] and word in said[0], said
        assert f"resuming {step(run, 2)}" in again.printed()
        assert checksums(step(run, 4)) == checksums(step(finished, 4))
        (run / "DONE").unlink()


def test_what_cannot_be_gone_on_from_is_refused(run: Path, shop: Shop) -> None:
    """Another model, nothing complete, nothing there any more: one line, exit code 2, nothing is begun anew."""
    log = run.parent / "log"
    line = refused(2, arguments(run, shop.catalog, *FOUR, "--model.intermediate_size=48"), log)
    assert "step-00000004" in line and "intermediate" in line and "[64]" in line and "[48]" in line, line
    line = refused(2, arguments(run, shop.catalog, *FOUR, "--model.hidden_size=48"), log)
    assert "step-00000004" in line and "hidden_size" in line, line
    flip_a_bit(step(run, 2) / "state-0000.json")
    truncate(step(run, 4) / "state-0000.json")
    line = refused(2, arguments(run, shop.catalog, *FOUR), log)
    assert "none is complete" in line and "state-0000.json" in line, line
    shutil.rmtree(run / "checkpoints")
    line = refused(2, arguments(run, shop.catalog, *FOUR), log)
    assert "last_saved" in line and "run.dir" in line, line
    assert (run / "metrics.jsonl").read_text().count("\n") >= 4  # what the run had done still stands


def test_another_runs_state_is_gone_on_from_where_it_is_asked_for(run: Path, finished: Path, shop: Shop) -> None:
    """`run.resume`: a checkpoint of another run, with its whole state: it ends where that run ended."""
    other = run.parent / "other"
    words = arguments(other, shop.catalog, *FOUR, "--run.resume", step(run, 2))
    assert f"resuming {step(run, 2)}" in launch(2, words, run.parent / "log").printed()
    assert checksums(step(other, 4)) == checksums(step(finished, 4))
    (other / "DONE").unlink()
    shutil.rmtree(run)  # no longer needed: the run's own checkpoints come first
    assert f"resuming {step(other, 4)}" in launch(2, words, run.parent.parent / "log").printed()


def test_list_and_verify(run: Path) -> None:
    table = command("checkpoint", "list", run).stdout
    assert table.count("yes") == 2 and "4" in table and "2" in table
    assert command("checkpoint", "verify", run).returncode == 0
    flip_a_bit(step(run, 2) / "model" / "model.safetensors")
    done = command("checkpoint", "verify", run)
    assert done.returncode == 2 and "step-00000002/model/model.safetensors" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    truncate(step(run, 4) / "state-0001.json")
    assert "state-0001.json" in command("checkpoint", "list", run).stdout


def wait_for(start: Ranks, path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline and all(p.is_alive() for p in start.processes), start.printed()[-3000:]
        time.sleep(0.01)


def test_of_two_writers_the_older_one_stops(tmp_path: Path, shop: Shop) -> None:
    """A second start of a run that still lives, as after a network cut: the first one publishes nothing any more."""
    run = tmp_path / "run"
    long = arguments(run, shop.catalog, "--run.max_steps=3000", "--run.save_every=3")
    first = Ranks(2, long, tmp_path / "first")
    wait_for(first, step(run, 3))
    second = Ranks(2, long, tmp_path / "second")
    try:
        assert first.wait(patience=30) == [2, 2], first.printed()[-3000:]
        assert len(first.errors()) == 1 and "start 2 (process" in first.errors()[0], first.errors()
        newest = max((run / "checkpoints").glob("step-*"))
        deadline = time.monotonic() + 60
        while not any(folder > newest for folder in (run / "checkpoints").glob("step-*")):  # the second one goes on
            assert time.monotonic() < deadline and all(p.is_alive() for p in second.processes), second.printed()[-3000:]
            time.sleep(0.01)
    finally:
        second.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_survived_and_after_three_failures_said_to_be_the_end(
    small_disk: Path, tmp_path: Path, shop: Shop
) -> None:
    run = tmp_path / "run"
    words = arguments(run, shop.catalog, "--run.max_steps=3000", "--run.save_every=5")
    words += ["--run.node_local_checkpoints", small_disk / "checkpoints", "--run.keep_last=1"]
    start = Ranks(2, words, tmp_path / "log")
    try:
        wait_for(start, small_disk / "checkpoints" / "step-00000005")
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(65536))
        assert start.wait(patience=30) == [2, 2], start.printed()[-3000:]
    finally:
        start.kill()
    failures = start.lines("could not be written (")
    assert len(failures) == 3 and all("No space left" in line and ".writing/" in line for line in failures), failures
    assert len(start.errors()) == 1 and "3 checkpoints in a row" in start.errors()[0], start.errors()
    saved = [path for path in (small_disk / "checkpoints").glob("step-*")]
    assert len(saved) == 1 and not list((small_disk / "checkpoints").glob(".step-*"))
    ballast.unlink()
    last = int(saved[0].name.removeprefix("step-"))
    words[words.index("--run.max_steps=3000")] = f"--run.max_steps={last + 5}"
    assert f"resuming {saved[0]}" in launch(2, words, tmp_path / "log").printed()


def test_a_read_only_folder_is_said_to_be_one(tmp_path: Path, shop: Shop) -> None:
    """Root writes where modes forbid it, so this is a mount that nobody can write to."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        words = arguments(tmp_path / "run", shop.catalog, "--run.dir", folder / "run")
        line = refused(2, words, tmp_path / "log")
        assert str(folder / "run") in line and "Read-only file system" in line and "run.dir" in line, line
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_each_node_with_its_own_disk(tmp_path: Path, finished: Path, shop: Shop) -> None:
    """Two ranks that see different folders: refused unless asked for; then each finds its shard again."""
    run, log = tmp_path / "run", tmp_path / "log"

    def words(*disks: str) -> list[list[object]]:
        return [arguments(run, shop.catalog, *FOUR, "--run.node_local_checkpoints", tmp_path / disk) for disk in disks]

    first = launch(2, words("disk0", "disk1"), log)
    assert "(2 disks, each with its ranks' shards)" in first.printed()
    for rank in (0, 1):
        folder = tmp_path / f"disk{rank}" / "step-00000004"
        assert sorted(p.name for p in folder.glob("*.safetensors")) == [f"state-{rank:04d}.safetensors"]
        for name, digest in checksums(folder).items():
            assert checksums(step(finished, 4))[name] == digest, name

    # One disk lost its newest part: both go back to the step that both have.
    (run / "DONE").unlink()
    shutil.rmtree(tmp_path / "disk1" / "step-00000004")
    again = launch(2, words("disk0", "disk1"), log)
    assert len(again.lines("1 of its 2 parts")) == 1 and "step-00000002" in "".join(again.lines("resuming"))
    assert checksums(tmp_path / "disk1" / "step-00000004").items() <= checksums(step(finished, 4)).items()

    # The ranks changed nodes; or one of them came back with an empty disk.
    (run / "DONE").unlink()
    line = refused(2, words("disk1", "disk0"), log)
    assert "rank 0 does not find state-0000.safetensors on its node's disk" in line, line
    line = refused(2, words("disk0", "disk2"), log)
    assert "1 of its 2 parts" in line, line


def test_folders_that_are_not_shared_are_found_out(tmp_path: Path, shop: Shop) -> None:
    words = [arguments(tmp_path / f"run{rank}", shop.catalog, *FOUR) for rank in (0, 1)]
    line = refused(2, words, tmp_path / "log")
    assert "rank 1 does not see what rank 0 writes" in line and "run.node_local_checkpoints" in line, line
