"""The fake device, built once, and what runs on it: two processes that fork all others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import Shop
from tests.fake_cuda.build import build, why_not
from tests.fake_cuda.forked import Process, Result, write_plan
from tests.fake_cuda.launchers import LOCAL_RANK, VALIDATIONS, Launches, all_visible, on_places, one_per_task
from tests.fake_cuda.recorder import Part, read
from tests.fake_cuda.run import environment
from tests.ranks import ROOT

KNOWN = {"fp16": "70", "bf16": "90"}
# Those that this torch has kernels for: torch's wheels for CUDA 13 have none for a V100.
BUILT_FOR = (getattr(torch._C, "_cuda_getArchFlags", str)() or "").split()
CAPABILITY = {name: sm for name, sm in KNOWN.items() if f"sm_{sm}" in BUILT_FOR}


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that is the device; skips where it cannot be built."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    # The folder above is that of all of pytest-xdist's processes.
    base = tmp_path_factory.getbasetemp()
    return build((base.parent if base.name.startswith("popen-") else base) / "fake_cuda")


@pytest.fixture(autouse=True)
def built_for(request: pytest.FixtureRequest) -> None:
    """Skips a test of a precision (in its parameters) whose device this torch has no kernels for."""
    parameters = getattr(request.node, "callspec", None)
    words = " ".join(map(str, parameters.params.values())).split() if parameters else []
    for precision in KNOWN.keys() & set(words) - CAPABILITY.keys() if BUILT_FOR else ():
        pytest.skip(f"this torch has no kernels for sm_{KNOWN[precision]}")


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
def asked(fake_cuda: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Part]:
    """Name of a part → what `asks.py` asked of an H100 of two, started as a user starts a command on the device."""
    folder = tmp_path_factory.mktemp("asked")
    words = ["--capability", "90", "--devices", "2", "--log", str(folder / "log"), "--library", str(fake_cuda)]
    command = [sys.executable, "-m", "tests.fake_cuda.run", *words, "--", "python", "-m", "tests.fake_cuda.asks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (parts,) = read(folder / "log").values()
    return {part.name: part for part in parts}


@pytest.fixture(scope="session")
def launched(fake_cuda: Path, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Result]]:
    """Name of a run → what each of its ranks did: stages, fine-tuning and evaluation through their launchers.

    fp16 …: one rank on a V100 that sees all of eight; bf16 …: two ranks, each of which sees an H100 of its own alone;
    no bf16: bf16 on a V100; shared: two ranks on one H100.
    """
    folder = tmp_path_factory.mktemp("launched")
    starts: dict[str, list[Process]] = {}
    for precision in CAPABILITY:
        places = [all_visible(LOCAL_RANK)] if precision == "fp16" else one_per_task(2)
        (folder / precision).mkdir()
        of = Launches(folder / precision, shop, precision, len(places))
        validations = VALIDATIONS if precision == "fp16" else 5
        series = {
            "masked": of.stage_1(6), "matching": of.stage_2(validations), "finetune": of.finetune(6),
            "evaluate": of.evaluate(),
        }  # fmt: skip
        places = [{**place, "FAKE_CUDA_CAPABILITY": CAPABILITY[precision]} for place in places]
        for name, words in series.items():
            starts[f"{precision} {name}"] = on_places(words, folder / f"{precision}_{name}", places)
    for name, places in (("no bf16", [all_visible(LOCAL_RANK)]), ("shared", one_per_task(2, shared=True))):
        (folder / name).mkdir()
        words = Launches(folder / name, shop, "bf16", len(places)).stage_1(6)
        places = [{**place, "FAKE_CUDA_CAPABILITY": KNOWN["fp16" if name == "no bf16" else "bf16"]} for place in places]
        starts[name] = on_places(words, folder / f"refused_{name}", places)
    run_plan(fake_cuda, folder, list(starts.values()))
    return {name: [Result.of(process) for process in start] for name, start in starts.items()}


def run_plan(library: Path, folder: Path, starts: list[list[Process]]) -> None:
    """Run them on eight devices."""
    plan = write_plan(folder / "plan.json", starts)
    command = [sys.executable, "-m", "tests.fake_cuda.forked", str(plan)]
    env = environment(library, 70, 8, None, folder)
    env = {name: value for name, value in env.items() if not name.startswith(("SLURM_", "CUDA_VISIBLE"))}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]
