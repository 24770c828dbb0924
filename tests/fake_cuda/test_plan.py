"""`mbsd plan` against the allocator of a V100 (fp16) and an H100 (bf16): BERT-base at the paper's micro-batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda.activations import CASES
from tests.fake_cuda.conftest import CAPABILITY, KNOWN, run_plan
from tests.fake_cuda.forked import Process, Result

INDICES = 1e6  # bytes at most of a batch's indices, which are there before the forward and are kept for the backward


@pytest.fixture(scope="module")
def measured(fake_cuda: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Precision → case → bytes; see `activations.py`."""
    folder = tmp_path_factory.mktemp("activations")
    module = "tests.fake_cuda.activations"
    processes = {
        precision: Process([module, precision], str(folder / precision), {"FAKE_CUDA_CAPABILITY": sm})
        for precision, sm in CAPABILITY.items()
    }
    run_plan(fake_cuda, folder, [list(processes.values())])  # at once
    results = {precision: Result.of(process) for precision, process in processes.items()}
    for result in results.values():
        assert result.code == 0, result.printed[-4000:]
    return {precision: json.loads(result.printed.splitlines()[-1]) for precision, result in results.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", KNOWN)
def test_activations_are_what_the_allocator_gives(
    measured: dict[str, dict[str, Any]], precision: str, case: str
) -> None:
    """Predicted is what tensors ask for, but for indices; the allocator gives blocks, a few per cent more."""
    kept, peak = measured[precision][case]["kept"], measured[precision][case]["peak"]
    assert kept["requested"] <= kept["predicted"] < kept["requested"] + INDICES
    assert kept["predicted"] == pytest.approx(kept["allocated"], rel=0.05)
    assert peak["predicted"] == pytest.approx(peak["allocated"], rel=0.05)
    assert peak["predicted"] > kept["predicted"] > 300e6
