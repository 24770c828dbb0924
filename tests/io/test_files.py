"""Files that take the place of others: whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mbsd.io.files import digest_of, replace_text, replacing


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    replace_text(path, "first")
    with replacing(path) as beside:
        beside.write_text("second")
        assert path.read_text() == "first" and beside.parent == path.parent
    assert path.read_text() == "second" and os.listdir(path.parent) == ["file.txt"]
    assert digest_of(path) == "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4"


@pytest.mark.parametrize("folder", [False, True])
def test_what_fails_leaves_what_was_there(folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "there"
    if not folder:
        path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as beside:
        if folder:
            beside.mkdir()
            (beside / "part").write_text("new")
        else:
            beside.write_text("ne")
        raise OSError("full")
    assert os.listdir(tmp_path) == ([] if folder else ["there"])
    assert folder or path.read_text() == "old"


def test_a_folder_takes_the_place_of_an_empty_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with replacing(path) as beside:
        beside.mkdir()
        (beside / "a").write_text("1")
    assert os.listdir(path) == ["a"]
    with pytest.raises(OSError), replacing(path) as beside:
        beside.mkdir()
    assert os.listdir(path) == ["a"] and os.listdir(tmp_path) == ["folder"]


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "storage" / "file")
    replace_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "storage" / "file").read_text() == "new"
    code = "from pathlib import Path; from mbsd.io.files import replace_text; replace_text(Path('/dev/stdout'), 'text')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "text" and Path("/dev/stdout").is_symlink()


def test_a_full_disk_is_said_with_the_file(tmp_path: Path) -> None:
    """Python's own error of a write to an open file names none; one of reading something else keeps its name."""
    (tmp_path / "there").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        replace_text(tmp_path / "there", "new")
    assert raised.value.filename == str(tmp_path / "there")
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "new"):
        (tmp_path / "source").read_bytes()
    assert raised.value.filename == str(tmp_path / "source")
    with pytest.raises(ConnectionError) as raised, replacing(tmp_path / "new"):
        raise ConnectionResetError(104, "Connection reset by peer")
    assert raised.value.filename is None
