"""Finding what to go on from beside an older start that still lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mbsd.checkpoint import store
from mbsd.checkpoint.resume import find
from mbsd.checkpoint.storage import Storage
from mbsd.parallel.world import World
from tests.ranks import ROOT, call

LOOKS = 100
# Publishes and prunes as fast as it can: what a look has listed is often gone when it is read.
OLDER_START = """
import json, sys
from pathlib import Path
from mbsd.checkpoint import store

root, step = Path(sys.argv[1]), 0
while True:
    step += 1
    writing = store.writing_folder(root, step, "older")
    texts = {"run.json": json.dumps({"step": step, "identity": {}})}
    texts |= {f"state-000{rank}.safetensors": "s" for rank in range(2)}
    files = {name: store.write_text(writing / name, text) for name, text in texts.items()}
    store.commit(writing, store.Manifest(step, 2, 0, 1, files))
    store.prune(root, step, 1)
"""

# The same without content: the newer folder comes before the older one goes.
REPLACING = """
import os, sys
from mbsd.checkpoint.store import name_of

os.chdir(sys.argv[1])
step = 1
while True:
    os.mkdir(name_of(step + 1))
    os.rename(name_of(step), ".gone")
    os.rmdir(".gone")
    step += 1
"""


def look(rank: int, world_size: int, root: Path) -> list[int]:
    """The steps that were found, look after look, with every file's checksum and without."""
    world = World(rank, world_size, rank, torch.device("cpu"))
    storage = Storage(root, 0, tuple(range(world_size)), (0,))
    steps = []
    for number in range(LOOKS):
        found = find(storage, world, {}, say=lambda text: None, verify=number % 2 == 0)
        assert found is not None
        steps.append(int(found.facts["step"]))
    return steps


@pytest.mark.distributed
def test_a_start_finds_a_checkpoint_while_an_older_one_writes_and_removes_them(tmp_path: Path) -> None:
    older = subprocess.Popen([sys.executable, "-c", OLDER_START, str(tmp_path)], cwd=ROOT)
    try:
        while not list(tmp_path.glob("step-*")):
            assert older.poll() is None
        steps, others = call(look, 2, tmp_path)
    finally:
        older.kill()
        older.wait()
    assert steps == others == sorted(steps)
    assert len(set(steps)) > 10  # there was something to get wrong


def test_a_listing_is_never_empty_while_an_older_start_publishes_and_removes(tmp_path: Path) -> None:
    (tmp_path / store.name_of(1)).mkdir()
    older = subprocess.Popen([sys.executable, "-c", REPLACING, str(tmp_path)], cwd=ROOT)
    try:
        while (tmp_path / store.name_of(1)).exists():
            assert older.poll() is None
        seen = [store.folders(tmp_path) for _ in range(5000)]
    finally:
        older.kill()
        older.wait()
    assert min(map(len, seen)) >= 1  # a folder was always there
    assert len({folder for listed in seen for folder in listed}) > 10
