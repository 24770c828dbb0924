"""What is copied to a mirror, in which order, what is removed there, and what keeps a copy from being a checkpoint."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem

from mbsd.checkpoint import owner, store
from mbsd.checkpoint.claim import Claim
from mbsd.checkpoint.mirror import Mirror
from mbsd.checkpoint.mirroring import Mirroring
from mbsd.checkpoint.storage import Storage
from mbsd.checkpoint.store import Keep
from mbsd.checkpoint.writer import Job, write
from mbsd.config.data import DataConfig
from mbsd.config.run import BaseConfig, RunConfig
from mbsd.errors import UserError
from mbsd.parallel.world import World
from mbsd.tools.slurm.job import seed_words
from mbsd.tools.studies.launches import training
from tests.s3 import S3


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3") / "log.txt") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server


@dataclass
class Node:
    """Ranks that save together, each in a thread, with a disk each, and copy to one mirror; what rank 0 said."""

    roots: list[Path]
    url: str
    keep: Keep
    said: list[str] = field(default_factory=list)
    token: str = "me"

    def __post_init__(self) -> None:
        self.mailbox = dist.HashStore()
        self.leaders = tuple(range(len(self.roots)))
        for root in self.roots:
            root.mkdir(exist_ok=True)
            owner.claim(root, self.token)
        self.copies = [Mirroring(self.claim(rank), self.mailbox, self.keep, self.said.append) for rank in self.leaders]

    def claim(self, rank: int) -> Claim:
        world = World(rank, len(self.roots), rank, torch.device("cpu"))
        storage = Storage(self.roots[rank], rank, (rank,), self.leaders)
        return Claim(self.roots[rank], world, storage, self.token, Mirror(self.url))

    def save(self, step: int, best: tuple[int, ...] = ()) -> None:
        def run(rank: int) -> None:
            job = Job(
                root=self.roots[rank], step=step, attempt=f"{step}", rank=rank, world_size=len(self.roots), leader=rank,
                members=(rank,), leaders=self.leaders, token=self.token, keep_last=self.keep.last,
                keep_every=self.keep.every, protected=best, mirroring=self.copies[rank],
                files=((f"state-{rank:04d}.safetensors", memoryview(f"rank {rank}, step {step}".encode())),),
            )  # fmt: skip
            outcome = write(job, self.mailbox)
            assert outcome.errors == () and outcome.fenced is None

        threads = [threading.Thread(target=run, args=(rank,)) for rank in self.leaders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()

    def settle(self) -> None:
        assert self.copies[0].wait(60), self.said

    @property
    def local(self) -> list[int]:
        return sorted(store.step_of(folder) for folder in store.folders(self.roots[0]))

    @property
    def mirrored(self) -> dict[int, bool]:
        return dict(sorted(Mirror(self.url).steps().items()))


def node(tmp_path: Path, disks: int = 1, last: int = 1, url: str | None = None) -> Node:
    roots = [tmp_path / f"disk{i}" for i in range(disks)]
    return Node(roots, url or f"file://{tmp_path}/mirror", Keep(last))


@pytest.mark.parametrize("disks", [1, 3])
def test_the_newest_ones_and_the_best_one_are_kept(tmp_path: Path, disks: int) -> None:
    it = node(tmp_path, disks, last=2)
    for step, best in ((10, 10), (20, 10), (30, 10), (40, 10), (50, 50)):
        it.save(step, (best,))
        it.settle()
        expected = sorted({best, *[old for old in (step - 10, step) if old]})
        assert it.local == expected and it.mirrored == dict.fromkeys(expected, True)
    manifest = Mirror(it.url).manifest(50)
    assert (manifest.part, manifest.parts, manifest.world_size) == (0, 1, disks)
    assert sorted(manifest.files) == [f"state-{rank:04d}.safetensors" for rank in range(disks)]
    assert it.copies[0].failures == 0 and len(it.said) == 5


class Gate:
    """Lets no file through to the mirror while it is closed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open, self.met = threading.Event(), threading.Event()
        real = LocalFileSystem.put_file

        def put_file(files: LocalFileSystem, *arguments: object, **more: object) -> None:
            self.met.set()
            assert self.open.wait(60)
            real(files, *arguments, **more)

        patch.setattr(LocalFileSystem, "put_file", put_file)


@pytest.mark.parametrize("disks", [1, 2])
def test_a_slow_mirror_gets_the_newest_and_nothing_piles_up(
    tmp_path: Path, disks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    it = node(tmp_path, disks)
    it.save(10)
    assert gate.met.wait(30)
    for step in (20, 30, 40):
        it.save(step)
        # keep_last=1; what is being copied and what waits for it stay.
        assert it.local == sorted({10, step, step - 10})
        assert it.copies[0].busy == [10, step]
    gate.open.set()
    it.settle()
    assert [line.split()[1] for line in it.said] == ["step-00000010", "step-00000040"]
    assert it.mirrored == {40: True}
    it.save(50)
    it.settle()
    assert it.local == [50] and it.mirrored == {50: True}


def test_a_slow_mirror_gets_the_best_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overtaken by newer ones, it has its turn after one of them; the best one before goes when it stands."""
    it = node(tmp_path)
    it.save(5, (5,))
    it.settle()
    gate = Gate(monkeypatch)
    it.save(10, (5,))
    assert gate.met.wait(30)
    it.save(20, (20,))
    it.save(30, (20,))
    assert it.copies[0].busy == [10, 30, 20]
    gate.open.set()
    it.settle()
    assert [line.split()[1] for line in it.said] == [f"step-000000{step:02d}" for step in (5, 10, 30, 20)]
    assert it.mirrored == it.mirrored | {20: True, 30: True} and 5 not in it.mirrored


def test_a_mirror_that_refuses_for_a_while(tmp_path: Path, s3: S3) -> None:
    it = node(tmp_path, url="s3://bucket/refuses")
    it.save(10)
    it.settle()
    s3.refuse_everybody()
    try:
        for step in (20, 30):
            it.save(step)
            it.settle()
    finally:
        s3.allow_everybody()
    assert it.copies[0].failures == 2
    warnings = [line for line in it.said if line.startswith("WARNING")]
    assert len(warnings) == 1  # the second one within a minute is only counted
    assert "step-00000020 could not be copied to s3://bucket/refuses" in warnings[0], warnings
    assert "PermissionError" in warnings[0] and "1 such failures" in warnings[0]
    assert it.mirrored == {10: True}
    it.save(40)
    it.settle()
    assert it.mirrored == {40: True} and it.copies[0].failures == 2
    it.copies[0].end(0)
    assert "2 copies of checkpoints failed, the last of step-00000030" in it.said[-1], it.said
    assert it.said[-1].endswith("step-00000040")


def test_what_reads_back_otherwise_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = node(tmp_path)
    it.save(10)
    it.settle()
    real = LocalFileSystem.put_file

    def put_file(files: LocalFileSystem, local: str, remote: str, **more: object) -> None:
        real(files, local, remote, **more)
        Path(remote).write_bytes(Path(remote).read_bytes()[:-1] + b"?")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "put_file", put_file)
        it.save(20)
        it.settle()
    assert it.copies[0].failures == 1 and "state-0000.safetensors: reads back with checksum" in it.said[-1], it.said
    assert it.mirrored == {10: True, 20: False}
    it.save(30)
    it.settle()
    assert it.mirrored == {30: True}  # the older ones are removed, the one that was no checkpoint among them


def test_of_two_starts_the_older_one_copies_nothing_more(tmp_path: Path) -> None:
    first = node(tmp_path)
    first.save(10)
    first.settle()
    second = Node([tmp_path / "other"], first.url, Keep(1), token="other")
    second.save(20)
    second.settle()
    for step in (30, 40):
        first.save(step)
        first.settle()
    assert first.copies[0].failures == 1 and "has taken it over, since" in first.said[-1], first.said
    assert first.mirrored == {20: True, 30: False}
    second.save(50)
    second.settle()
    assert second.mirrored == {50: True} and second.copies[0].failures == 0


def test_a_checkpoint_that_the_run_resumes_from_is_copied_where_it_lacks(tmp_path: Path) -> None:
    it = node(tmp_path)
    it.save(10)
    it.settle()
    stamp = (tmp_path / "mirror" / "step-00000010" / "manifest.json").stat().st_mtime_ns
    again = Node(it.roots, it.url, Keep(1))
    again.copies[0].offer(10, (), new=False)
    again.settle()
    assert again.said == []
    assert (tmp_path / "mirror" / "step-00000010" / "manifest.json").stat().st_mtime_ns == stamp
    empty = Node(it.roots, f"file://{tmp_path}/empty", Keep(1))
    empty.copies[0].offer(10, (), new=False)
    empty.settle()
    assert empty.mirrored == {10: True}


def test_a_copy_that_is_not_done_at_the_end_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    it = node(tmp_path)
    it.save(10)
    assert gate.met.wait(30)
    began = time.monotonic()
    assert not it.copies[0].wait(0.2) and time.monotonic() - began < 5
    it.copies[0].end(0.2)
    assert it.copies[0].failures == 1 and "step-00000010 (not done 0.2 s after the end" in it.said[-1], it.said
    gate.open.set()


def test_runs_that_one_command_starts_have_mirrors_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mirror, expected in (("s3://bucket/study", "s3://bucket/study/lr-1e-5"), (None, None)):
        launch = training("lr-1e-5", "finetune", tmp_path / "lr-1e-5", {"run": {"dir": "x", "mirror": mirror}}, {})
        assert launch.config["run"] == {"dir": str(tmp_path / "lr-1e-5"), "mirror": expected}
    words = ["--config", "launchers/configs/small_stage1.yaml", "--deepspeed_config", "ds_configs/cpu_stage1.json"]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert "--run.mirror" not in seed_words("pretrain", words)
    more = seed_words("pretrain", [*words, "--run.mirror=s3://bucket/seeds"])
    assert more[more.index("--run.mirror") + 1] == "s3://bucket/seeds/seed-3"


def test_what_cannot_be_a_mirror_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    refused: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: Mirror("gs://bucket/run"), ["run.mirror=gs://bucket/run", "gcsfs", "pip install 'mbsd[gcs]'"]),
        (lambda: Mirror("nosuch://bucket"), ["run.mirror=nosuch://bucket", "Protocol not known"]),
        (
            BaseConfig(RunConfig("run", max_steps=1, mirror="bucket/run"), DataConfig("c")).check,
            ["run.mirror=bucket/run", "s3://", f"file://{Path.cwd()}/bucket/run"],
        ),
    ]
    for call, words in refused:
        with pytest.raises(UserError) as caught:
            call()
        assert all(word in str(caught.value) for word in words), caught.value
