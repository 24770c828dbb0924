"""`mbsd plan --measured`: times follow what was measured on such a GPU; the report says what was and what was not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mbsd.cli.main import app
from mbsd.errors import UserError
from mbsd.tools.plan.gpus import find_gpu, make_cluster
from mbsd.tools.plan.measured import Shares, read_measured
from mbsd.tools.plan.speed import StepWork, speed
from mbsd.tools.plan.trace import Kernel

H100 = find_gpu("h100-80g")
GPU_JSON: dict[str, Any] = {
    "gpu": {"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "memory": 85520809984},
    "torch": "2.10.0", "cuda": "12.8",
    "figures": {
        "matmul_share": {"value": 0.5, "how": "products of 8192 x 8192"},
        "bandwidth_share": {"value": 0.9, "how": "copies of 4 GiB"},
        "launch_seconds": {"value": 4e-6, "how": "10,000 empty kernels"},
        "lamb_bandwidth_share": {"value": 0.25, "how": "a step of BERT-base"},
        "samples_per_second": {"value": None, "reason": "no time left"},
    },
}  # fmt: skip
WORDS = [
    "plan", "--config", "launchers/configs/stage1.yaml", "--deepspeed_config", "ds_configs/h100x8_stage1.json",
    "--gpus", "8", "--model.num_hidden_layers=1",
]  # fmt: skip


def written(folder: Path, changes: dict[str, Any]) -> Path:
    """`GPU_JSON` with other values at dotted keys; a value of `...` removes its key."""
    tree = copy.deepcopy(GPU_JSON)
    for key, value in changes.items():
        *parents, last = key.split(".")
        at = tree
        for parent in parents:
            at = at[parent]
        if value is ...:
            del at[last]
        else:
            at[last] = value
    path = folder / "gpu.json"
    path.write_text(json.dumps(tree))
    return path


def test_times_are_those_of_the_measured_shares(tmp_path: Path) -> None:
    """A kernel of each kind, by hand, on a GPU whose data sheet is known."""
    shares = read_measured(written(tmp_path, {}), H100)
    product, copy_of = Kernel(flops=989e12, bytes=1.0), Kernel(flops=0.0, bytes=3350e9)
    work = StepWork(half=True, trained=1_000_000, accumulation=3, zero_stage=0, overlap=False)
    found = speed([product, copy_of], make_cluster(H100, 1), work, shares)
    assert found.compute == pytest.approx(3 * (1 / 0.5 + 1 / 0.9))
    assert found.optimizer == pytest.approx(10 * 4 * 1_000_000 / 3350e9 / 0.25)
    assert found.reduce == 0 and found.step == found.compute + found.optimizer
    small = [Kernel(flops=0.0, bytes=1.0)] * 1000
    assert speed(small, make_cluster(H100, 1), work, shares).compute == pytest.approx(3 * 1000 * 4e-6)


def test_what_was_not_measured_is_assumed(tmp_path: Path) -> None:
    path = written(
        tmp_path, {"figures.bandwidth_share": {"value": None, "reason": "x"}, "figures.lamb_bandwidth_share": ...}
    )
    shares, assumed = read_measured(path, H100), Shares()
    assert shares.measured == ("matmul", "launch")
    assert (shares.matmul, shares.launch) == (0.5, 4e-6)
    assert (shares.bandwidth, shares.lamb_bandwidth) == (assumed.bandwidth, assumed.bandwidth)
    known, not_known = shares.described()
    assert known.startswith("measured on NVIDIA H100 80GB HBM3 (") and "50% of the peak" in known
    assert "4.0 us to launch a kernel" in known and "memory bandwidth" not in known
    assert not_known.startswith(
        "assumed, not measured: 80% of memory bandwidth, 80% of memory bandwidth in LAMB's step"
    )
    assert "peak of matrix products" not in not_known and "80% of links" in not_known


def test_the_command(tmp_path: Path) -> None:
    """With and without: the same work, other times, and both named in what is printed and written."""
    plans, printed = [], []
    path = written(tmp_path, {})
    for more in ([], ["--measured", str(path)]):
        words = [*WORDS, "--gpu", "h100", *more, "--json", str(tmp_path / "plan.json")]
        done = CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=False)
        assert done.exit_code == 0
        plans.append(json.loads((tmp_path / "plan.json").read_text()))
        printed.append(done.stdout)
    assumed, measured = plans
    assert measured["memory"] == assumed["memory"] and measured["flops"] == assumed["flops"]
    assert measured["speed"]["optimizer"] == pytest.approx(assumed["speed"]["optimizer"] * 0.8 / 0.25)
    assert measured["speed"]["reduce"] == assumed["speed"]["reduce"]
    assert measured["shares"]["matmul"] == 0.5 and measured["shares"]["measured"] == [
        "matmul", "bandwidth", "launch", "lamb"
    ]  # fmt: skip
    assert "measured on" not in printed[0] and "assumed, not measured: 65% of the peak of matrix products" in printed[0]
    assert f"measured on NVIDIA H100 80GB HBM3 ({path}, torch 2.10.0, CUDA 12.8): 50% of the peak" in printed[1]
    assert "assumed, not measured: 80% of links" in printed[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu.name": "NVIDIA H200"}, "gpu is NVIDIA H200, capability .9, 0.; expected NVIDIA H100 80GB HBM3, cap"),
        ({"gpu.name": "NVIDIA H100 PCIe"}, "gpu is NVIDIA H100 PCIe"),
        ({"gpu.capability": [7, 0]}, "capability .7, 0.; expected"),
        ({"gpu": ...}, "gpu is null; expected an object"),
        ({"figures": []}, r"figures is \[\]; expected an object"),
        ({"figures.launch_seconds": ...}, "figures.launch_seconds is null; expected"),
        ({"figures.matmul_share": 0.7}, "figures.matmul_share is 0.7; expected"),
        ({"figures.matmul_share": {"how": "x"}}, "figures.matmul_share is .*expected"),
        ({"figures.matmul_share.value": 65}, "figures.matmul_share.value is 65; expected a share above 0, at most 1"),
        ({"figures.bandwidth_share.value": True}, "figures.bandwidth_share.value is true"),
        ({"figures.bandwidth_share.value": float("nan")}, "figures.bandwidth_share.value is NaN"),
        ({"figures.launch_seconds.value": 0}, "figures.launch_seconds.value is 0; expected seconds above 0"),
        ({"figures.lamb_bandwidth_share": {}}, "figures.lamb_bandwidth_share is {}; expected"),
    ],
)
def test_another_gpu_or_a_figure_that_is_none_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, changes)
    with pytest.raises(UserError, match=message) as refused:
        read_measured(path, H100)
    assert str(refused.value).startswith(f"--measured {path}: ") and "\n" not in str(refused.value)
    assert "make gpu" in str(refused.value)


@pytest.mark.parametrize(("text", "message"), [(None, "not a readable JSON file"), ("{", "not a readable JSON file"),
                                               ("[1]", "expected an object with gpu and figures")])  # fmt: skip
def test_what_is_no_measurement_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_measured(path, H100)
