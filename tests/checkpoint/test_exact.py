"""k steps, kill -9, the same command: bitwise N steps in one go, mid-epoch, with dropout, crops and flips."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.runs import HALF, STEPS, arguments, checksums, kill_after, step
from tests.conftest import Shop
from tests.ranks import Ranks, launch
from tests.settings import losses

pytestmark = pytest.mark.distributed

ADAMW = {"type": "AdamW", "params": {"lr": 0.004, "weight_decay": 0.01, "torch_adam": True}}
# A first scale that overflows, so that steps are skipped, the scale falls, and both have to come back.
FP16 = {"enabled": True, "initial_scale_power": 19, "loss_scale_window": 4, "hysteresis": 2, "min_loss_scale": 1}
CASES: dict[str, dict[str, Any]] = {
    "fp32": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": FP16},
    "fp32, AdamW, no ZeRO": {"optimizer": ADAMW, "zero_optimization": {"stage": 0}},
    "bf16, AdamW, no ZeRO, averaged": {
        "optimizer": ADAMW,
        "zero_optimization": {"stage": 0},
        "bf16": {"enabled": True},
    },
    "fp16, parts, averaged": {"fp16": FP16, "scheduler": {"type": "WarmupCosineLR", "params": {}}},
    "bf16, gradients, cross-modal": {"bf16": {"enabled": True}},
}
AVERAGED = ["--run.ema=0.9"]
PARTS = ["--optim.image=0", "--optim.backbone=0.5", "--optim.head=4"]
MORE: dict[str, list[str]] = {
    "bf16, AdamW, no ZeRO, averaged": AVERAGED,
    "fp16, parts, averaged": AVERAGED + PARTS,
    "bf16, gradients, cross-modal": ["--masking.mpm_target=hog", "--masking.cross_modal=true"],
}


def allow_fp16(rank: int) -> None:
    """DeepSpeed trains fp16 on CPUs once its accelerator says that it may."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_bitwise_like_an_undisturbed_one(case: str, shop: Shop, tmp_path: Path) -> None:
    before = (allow_fp16, ())
    more = MORE.get(case, [])
    whole, cut = (arguments(tmp_path / name, shop.catalog, *more, ds=CASES[case]) for name in ("whole", "cut"))
    launch(2, whole, tmp_path / "log", before=before)
    kill_after(Ranks(2, cut, tmp_path / "log", before=before), step(tmp_path / "cut", HALF))
    assert not (tmp_path / "cut" / "DONE").exists()
    shutil.rmtree(tmp_path / "cut" / "tensorboard")  # only shown
    resumed = launch(2, cut, tmp_path / "log", before=before)
    assert f"resuming {step(tmp_path / 'cut', HALF)}" in resumed.printed()
    expected = checksums(step(tmp_path / "whole", STEPS))
    assert {"run.json", "state-0000.safetensors", "state-0001.json", "model/model.safetensors"} <= expected.keys()
    assert checksums(step(tmp_path / "cut", STEPS)) == expected
    if case.startswith("fp16"):
        import json

        facts = json.loads((step(tmp_path / "whole", HALF) / "run.json").read_text())
        assert 0 < facts["counters"]["skipped_steps"] < HALF  # else nothing was learned about the scale


def test_the_saved_model_is_what_save_pretrained_writes(shop: Shop, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from mbsd.model.heads import MbsdForMaskedModelling

    launch(1, arguments(tmp_path / "run", shop.catalog, "--run.max_steps=2"), tmp_path / "log")
    folder = step(tmp_path / "run", 2) / "model"
    model = MbsdForMaskedModelling.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    model.save_pretrained(tmp_path / "again")
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "again").iterdir())
    mine, theirs = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (folder / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize(
    ("optimizer", "before", "after", "more"),
    [("Lamb", 2, (1, 3), []), ("Lamb", 3, (2,), []), ("AdamW", 2, (3,), []), ("Lamb", 2, (1,), [*AVERAGED, *PARTS])],
)
def test_another_number_of_ranks_goes_on(
    optimizer: str, before: int, after: tuple[int, ...], more: list[str], shop: Shop, tmp_path: Path
) -> None:
    """The losses that follow are those of the undisturbed run to 1e-5: the same samples, weights, moments, schedule. So
    is the model that is saved."""
    ds = {"train_batch_size": 12} | ({"optimizer": ADAMW} if optimizer == "AdamW" else {})
    more = ["--model.dropout=0.0", *more]
    whole = arguments(tmp_path / "whole", shop.catalog, *more, ds=ds)
    launch(before, whole, tmp_path / "log")
    expected = losses(tmp_path / "whole")
    model = load_file(step(tmp_path / "whole", STEPS) / "model" / "model.safetensors")
    cut = arguments(tmp_path / "cut", shop.catalog, *more, ds=ds)
    kill_after(Ranks(before, cut, tmp_path / "log"), step(tmp_path / "cut", HALF))
    for ranks in after:
        run = tmp_path / f"to{ranks}"
        shutil.copytree(tmp_path / "cut", run)
        shutil.rmtree(step(run, STEPS), ignore_errors=True)
        resumed = launch(ranks, arguments(run, shop.catalog, *more, ds=ds), tmp_path / "log")
        assert f"resuming {step(run, HALF)} of {before} ranks" in resumed.printed()
        found = losses(run)
        assert sorted(found) == list(range(1, STEPS + 1))
        for number, values in expected.items():
            assert found[number] == pytest.approx(values, rel=1e-5), number
        for name, weight in load_file(step(run, STEPS) / "model" / "model.safetensors").items():
            torch.testing.assert_close(weight, model[name], rtol=1e-4, atol=1e-5, msg=name)
