"""Which part of a model each parameter belongs to, what a run does with their rates, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mbsd.config.parse import parse
from mbsd.config.run import OptimConfig, PretrainConfig
from mbsd.errors import UserError
from mbsd.model.heads import MbsdForClassification, MbsdForMaskedModelling
from mbsd.stages.labelled import LabelledObjective
from mbsd.stages.masked import MaskedObjective
from mbsd.stages.parts import part_rates, parts_of
from mbsd.stages.stage import Objective
from tests.baselines.samples import CONFIGS, tiny
from tests.conftest import Shop
from tests.model.reference import tiny_config
from tests.ranks import launch
from tests.settings import losses, stage_1_words, write_ds_config

# Beginnings of names (without "model.mbsd.") of the parameters that are the image stem, by architecture.
IMAGE = {
    "mbsd": ("patchify.", "image_position_PD", "mask_D"),
    "bert": (),
    "vit": ("projection.", "image_position_PD"),
    "vilt": ("projection.", "image_position_PD"),
    "fashionbert": ("crops.", "image_projection.", "image_norm.", "image_position_PD"),
    "kaleido": ("crops.", "image_projection.", "image_norm.", "image_position_PD"),
    "m6": ("crops.", "image_projection.", "image_norm.", "image_position_PD"),
    "ofa": (
        "stages.", "image_projection.", "image_norm.", "encoder_positions.places.", "encoder_positions.place_norm.",
        "encoder_positions.place_distances.",
    ),
    "two_tower": ("image.projection.", "image.image_position_PD"),
}  # fmt: skip


def objective(name: str) -> Objective:
    return LabelledObjective(MbsdForClassification(tiny_config() if name == "mbsd" else tiny(name)))


@pytest.mark.parametrize("name", ["mbsd", *CONFIGS])
def test_every_parameter_has_a_part(name: str) -> None:
    module = objective(name)
    found = parts_of(module)
    assert list(found) == [parameter for parameter, _ in module.named_parameters()]
    prefix = "model.mbsd."
    for parameter, part in found.items():
        inner = parameter.removeprefix(prefix)
        if not parameter.startswith(prefix) or "pooler." in inner:
            assert part == "head", parameter
        else:
            assert part == ("image" if inner.startswith(IMAGE[name]) else "backbone"), parameter
    assert {"model.classifier.weight"} <= {parameter for parameter, part in found.items() if part == "head"}
    for beginning in IMAGE[name]:
        assert any(p.startswith(prefix + beginning) for p in found), beginning


def test_heads_of_stage_1_and_the_images_own_cls() -> None:
    found = parts_of(MaskedObjective(MbsdForMaskedModelling(tiny_config(image_cls=True))))
    heads = {name for name, part in found.items() if part == "head" and "pooler" not in name}
    assert {name.split(".")[1] for name in heads} == {"word_transform", "word_bias", "patch_decoder"}
    assert found["model.mbsd.image_cls_D"] == "image"
    assert found["model.mbsd.embeddings.word_embeddings.weight"] == "backbone", "tied to the word head"


def test_rates_of_parts() -> None:
    assert part_rates(objective("mbsd"), OptimConfig()) is None
    module = objective("mbsd")
    before = {name for name, p in module.named_parameters() if p.requires_grad}
    rates = part_rates(module, OptimConfig(image=0, head=10))
    assert rates is not None and dict(rates.multiples) == {"backbone": 1.0, "head": 10.0}
    frozen = before - {name for name, p in module.named_parameters() if p.requires_grad}
    assert frozen == {name for name in before if rates.part_of[name] == "image"}
    with pytest.raises(UserError, match="optim.image=2: a BertBaselineConfig|optim.image=2: a .*bert.* trains no"):
        part_rates(objective("bert"), OptimConfig(image=2))
    with pytest.raises(UserError, match="nothing to train"):
        part_rates(objective("bert"), OptimConfig(backbone=0, head=0))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--optim.image=-1"], "optim.image=-1"),
        (["--optim.image=0", "--optim.head=0", "--optim.backbone=0"], "nothing would be trained"),
        (["--run.ema=1"], "run.ema=1"),
        (["--run.ema=1.5"], "run.ema=1.5"),
    ],
)
def test_refused(settings: list[str], named: str, tmp_path: Path) -> None:
    words = ["--deepspeed_config", str(write_ds_config(tmp_path)), "--run.dir=r", "--run.max_steps=2", *settings]
    with pytest.raises(UserError, match=named):
        parse(PretrainConfig, [*words, "--data.catalog=c"])


@pytest.mark.distributed
def test_a_run_with_rates_of_parts_and_an_average(shop: Shop, tmp_path: Path) -> None:
    """One rank as two; rates are logged by part; a frozen part stays; what is validated is what is saved."""
    schedule = {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_type": "linear"}}}
    more = ["--optim.image=0", "--optim.backbone=0.5", "--optim.head=3", "--run.ema=0.9", "--run.log_every=1",
            "--run.validate_samples=32", "--run.save_every=1", "--run.keep_last=9"]  # fmt: skip
    runs = [tmp_path / "one", tmp_path / "two"]
    for ranks, run in enumerate(runs, 1):
        start = launch(ranks, stage_1_words(run, shop.catalog, 5, *more, **schedule), tmp_path / "log")
        assert start.lines("frozen image") and start.lines("backbone x 0.5, head x 3")
    one, two = (losses(run) for run in runs)
    for step, values in one.items():
        assert two[step] == pytest.approx(values, rel=1e-5), step
    lines = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [{name: line[name] for name in line if name.startswith("lr")} for line in lines if "lr" in line]
    assert len(rates) == 5 and max(rate["lr"] for rate in rates) > 0.001
    for rate in rates:
        assert rate == pytest.approx({"lr": rate["lr"], "lr_backbone": rate["lr"] / 2, "lr_head": 3 * rate["lr"]})

    def saved(step: int) -> dict[str, torch.Tensor]:
        return load_file(runs[1] / "checkpoints" / f"step-{step:08d}" / "model" / "model.safetensors")

    assert all(torch.equal(saved(1)[name], w) == ("patchify" in name or "mask_D" in name or "image_position" in name
               or "pooler" in name) for name, w in saved(5).items()), "all but the frozen part has moved"  # fmt: skip

    # A second run whose first weights are the saved ones and which learns nothing validates to the same loss.
    again = [f"--run.init_from={runs[1]}", "--run.validate_samples=32", "--optim.head=1e-30", "--optim.image=0",
             "--optim.backbone=0"]  # fmt: skip
    launch(1, stage_1_words(tmp_path / "again", shop.catalog, 1, *again), tmp_path / "log")
    (expected,), (found,) = (losses(run, "validation/").values() for run in (runs[1], tmp_path / "again"))
    assert found == pytest.approx(expected, rel=1e-5)
    # The raw weights, which lie in the same checkpoint, are others.
    raw = load_file(runs[1] / "checkpoints" / "step-00000005" / "state-0000.safetensors")
    assert {"group0/average", "group0/master"} <= set(raw)
    assert not torch.equal(raw["group0/average"], raw["group0/master"])
