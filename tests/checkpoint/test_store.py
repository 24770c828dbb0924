"""The commit protocol: what is published is complete, and what is not complete is never taken."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from mbsd.checkpoint import owner, store
from mbsd.errors import UserError


def write(root: Path, step: int, text: str = "weights", attempt: str = "a") -> tuple[Path, store.Manifest]:
    writing = store.writing_folder(root, step, attempt)
    files = {
        "state-0000.safetensors": store.write_text(writing / "state-0000.safetensors", text),
        "model/config.json": store.write_text(writing / "model" / "config.json", "{}"),
    }
    return writing, store.Manifest(step, 1, 0, 1, files)


def publish(root: Path, *steps: int) -> None:
    for step in steps:
        store.mark_latest(store.commit(*write(root, step)))


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith((".", "latest")))


def test_nothing_is_visible_before_the_commit(tmp_path: Path) -> None:
    writing, manifest = write(tmp_path, 10)
    assert store.newest(tmp_path) is None
    final = store.commit(writing, manifest)
    assert final == tmp_path / "step-00000010" == store.newest(tmp_path, checksums=True)
    assert not writing.exists()
    assert store.mark_latest(final) == [] and (tmp_path / "latest").read_text() == final.name


def test_a_hint_that_cannot_be_written_unmakes_no_checkpoint(tmp_path: Path) -> None:
    final = store.commit(*write(tmp_path, 10))
    (tmp_path / "latest").symlink_to("/dev/full")
    (told,) = store.mark_latest(final)
    assert told.startswith(f"{tmp_path / 'latest'}: No space left on device") and "step-00000010 is whole" in told
    assert store.newest(tmp_path, checksums=True) == final


def test_a_file_is_described_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK", 1000)
    data = random.Random(0).randbytes(12_345)
    facts = store.write_file(tmp_path / "folder" / "file", memoryview(data))
    assert (tmp_path / "folder" / "file").read_bytes() == data
    assert facts == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("latest", ["step-00000099", "", None])
def test_the_newest_complete_one_wins_whatever_latest_says(tmp_path: Path, latest: str | None) -> None:
    publish(tmp_path, 10, 20, 30, 40)
    (tmp_path / "latest").unlink() if latest is None else (tmp_path / "latest").write_text(latest)
    state = "state-0000.safetensors"
    (tmp_path / "step-00000040" / state).write_text("Weights")  # the size it had
    assert store.newest(tmp_path) == tmp_path / "step-00000040"
    assert store.newest(tmp_path, checksums=True) == tmp_path / "step-00000030"
    assert store.newest(tmp_path, checksums=True, below="model/") == tmp_path / "step-00000040"
    assert state in store.broken_files(tmp_path / "step-00000040", checksums=True)[0]
    (tmp_path / "step-00000030" / state).write_text("weigh")
    assert store.broken_files(tmp_path / "step-00000030") == [f"{state}: 5 bytes, expected 7 bytes"]
    (tmp_path / "step-00000020" / state).unlink()
    assert store.newest(tmp_path) == tmp_path / "step-00000040"
    assert store.newest(tmp_path, checksums=True) == tmp_path / "step-00000010"
    (tmp_path / "step-00000010" / "manifest.json").write_text("{")
    assert store.newest(tmp_path, checksums=True) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": {"a": 1}}', '{"files": {}, "step": 1}'])
def test_a_manifest_that_is_none_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    publish(tmp_path, 10)
    (tmp_path / "step-00000010" / "manifest.json").write_text(text)
    assert "not a manifest" in store.broken_files(tmp_path / "step-00000010")[0]


def test_a_folder_under_another_name_is_not_taken(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    (tmp_path / "step-00000010").rename(tmp_path / "step-00000099")
    assert "is of step-00000010" in store.broken_files(tmp_path / "step-00000099")[0]


def test_interrupted_saves_are_swept(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    write(tmp_path, 20)
    store.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["step-00000010"]


def test_a_save_over_a_broken_checkpoint_replaces_it(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    (tmp_path / "step-00000010" / "model" / "config.json").unlink()
    assert store.newest(tmp_path) is None
    store.commit(*write(tmp_path, 10, "new", "b"))
    assert store.newest(tmp_path, checksums=True) == tmp_path / "step-00000010"
    assert (tmp_path / "step-00000010" / "state-0000.safetensors").read_text() == "new"
    assert names(tmp_path) == ["step-00000010"]


def test_pruning(tmp_path: Path) -> None:
    publish(tmp_path, *range(10, 80, 10))
    assert store.prune(tmp_path, 70, keep_last=2, keep_every=30) == []
    assert names(tmp_path) == [store.name_of(step) for step in (30, 60, 70)]
    store.prune(tmp_path, 70, keep_last=0)
    assert names(tmp_path) == ["step-00000070"]


def test_pruning_never_takes_the_last_good_one(tmp_path: Path) -> None:
    """A run that went back from 40 (flipped) and 30 (cut off) to 10 publishes 20."""
    publish(tmp_path, 10, 20, 30, 40)
    (tmp_path / "step-00000040" / "state-0000.safetensors").write_text("Weights")
    (tmp_path / "step-00000030" / "state-0000.safetensors").write_text("")
    (tmp_path / "step-00000010" / "model" / "config.json").unlink()
    store.prune(tmp_path, 20, keep_last=1)
    assert store.newest(tmp_path, checksums=True) == tmp_path / "step-00000020"


def test_an_older_start_is_fenced(tmp_path: Path) -> None:
    first = owner.claim(tmp_path, "first")
    owner.check(tmp_path, "first")
    second = owner.claim(tmp_path, "second")
    assert second.generation == first.generation + 1
    with pytest.raises(owner.FencedError, match=r"start 2 \(process \d+ on .* has taken the run over"):
        store.commit(*write(tmp_path, 10), allowed=lambda: owner.check(tmp_path, "first"))
    assert store.newest(tmp_path) is None
    store.commit(*write(tmp_path, 10, attempt="b"), allowed=lambda: owner.check(tmp_path, "second"))
    assert store.newest(tmp_path) == tmp_path / "step-00000010"


def test_a_restart_knows_that_it_is_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    owner.claim(tmp_path, "late")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(UserError, match="restart 1 of job 77, and restart 2 owns"):
        owner.claim(tmp_path, "early")
    monkeypatch.delenv("SLURM_RESTART_COUNT")  # as Slurm does at the first start
    with pytest.raises(UserError, match="restart 0 of job 77, and restart 2 owns"):
        owner.claim(tmp_path, "first")
    owner.check(tmp_path, "late")
    monkeypatch.setenv("SLURM_JOB_ID", "78")  # another job may take over, whatever it counts
    assert owner.claim(tmp_path, "other").generation == 2


def test_the_manifest_is_what_the_folder_holds(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    tree = json.loads((tmp_path / "step-00000010" / "manifest.json").read_text())
    assert tree["files"]["model/config.json"] == [2, hashlib.sha256(b"{}").hexdigest()]
    manifest = store.read_manifest(tmp_path / "step-00000010")
    assert manifest.size == 9 and (manifest.step, manifest.world_size, manifest.parts) == (10, 1, 1)
