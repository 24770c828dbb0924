"""Runs of two ranks whose checkpoints are copied to a real S3 server: killed, on empty disks, refused, left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tests.checkpoint.runs import HALF, STEPS, arguments, checksums, step
from tests.conftest import Shop
from tests.ranks import Ranks, command, launch, refused
from tests.s3 import S3
from tests.settings import losses

pytestmark = pytest.mark.distributed

FOUR = ["--run.max_steps=4", "--run.save_every=2", "--model.dropout=0.0"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3") / "log.txt") as server:
        yield server


@dataclass(frozen=True)
class Whole:
    """A run that nothing happened to."""

    run: Path
    printed: str


@pytest.fixture(scope="module")
def whole(shop: Shop, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = tmp_path_factory.mktemp("mirror") / "whole"
    words = arguments(run, shop.catalog, "--run.mirror=s3://bucket/whole")
    return Whole(run, launch(2, words, run.parent / "log", env=s3.env).printed())


def die_while_uploading(rank: int, victim: int, suffix: str, occurrence: int) -> None:
    """The last thing rank `victim` does is to have sent half of an object whose name ends so, for the n-th time."""
    import s3fs

    if rank != victim:
        return
    real, seen = s3fs.S3FileSystem._put_file, [0]

    async def put(self: s3fs.S3FileSystem, local: str, remote: str, *arguments: object, **more: object) -> None:
        if remote.endswith(suffix):
            seen[0] += 1
            if seen[0] == occurrence:
                half = Path(local).read_bytes()
                await self._pipe_file(remote, half[: len(half) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        await real(self, local, remote, *arguments, **more)

    s3fs.S3FileSystem._put_file = put


def counted(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["mirror_failures"] for line in lines if "mirror_failures" in line]


def mirrored(s3: S3, name: str) -> dict[str, set[str]]:
    """Folder -> its files, of the bucket's folder `name`."""
    found: dict[str, set[str]] = {}
    for path in s3.files.find(f"bucket/{name}"):
        folder, _, file = path.removeprefix(f"bucket/{name}/").partition("/")
        found.setdefault(folder, set()).add(file)
    return found


def test_each_checkpoint_is_copied_behind_the_training(whole: Whole, s3: S3) -> None:
    found = mirrored(s3, "whole")
    names = [step(whole.run, number).name for number in (HALF, STEPS)]
    assert sorted(found) == ["owner.json", *names]
    for name in names:
        folder = whole.run / "checkpoints" / name
        assert found[name] == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        for file in found[name]:
            assert s3.files.cat_file(f"bucket/whole/{name}/{file}") == (folder / file).read_bytes(), file
    assert counted(whole.run) == [0.0] * STEPS
    board = EventAccumulator(str(whole.run / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/mirror_failures")] == [0.0] * STEPS
    (layout,) = board.Tensors("custom_scalars__config__")
    assert b"checkpoints not copied to the mirror" in make_ndarray(layout.tensor_proto).item()
    assert "copied to s3://bucket/whole" in whole.printed  # at the start
    assert all(f"copied {name} to s3://bucket/whole (" in whole.printed for name in names)


def test_killed_while_it_uploads_it_resumes_bitwise_on_an_empty_disk(
    whole: Whole, s3: S3, shop: Shop, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = arguments(run, shop.catalog, "--run.mirror=s3://bucket/killed", "--run.keep_last=1")
    before = (die_while_uploading, (0, "model.safetensors", 2))
    start = Ranks(2, words, tmp_path / "log", before=before, env=s3.env)
    assert start.wait()[0] == -signal.SIGKILL, start.printed()[-3000:]
    found = mirrored(s3, "killed")
    assert "manifest.json" in found["step-00000007"] and "manifest.json" not in found["step-00000014"]
    shutil.rmtree(run)
    again = launch(2, words, tmp_path / "log", env=s3.env)
    assert "taken from s3://bucket/killed: step-00000007 (none is here)" in again.printed()
    assert f"resuming {step(run, HALF)}" in again.printed()
    assert checksums(step(run, STEPS)) == checksums(step(whole.run, STEPS))
    assert losses(run) == {number: of for number, of in losses(whole.run).items() if number > HALF}
    assert sorted(mirrored(s3, "killed")) == ["owner.json", "step-00000014"]  # keep_last
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-00000014"]


def test_a_damaged_copy_is_named_and_the_older_one_taken(whole: Whole, s3: S3, shop: Shop, tmp_path: Path) -> None:
    s3.files.copy("bucket/whole/", "bucket/damaged/", recursive=True)
    name = "bucket/damaged/step-00000014/state-0001.safetensors"
    data = bytearray(s3.files.cat_file(name))
    data[len(data) // 2] ^= 4
    s3.files.pipe_file(name, bytes(data))
    done = command("checkpoint", "verify", "s3://bucket/damaged", env=s3.env)
    assert done.returncode == 2 and "step-00000014/state-0001.safetensors: its checksum" in done.stderr, done.stderr
    words = arguments(tmp_path / "run", shop.catalog, "--run.mirror=s3://bucket/damaged")
    again = launch(2, words, tmp_path / "log", env=s3.env)
    said = again.lines("is not taken")
    assert len(said) == 1 and "s3://bucket/damaged/step-00000014" in said[0], said
    assert "state-0001.safetensors: its checksum is" in said[0], said
    assert f"resuming {step(tmp_path / 'run', HALF)}" in again.printed()
    assert checksums(step(tmp_path / "run", STEPS)) == checksums(step(whole.run, STEPS))
    # What it trained again has replaced the damaged copy.
    table = command("checkpoint", "list", "s3://bucket/damaged", env=s3.env).stdout
    assert table.count("yes") == 2 and "no:" not in table, table
    assert command("checkpoint", "verify", "s3://bucket/damaged", env=s3.env).returncode == 0


def test_a_bucket_that_is_not_there_ends_no_training(s3: S3, shop: Shop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = arguments(run, shop.catalog, *FOUR, "--run.mirror=s3://nowhere/run")
    start = launch(2, words, tmp_path / "log", env=s3.env)
    assert (run / "DONE").exists() and counted(run)[-1] == 2
    first, last = start.lines("WARNING")
    assert "s3://nowhere/run" in first and "The specified bucket does not exist" in first, first
    assert "step-0000000" in first and "1 such failures" in first
    assert "s3://nowhere/run: 2 copies of checkpoints failed, the last of step-00000004" in last, last
    assert last.endswith("none"), last


def test_a_server_that_vanishes_ends_no_training(shop: Shop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = arguments(run, shop.catalog, "--run.mirror=s3://bucket/run", "--run.save_every=10", "--run.max_steps=60")
    with S3(tmp_path / "s3.txt") as s3:
        start = Ranks(2, words, tmp_path / "log", env=s3.env)
        deadline = time.monotonic() + 120
        while not start.lines("copied step-00000010"):
            assert time.monotonic() < deadline and all(p.is_alive() for p in start.processes), start.printed()[-4000:]
            time.sleep(0.01)
    assert start.wait() == [0, 0], start.printed()[-4000:]
    assert (run / "DONE").exists() and step(run, 60).exists()
    copied, failed = len(start.lines("MB in")), int(counted(run)[-1])
    assert failed >= 1 and copied + failed <= 6
    warning = start.lines("could not be copied to s3://bucket/run")[0]
    assert "Could not connect to the endpoint" in warning and "step-000000" in warning, warning
    last = start.lines("copies of checkpoints failed")[0]
    assert f"s3://bucket/run: {failed} copies" in last and "the last of step-00000060" in last, last
    # Started again without its mirror and on an empty disk it does not begin from scratch.
    shutil.rmtree(run)
    line = refused(2, words, tmp_path / "log", env=s3.env)
    assert "run.mirror=s3://bucket/run: cannot be read" in line and "holds no complete checkpoint" in line, line


def test_node_local_disks_and_a_shared_one_take_each_others_copies(whole: Whole, shop: Shop, tmp_path: Path) -> None:
    """Written by two ranks with a disk each, taken by two that share one, by two with new disks, and by one."""
    run, mirror = tmp_path / "run", tmp_path / "mirror"

    def words(steps: int, *disks: str) -> list[list[object]]:
        each = [["--run.node_local_checkpoints", tmp_path / disk] for disk in disks] or [[], []]
        more = [f"--run.max_steps={steps}", "--run.save_every=2", f"--run.mirror=file://{mirror}"]
        return [arguments(run, shop.catalog, *more, *own) for own in each]

    launch(2, words(2, "disk0", "disk1"), tmp_path / "log")
    assert sorted(p.name for p in (mirror / "step-00000002").glob("*.safetensors")) == [
        "state-0000.safetensors", "state-0001.safetensors",
    ]  # fmt: skip
    shutil.rmtree(run)
    shared = launch(2, words(4), tmp_path / "log")
    assert f"resuming {step(run, 2)}" in shared.printed()
    shutil.rmtree(run)
    split = launch(2, words(6, "disk2", "disk3"), tmp_path / "log")
    assert f"resuming {tmp_path / 'disk2' / 'step-00000004'}" in split.printed()
    for rank in (0, 1):
        folder = tmp_path / f"disk{rank + 2}" / "step-00000004"
        assert sorted(p.name for p in folder.glob("*.safetensors")) == [f"state-{rank:04d}.safetensors"]
    # Only one of the two nodes came back with its disk: both take the mirror's.
    (run / "DONE").unlink()
    shutil.rmtree(tmp_path / "disk3")
    half = launch(2, words(8, "disk2", "disk3"), tmp_path / "log")
    assert f"resuming {tmp_path / 'disk2' / 'step-00000006'}" in half.printed()
    assert checksums(tmp_path / "disk3" / "step-00000008").items() <= checksums(mirror / "step-00000008").items()
    shutil.rmtree(run)
    one = launch(1, words(10)[0], tmp_path / "log")
    assert f"resuming {step(run, 8)} of 2 ranks" in one.printed()


def test_the_newer_one_of_disk_and_mirror_is_taken(whole: Whole, s3: S3, shop: Shop, tmp_path: Path) -> None:
    """The mirror is newer; the mirror is older, and gets what it lacks; the mirror is of another run."""
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    shutil.copytree(whole.run, run)
    (run / "DONE").unlink()
    shutil.copytree(step(run, STEPS), mirror / step(run, STEPS).name)
    shutil.rmtree(step(run, STEPS))
    words = arguments(run, shop.catalog, f"--run.mirror=file://{mirror}", "--run.max_steps=16", "--run.save_every=2")
    newer = launch(2, words, tmp_path / "log")
    assert f"taken from file://{mirror}: step-00000014 (newer than step-00000007, the newest here)" in newer.printed()
    shutil.rmtree(mirror)
    (run / "DONE").unlink()
    again = launch(2, words, tmp_path / "log")
    assert f"resuming {step(run, 16)}" in again.printed() and "copied step-00000016" in again.printed()
    itself = f"--run.mirror=file://{tmp_path / 'third' / 'checkpoints'}"
    line = refused(1, [*words, "--run.dir", tmp_path / "third", itself], tmp_path / "log")
    assert "is where the checkpoints are" in line, line
    line = refused(2, [*words, "--run.seed=3", "--run.dir", tmp_path / "other"], tmp_path / "log")
    assert f"run.mirror=file://{mirror}: run.seed of step-00000016 there was 0" in line and "is 3 now" in line, line
    assert not list((tmp_path / "other" / "checkpoints").glob("step-*"))
