"""The fake device, built once, and what runs on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_cuda.build import build, why_not
from tests.fake_cuda.recorder import Part, read
from tests.fake_cuda.run import environment
from tests.ranks import ROOT


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
    found = {}
    for precision, capability in (("fp16", 70), ("bf16", 90)):
        folder = tmp_path_factory.mktemp(f"steps_{precision}")
        env = environment(fake_cuda, capability, 2, folder / "log", folder)
        done = subprocess.run(
            [sys.executable, "-m", "tests.fake_cuda.steps", precision], env=env, cwd=ROOT, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        (parts,) = read(folder / "log").values()
        found[precision] = {part.name: part for part in parts}
    return found
