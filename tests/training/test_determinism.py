"""The same run gives the same bits; what cannot is refused by name. On a GPU: `test_gpu.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mbsd.batch import VIEW_NAMES
from mbsd.config.data import DataConfig
from mbsd.config.run import RunConfig
from mbsd.config.stages import SdmiConfig
from mbsd.errors import UserError
from mbsd.model.heads import MbsdForMatching
from mbsd.stages.matching import MatchingObjective
from mbsd.training.determinism import prepare_workspace, repeatable, repeatable_decoder
from tests.conftest import Shop
from tests.model.reference import hand_batch, random_samples, randomise, tiny_config
from tests.ranks import launch
from tests.settings import losses
from tests.training.test_runs import stage_1

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_threads_of_a_cpu_add_gradients_in_one_order() -> None:
    """Every text token is read by two views, so that their gradients meet; without it they meet in any order."""
    config = tiny_config(hidden_size=128)
    step = MatchingObjective(MbsdForMatching(config), SdmiConfig())
    randomise(step, seed=1)
    samples = random_samples([(4, 12, True)] * 40, seed=2)
    batch = hand_batch(samples, VIEW_NAMES, config, labels=torch.arange(40.0) % 2)
    assert batch.views.source_T.numel() * config.hidden_size > 100_000  # below, torch adds in one thread

    def gradients() -> list[torch.Tensor]:
        step.zero_grad()
        step(batch, None)["loss"].backward()
        return [p.grad for p in step.parameters() if p.grad is not None]

    with repeatable(RunConfig(""), CPU):
        first = gradients()
        for _ in range(6):
            assert all(map(torch.equal, first, gradients()))
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_has_no_deterministic_kernel_is_named() -> None:
    place, value = torch.tensor([0]), torch.ones(1)
    with (
        pytest.raises(UserError, match=r"run.deterministic=true, and torch .* has no deterministic kernel for put_ on"),
        repeatable(RunConfig("", deterministic=True), CPU),
    ):
        torch.zeros(3).put_(place, value)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another mistake"), repeatable(RunConfig("", deterministic=True), CPU):
        raise RuntimeError("another mistake")


def test_a_gpu_is_left_as_it_is_where_nobody_asks() -> None:
    with repeatable(RunConfig(""), GPU):
        assert not torch.are_deterministic_algorithms_enabled()
    with repeatable(RunConfig("", deterministic=True), GPU):
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )


def test_the_decoder_of_a_gpu_is_not_taken() -> None:
    """NVIDIA's decoder is the default there, and nothing says that it repeats itself."""
    asked, data = RunConfig("", deterministic=True), DataConfig("")
    assert repeatable_decoder(data, asked, GPU).decoder == "torchvision"
    assert repeatable_decoder(data, RunConfig(""), GPU) is repeatable_decoder(data, asked, CPU) is data
    with pytest.raises(UserError, match=r"data.decoder=dali: .*set data.decoder=torchvision"):
        repeatable_decoder(DataConfig("", decoder="dali"), asked, GPU)


def test_the_workspace_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    prepare_workspace(RunConfig(""))
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 in the environment: set it to one of :4096:8, "):
        prepare_workspace(RunConfig("", deterministic=True))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    prepare_workspace(RunConfig("", deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.distributed
def test_the_setting_moves_no_number_on_a_cpu(shop: Shop, tmp_path: Path) -> None:
    found = []
    for value in ("true", "false"):
        run = tmp_path / value
        words = ["--run.max_steps=3", "--run.validate_every=0", f"--run.deterministic={value}"]
        launch(1, stage_1(run, shop, *words), tmp_path / "log")
        found.append(losses(run))
    assert found[0] == found[1] and len(found[0]) == 3
