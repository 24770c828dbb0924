"""The small runs of these tests, and what is compared between them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.ranks import Ranks
from tests.settings import stage_1_words

STEPS = 14  # 12 make an epoch of the shop at 16 samples a step
HALF = 7
DROPOUT = "--model.dropout=0.1"


def arguments(run: Path, catalog: Path, *more: object, ds: dict[str, Any] | None = None) -> list[object]:
    """A stage-1 run with dropout, crops and flips, saved in the middle of its first epoch and at its end."""
    often = [f"--run.save_every={HALF}", "--run.log_every=1", "--run.validate_every=0", "--run.validate_samples=8"]
    return stage_1_words(run, catalog, STEPS, *often, DROPOUT, *more, **(ds or {}))


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number:08d}"


def kill_after(start: Ranks, folder: Path) -> None:
    """kill -9 of every rank once `folder` is there."""
    deadline = time.monotonic() + 120
    while not folder.exists():
        assert time.monotonic() < deadline and any(p.is_alive() for p in start.processes), start.printed()[-4000:]
        time.sleep(0.005)
    start.kill()


def checksums(checkpoint: Path) -> dict[str, str]:
    """File -> checksum, of everything that says how training goes on (the settings hold the run folder's name)."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return {name: digest for name, (_, digest) in files.items() if name not in ("config.yaml", "ds_config.json")}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def chaos_arguments(run: Path, catalog: Path, kills: int) -> list[object]:
    """A run that saves every other step and lasts longer than so many kills take to get it to its end."""
    more = [f"--run.max_steps={10 * kills}", "--run.save_every=2", "--run.keep_every=50"]
    return arguments(run, catalog, *more, ds={"train_batch_size": 4})


def newest_step(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))
