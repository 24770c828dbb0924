"""Ranks that write together: all or nothing, on one file system and on several."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from mbsd.checkpoint import owner, store
from mbsd.checkpoint.writer import Job, Outcome, write


def save(
    roots: list[Path],
    step: int,
    data: dict[int, bytes] | None = None,
    attempt: str = "1",
    protected: tuple[int, ...] = (),
) -> list[Outcome]:
    """Each rank in a thread of its own, with the folder it sees; returns their outcomes."""
    leader_of = [roots.index(root) for root in roots]
    mailbox, outcomes = dist.HashStore(), {}
    for rank in sorted(set(leader_of)):
        if not (roots[rank] / "owner.json").exists():
            owner.claim(roots[rank], "me")

    def run(rank: int) -> None:
        text = (data or {}).get(rank, f"rank {rank}, step {step}".encode())
        job = Job(
            root=roots[rank], step=step, attempt=attempt, rank=rank, world_size=len(roots), leader=leader_of[rank],
            members=tuple(r for r in range(len(roots)) if leader_of[r] == leader_of[rank]),
            leaders=tuple(sorted(set(leader_of))), token="me", keep_last=1, keep_every=0,
            protected=protected,
            files=((f"state-{rank:04d}.safetensors", memoryview(text)),),
        )  # fmt: skip
        outcomes[rank] = write(job, mailbox)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(roots))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return [outcomes[rank] for rank in range(len(roots))]


def folders(tmp_path: Path, count: int, ranks: int) -> list[Path]:
    made = [tmp_path / f"disk{i}" for i in range(count)]
    for root in made:
        root.mkdir()
    return [made[rank * count // ranks] for rank in range(ranks)]


def test_the_best_checkpoint_outlives_newer_ones(tmp_path: Path) -> None:
    roots = folders(tmp_path, 2, 2)
    for step in (10, 20, 30):
        save(roots, step, protected=(10,))
    for root in roots:
        assert sorted(path.name for path in root.glob("step-*")) == ["step-00000010", "step-00000030"]


@pytest.mark.parametrize("disks", [1, 2, 3])
def test_all_ranks_files_are_published_together(tmp_path: Path, disks: int) -> None:
    roots = folders(tmp_path, disks, 3)
    outcome = save(roots, 10)[0]
    assert outcome.errors == () and outcome.fenced is None
    found = {}
    for i, root in enumerate(dict.fromkeys(roots)):
        folder = root / "step-00000010"
        assert store.broken_files(folder, checksums=True) == []
        manifest = store.read_manifest(folder)
        assert (manifest.part, manifest.parts, manifest.world_size) == (i, disks, 3)
        found |= manifest.files
    assert sorted(found) == [f"state-{rank:04d}.safetensors" for rank in range(3)]
    assert outcome.bytes == sum(facts.size for facts in found.values())


@pytest.mark.parametrize("disks", [1, 2])
def test_one_rank_that_cannot_write_is_everybodys_failure(tmp_path: Path, disks: int) -> None:
    roots = folders(tmp_path, disks, 2)
    save(roots, 10)
    # A file where rank 1 needs a folder fails its write for root, too.
    (store.writing_folder(roots[1], 20, "2") / "state-0001.safetensors").mkdir(parents=True)
    outcome = save(roots, 20, attempt="2")[0]
    assert len(outcome.errors) == 1 and "rank 1 on" in outcome.errors[0] and "state-0001" in outcome.errors[0]
    for root in set(roots):
        assert [p.name for p in root.iterdir() if p.is_dir()] == ["step-00000010"]  # not pruned, nothing left over
    assert save(roots, 30, attempt="3")[0].errors == ()
    assert store.newest(roots[0], checksums=True) == roots[0] / "step-00000030"


def test_a_newer_start_on_one_disk_fences_all(tmp_path: Path) -> None:
    roots = folders(tmp_path, 2, 2)
    save(roots, 10)
    owner.claim(roots[1], "newer")
    fenced = save(roots, 20, attempt="2")[0].fenced
    assert fenced is not None and str(roots[1]) in fenced and f"process {os.getpid()}" in fenced
    assert not (roots[1] / "step-00000020").exists()
    assert (roots[0] / "step-00000010").exists()  # not pruned: step 20 does not stand everywhere
