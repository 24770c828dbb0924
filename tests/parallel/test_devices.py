"""GPUs that a torch was built for, and the table of ranks."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mbsd.errors import UserError
from mbsd.parallel import world
from mbsd.parallel.devices import (
    RankFacts,
    choose_device,
    print_ranks,
    rank_facts,
    refuse_missing_kernels,
    refuse_precision,
    refuse_shared_gpus,
)
from mbsd.parallel.launch_env import BY_HAND, LaunchEnvironment, find_launch_environment
from tests.ranks import refused
from tests.settings import stage_1_words

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


class Gpus:
    """What torch tells of GPUs, for a process that sees so many of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: V100)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_12)


@pytest.mark.parametrize("started_by", ["srun", "torchrun", "deepspeed", "mpirun", BY_HAND])
def test_a_rank_takes_its_own_gpu_in_both_layouts(started_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all GPUs of the host the one of its number; of one that it sees alone, that one. DeepSpeed reads LOCAL_RANK,
    and ends with an error where Open MPI's variable differs from it."""
    third = LaunchEnvironment(started_by, 11, 16, 3, 8, "n1", 1)
    for visible, index in ((8, 3), (1, 0)):
        Gpus(monkeypatch, visible)
        device = choose_device(third, {})
        assert device == torch.device("cuda", index)
        exported = third.environment(device.index)
        assert exported["LOCAL_RANK"] == exported["OMPI_COMM_WORLD_LOCAL_RANK"] == str(index)
        assert (exported["RANK"], exported["WORLD_SIZE"]) == ("11", "16")
        again = find_launch_environment(exported)
        assert choose_device(again, {}) == device, "a second process group of this process"
    Gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="rank 11 is number 3 on this host and torch sees 2 GPUs"):
        choose_device(third, {})


def test_two_ranks_on_one_gpu_are_refused() -> None:
    """Each sees one GPU, and it is the same: what `CUDA_VISIBLE_DEVICES=0 torchrun --nproc-per-node 2` makes."""

    def ranks(*uuids: str, host: str = "n1") -> list[RankFacts]:
        return [RankFacts(host, "V100 cuda:0", "sm_70", uuid) for uuid in uuids]

    refuse_shared_gpus(ranks("a", "b") + ranks("a", "b", host="n2") + [rank_facts(torch.device("cpu"))] * 2)
    with pytest.raises(UserError, match=r"n1: ranks 1 and 3 both have V100 cuda:0 \(b\).*--gpus-per-task=1"):
        refuse_shared_gpus(ranks("a", "b", "c", "b"))


@pytest.mark.distributed
def test_ranks_learn_of_a_shared_gpu_before_nccl_does(tmp_path: Path) -> None:
    """One line, on every rank alike: what a driver tells of its GPU is put in place of the CPU's facts."""
    line = refused(3, stage_1_words(tmp_path / "run", tmp_path / "nowhere", 1), tmp_path / "log", before=(same_gpu, ()))
    assert "n7: ranks 0 and 1 both have H100 cuda:0 (GPU-5)" in line


def same_gpu(rank: int) -> None:
    """Every rank's facts are those of one GPU."""
    world.rank_facts = lambda device: RankFacts("n7", "H100 cuda:0", "sm_90", "GPU-5")


@pytest.mark.parametrize(
    ("precision", "supported", "advice"),
    [("bf16", ("fp32", "fp16"), "use fp16 there"), ("fp16", ("fp32", "bf16"), "use bf16 there")],
)
def test_a_precision_that_the_device_lacks_is_refused(precision: str, supported: tuple[str, ...], advice: str) -> None:
    with pytest.raises(UserError, match=f"Tesla computes in fp32 and .* enables {precision}: {advice}"):
        refuse_precision(precision, supported, "Tesla")
    for kind in supported:
        refuse_precision(kind, supported, "Tesla")


@pytest.mark.distributed
def test_a_run_in_bf16_on_a_gpu_without_it_ends_in_one_line(tmp_path: Path) -> None:
    """Before any data is read: the catalogue that is named does not exist."""
    words = stage_1_words(tmp_path / "run", tmp_path / "nowhere", 1, bf16={"enabled": True})
    line = refused(2, words, tmp_path / "log", before=(as_on_a_v100, ()))
    assert "computes in fp32 and fp16 alone, and DeepSpeed's JSON enables bf16: use fp16 there" in line
    assert not (tmp_path / "run").exists()


def as_on_a_v100(rank: int) -> None:
    """Rank 1's device has no bf16, as torch says of a V100."""
    if rank == 1:
        world.World.precisions = ("fp32", "fp16")  # type: ignore[assignment, misc]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_that_is_here() -> None:
    count = torch.cuda.device_count()
    if count > 1:
        with pytest.raises(UserError, match=f"torch sees {count} GPU"):
            choose_device(LaunchEnvironment("torchrun", count, count + 1, count, count + 1, "n1", 1), {})
    device = choose_device(LaunchEnvironment("torchrun", 0, 1, 0, 1, "n1", 1), {})
    assert device == torch.device("cuda", 0)
    facts = rank_facts(device)
    assert re.fullmatch(r"sm_\d+", facts.arch) and facts.device.endswith("cuda:0") and len(facts.uuid) == 36
    half = ("fp32", "fp16", "bf16") if torch.cuda.get_device_capability(device) >= (8, 0) else ("fp32", "fp16")
    assert world.World(0, 1, 0, device).precisions == half


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.distributed
def test_two_ranks_on_the_gpu_that_is_here_are_refused(tmp_path: Path) -> None:
    env = {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    line = refused(2, stage_1_words(tmp_path / "run", tmp_path / "nowhere", 1), tmp_path / "log", env=env)
    assert "ranks 0 and 1 both have" in line


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
