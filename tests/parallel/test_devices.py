"""GPUs that a torch was built for, and the table of ranks."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from mbsd.errors import UserError
from mbsd.parallel.devices import RankFacts, choose_device, print_ranks, rank_facts, refuse_missing_kernels
from mbsd.parallel.launch_env import LaunchEnvironment

# torch.cuda.get_arch_list() of the PyPI wheels.
CUDA_12 = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # torch 2.10
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # torch 2.11
V100, T4, A100, ADA, H100, FUTURE = (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (13, 0)


@pytest.mark.parametrize(
    ("gpu", "built_for"),
    [(V100, CUDA_12), (T4, CUDA_12), (ADA, CUDA_13), (H100, CUDA_13), (FUTURE, CUDA_13), (H100, ["sm_90a"])],
)
def test_gpus_that_a_torch_runs_on(gpu: tuple[int, int], built_for: list[str]) -> None:
    refuse_missing_kernels("GPU", gpu, built_for)


@pytest.mark.parametrize(
    ("gpu", "built_for"), [(V100, CUDA_13), (A100, ["sm_86"]), (FUTURE, CUDA_12), ((9, 1), ["sm_90a"]), (V100, [])]
)
def test_gpus_without_kernels_are_refused(gpu: tuple[int, int], built_for: list[str]) -> None:
    with pytest.raises(UserError, match=f"Tesla is sm_{gpu[0]}{gpu[1]} and this torch") as refused:
        refuse_missing_kernels("Tesla", gpu, built_for)
    assert all(architecture in str(refused.value) for architecture in built_for)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_gpus_that_slurm_gave_and_torch_does_not_see() -> None:
    place = LaunchEnvironment("srun", 0, 1, 0, 1, "n1", 1)
    with pytest.raises(UserError, match="Slurm gave 8 GPUs and torch .* sees none"):
        choose_device(place, {"SLURM_GPUS_ON_NODE": "8"})
    assert choose_device(place, {"SLURM_GPUS_ON_NODE": "8", "DS_ACCELERATOR": "cpu"}).type == "cpu"
    assert choose_device(place, {}).type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_ranks_than_gpus_are_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"torch sees {count} GPU"):
        choose_device(LaunchEnvironment("torchrun", count, count + 1, count, count + 1, "n1", 1), {})
    assert choose_device(LaunchEnvironment("torchrun", 0, 1, 0, 1, "n1", 1), {}) == torch.device("cuda", 0)
    assert rank_facts(torch.device("cuda", 0)).arch in torch.cuda.get_arch_list() + ["sm_89"]


def test_the_table_names_every_rank_once() -> None:
    facts = (
        [RankFacts("n1", "V100", "sm_70")] * 8 + [RankFacts("n2", "H100", "sm_90")] + [rank_facts(torch.device("cpu"))]
    )
    out = io.StringIO()
    print_ranks(facts, "srun", "gloo", Console(file=out, width=100))
    first, header, *rows = [line.split() for line in out.getvalue().splitlines()]
    assert " ".join(first).startswith("10 ranks on 3 hosts, started by srun, gloo, torch 2.")
    assert header == ["rank", "host", "device", "arch"]
    assert rows[:2] == [["0-7", "n1", "V100", "sm_70"], ["8", "n2", "H100", "sm_90"]]
    assert rows[2][0] == "9" and rows[2][2] == "cpu"
