"""The fake device, built once, and what runs on it: two processes that fork all others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Shop
from tests.fake_cuda.build import build, why_not
from tests.fake_cuda.forked import Process, Result, write_plan
from tests.fake_cuda.launchers import LOCAL_RANK, VALIDATIONS, Launches, all_visible, on_places, one_per_task
from tests.fake_cuda.recorder import Part
from tests.fake_cuda.run import environment
from tests.ranks import ROOT

CAPABILITY = {"fp16": "70", "bf16": "90"}


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that is the device; skips where it cannot be built."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    # The folder above is that of all of pytest-xdist's processes.
    base = tmp_path_factory.getbasetemp()
    return build((base.parent if base.name.startswith("popen-") else base) / "fake_cuda")


@pytest.fixture(scope="session")
def steps(fake_cuda: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Part]]:
    """Precision → name of a part → what it asked of a V100 (fp16) or an H100 (bf16); see `steps.py`."""
    folder = tmp_path_factory.mktemp("steps")
    processes = {
        precision: Process(["tests.fake_cuda.steps", precision], str(folder / precision), {"FAKE_CUDA_CAPABILITY": sm})
        for precision, sm in CAPABILITY.items()
    }
    run_plan(fake_cuda, folder, [[process] for process in processes.values()])
    results = {precision: Result.of(process) for precision, process in processes.items()}
    for result in results.values():
        assert result.code == 0, result.printed[-4000:]
    return {precision: {part.name: part for part in result.parts} for precision, result in results.items()}


@pytest.fixture(scope="session")
def launched(fake_cuda: Path, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Result]]:
    """Name of a run → what each of its ranks did: stages, fine-tuning and evaluation through their launchers.

    fp16 …: one rank on a V100 that sees all of eight; bf16 …: two ranks, each with an H100 that is the only one it sees.
    """
    folder = tmp_path_factory.mktemp("launched")
    starts: dict[str, list[Process]] = {}
    for precision, places in (("fp16", [all_visible(LOCAL_RANK)]), ("bf16", one_per_task(2))):
        (folder / precision).mkdir()
        of = Launches(folder / precision, shop, precision, len(places))
        validations = VALIDATIONS if precision == "fp16" else 2
        series = {
            "masked": of.stage_1(6), "matching": of.stage_2(validations), "finetune": of.finetune(6),
            "evaluate": of.evaluate(),
        }  # fmt: skip
        places = [{**place, "FAKE_CUDA_CAPABILITY": CAPABILITY[precision]} for place in places]
        for name, words in series.items():
            starts[f"{precision} {name}"] = on_places(words, folder / f"{precision}_{name}", places)
    run_plan(fake_cuda, folder, list(starts.values()))
    return {name: [Result.of(process) for process in start] for name, start in starts.items()}


def run_plan(library: Path, folder: Path, starts: list[list[Process]]) -> None:
    """Run them on eight devices."""
    plan = write_plan(folder / "plan.json", starts)
    command = [sys.executable, "-m", "tests.fake_cuda.forked", str(plan)]
    env = environment(library, 70, 8, None, folder)
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
