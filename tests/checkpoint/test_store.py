"""The commit protocol: what is published is complete, and what is not complete is never taken."""

from __future__ import annotations

from pathlib import Path

from mbsd.checkpoint import store


def write(root: Path, step: int, text: str = "weights") -> Path:
    writing = store.open_for_writing(root, step)
    (writing / "engine").mkdir()
    (writing / "engine" / "rank0").write_text(text)
    return writing


def test_nothing_is_visible_before_the_commit(tmp_path: Path) -> None:
    writing = write(tmp_path, 10)
    assert store.newest(tmp_path) is None
    final = store.commit(writing)
    assert final == tmp_path / "step-00000010" == store.newest(tmp_path)
    assert not writing.exists()
    assert (tmp_path / "latest").read_text() == final.name


def test_the_newest_complete_one_wins_whatever_latest_says(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        store.commit(write(tmp_path, step))
    (tmp_path / "latest").write_text("step-00000099")
    assert store.newest(tmp_path) == tmp_path / "step-00000030"
    (tmp_path / "step-00000030" / "engine" / "rank0").write_text("weigh")
    assert store.broken_files(tmp_path / "step-00000030") == ["engine/rank0: 5 bytes, expected 7 bytes"]
    assert store.newest(tmp_path) == tmp_path / "step-00000020"
    (tmp_path / "step-00000020" / "engine" / "rank0").unlink()
    assert store.newest(tmp_path) == tmp_path / "step-00000010"
    (tmp_path / "step-00000010" / "manifest.json").write_text("{")
    assert store.newest(tmp_path) is None


def test_an_interrupted_save_is_begun_anew(tmp_path: Path) -> None:
    (write(tmp_path, 10) / "left_over").write_text("x")
    final = store.commit(write(tmp_path, 10, "new"))
    assert not (final / "left_over").exists()
    assert (final / "engine" / "rank0").read_text() == "new"


def test_a_save_over_a_broken_checkpoint_replaces_it(tmp_path: Path) -> None:
    (store.commit(write(tmp_path, 10)) / "engine" / "rank0").unlink()
    assert store.newest(tmp_path) is None
    assert store.newest(tmp_path) is None and not store.broken_files(store.commit(write(tmp_path, 10)))


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        store.commit(write(tmp_path, step))
    store.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000003", "step-00000004"]
    store.prune(tmp_path, 0)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000004"]
