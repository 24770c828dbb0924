"""`mbsd plan`: complete, consistent with itself and with what a run counts, and right about what fits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mbsd.cli.main import app
from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.parse import parse
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.errors import UserError
from mbsd.metrics.throughput import PEAK_FLOPS, peak_of, training_flops
from mbsd.tools.plan.gpus import GPUS, find_gpu, make_cluster
from mbsd.tools.plan.plan import Plan, make_plan
from mbsd.tools.plan.shapes import Lengths, Shapes

GIB = 1 << 30
V100 = find_gpu("v100-32g")
TWO_LAYERS = ("--model.num_hidden_layers=2",)
PARTS = (
    "weights", "gradients", "optimizer slices", "activations", "working memory", "the optimizer's step", "pictures",
    "reserve", "fullest moment", "largest micro-batch", "packed", "padded", "as released", "forward, backward",
    "reduce gradients", "gather weights", "step", "the whole run", "knob:",
)  # fmt: skip


def paper(stage: str, *words: str, ds: dict[str, Any] | None = None, **cluster: Any) -> Plan:
    """A stage of the paper on 16 V100s, with changes and two layers, which are traced sooner."""
    words = (*TWO_LAYERS, *words)
    ds_path = f"ds_configs/v100x16_{stage}.json"
    config, ds_config = parse(
        PretrainConfig, ["--config", f"launchers/configs/{stage}.yaml", "--deepspeed_config", ds_path, *words]
    )
    return make_plan(
        config, DeepSpeedConfig({**ds_config.tree, **(ds or {})}), make_cluster(V100, **{"gpus": 16, **cluster})
    )


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_papers_setting(stage: str, tmp_path: Path) -> None:
    """The command prints every part, and its numbers add up."""
    words = ["--config", f"launchers/configs/{stage}.yaml", "--deepspeed_config", f"ds_configs/v100x16_{stage}.json"]
    words += ["--gpu", "v100-32g", "--gpus", "16", "--samples", "1000000", "--json", str(tmp_path / "plan.json")]
    done = CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "100"}, catch_exceptions=False)
    assert done.exit_code == 0
    assert not [part for part in PARTS if part not in done.stdout], done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    memory, engine, speed, flops = plan["memory"], plan["memory"]["engine"], plan["speed"], plan["flops"]
    held = engine["weights"] + engine["gradients"] + engine["optimizer"] + memory["pictures"] + memory["reserve"]
    in_backward = memory["activations"] + memory["working"] + engine["reducing"]
    assert memory["total"] == held + max(in_backward, engine["step"])
    assert plan["fits"] is (memory["total"] <= plan["gpu"]["memory"])

    parameters = plan["parameters"]
    assert 102e6 < parameters < 108e6  # BERT-base with 21,128 words, and 1.5 M of patchify
    assert engine["weights"] == pytest.approx(2 * parameters, rel=1e-4)
    assert engine["optimizer"] == pytest.approx(12 * plan["trained"] / 16, rel=1e-4)
    assert engine["gradients"] >= 2 * plan["trained"] / 16

    epochs, batch = {"stage1": (10, 2048), "stage2": (3, 1024)}[stage]
    assert plan["steps"] == -(-epochs * 1_000_000 // batch)
    assert speed["step"] == pytest.approx(sum(speed[k] for k in ("compute", "optimizer", "exposed", "gather")))
    assert plan["days"] == pytest.approx(plan["steps"] * speed["step"] / 86400)
    assert plan["gpu_hours"] == pytest.approx(plan["days"] * 24 * 16)
    assert plan["samples_per_s"] == pytest.approx(batch / speed["step"])
    assert plan["mfu"] == pytest.approx(plan["samples_per_s"] / 16 * flops["packed"] / 125e12)
    assert flops["packed"] < flops["padded"] < flops["released"]
    assert 0.1 < plan["mfu"] < 0.65


@pytest.mark.parametrize("gpu", ["v100-32g", "h100-80g"])
def test_flops_are_those_of_the_kernels(gpu: str) -> None:
    """The formula of a run's MFU against the operations of the traced step: all but heads and embeddings."""
    config, _ = parse(PretrainConfig, ["--config", "launchers/configs/stage2.yaml"], ds_default=DeepSpeedConfig({}))
    shapes = Shapes(config, torch.float16, Lengths(30, 8), find_gpu(gpu).capability)
    assert shapes.trace(4).flops == pytest.approx(training_flops(shapes.model_config, shapes.batch(4)), rel=0.05)


def test_stage_vilt_is_planned_with_random_negatives() -> None:
    """Half of the samples are shown their own picture, and of these words are asked for; no patch is."""
    words = ["--config", "launchers/configs/stage1.yaml", "--stage=vilt"]
    config, _ = parse(PretrainConfig, words, ds_default=DeepSpeedConfig({}))
    shapes = Shapes(config, torch.float16, Lengths(30, 8), (7, 0))
    masks = shapes.batch(8).masks
    assert masks is not None and masks.patch_source is None
    assert (masks.num_words, masks.num_patches) == (round(0.15 * 8 * 30 / 2), 0)
    assert shapes.trace(4).flops == pytest.approx(training_flops(shapes.model_config, shapes.batch(4)), rel=0.05)
    hard, _ = parse(PretrainConfig, [*words, "--itm.negatives=hard"], ds_default=DeepSpeedConfig({}))
    with pytest.raises(UserError, match="itm.negatives=hard: a plan is of random negatives alone"):
        Shapes(hard, torch.float16, Lengths(30, 8), (7, 0))


def test_what_does_not_fit_is_said_with_what_does() -> None:
    four = "--model.num_hidden_layers=4"  # the last one keeps little
    plan = paper("stage2", four, ds={"train_batch_size": 65536, "train_micro_batch_size_per_gpu": 4096})
    assert not plan.fits and plan.memory.total > 32 * GIB
    largest = plan.largest_micro_batch
    assert largest < 4096 and 4096 % largest == 0
    assert f"set {largest}" in plan.advice[0] and f"gradient_accumulation_steps={4096 // largest}" in plan.advice[0]
    turned = paper("stage2", four, ds={"train_batch_size": 65536, "train_micro_batch_size_per_gpu": largest})
    assert turned.fits and turned.sizes.accumulation == 4096 // largest
    beyond = paper("stage2", four, ds={"train_batch_size": 65536, "train_micro_batch_size_per_gpu": 2 * largest})
    assert not beyond.fits
    lean = paper(
        "stage2", four, "--model.activation_checkpointing=true",
        ds={"train_batch_size": 65536, "train_micro_batch_size_per_gpu": 4096},
    )  # fmt: skip
    kept = [plan.memory.activations / GIB for plan in (lean, plan)]
    assert kept[0] < 0.5 * kept[1] and lean.largest_micro_batch > largest
    assert any(f"keeps {kept[0]:.2f} GiB of activations instead of {kept[1]:.2f}" in line for line in plan.advice)
    assert not any("model.activation_checkpointing=true" in line for line in lean.advice)


def test_room_is_named_as_a_larger_micro_batch() -> None:
    plan = paper("stage1", ds={"train_micro_batch_size_per_gpu": 16})
    assert plan.fits and plan.sizes.accumulation == 8
    assert plan.advice[0].startswith("train_micro_batch_size_per_gpu=16 leaves room") and "set 128" in plan.advice[0]
    assert paper("stage1").speed.step < plan.speed.step


def test_knobs_move_memory_as_they_should() -> None:
    plain = paper("stage1")
    engine = {stage: paper("stage1", ds={"zero_optimization": {"stage": stage}}).memory.engine for stage in (0, 1, 2)}
    assert engine[0].optimizer == pytest.approx(16 * engine[1].optimizer, rel=1e-3)
    assert engine[1].optimizer == engine[2].optimizer
    # without a bucket size DeepSpeed's is half a thousand million elements
    assert engine[2].reducing == 2 * 500_000_000 and plain.memory.engine.reducing == 2 * 2 * 50_000_000
    more = paper("stage1", gpus=32, ds={"train_micro_batch_size_per_gpu": 64})
    assert more.memory.engine.optimizer == pytest.approx(plain.memory.engine.optimizer / 2, rel=1e-3)
    assert more.memory.activations == pytest.approx(plain.memory.activations / 2, rel=0.05)
    wide = paper("stage1", ds={"fp16": {"enabled": False}})
    assert wide.memory.engine.weights == 2 * plain.memory.engine.weights
    assert wide.memory.activations == pytest.approx(2 * plain.memory.activations, rel=0.1)
    assert any("enable fp16" in line for line in wide.advice)


def test_nodes_and_networks_cost_time() -> None:
    half = {"train_batch_size": 1024}
    one, two = paper("stage1", gpus=8, ds=half), paper("stage1", gpus=8, nodes=2, ds=half)
    assert one.nodes == 1 and one.speed.reduce < two.speed.reduce
    assert one.speed.reduce_bytes == pytest.approx(2 * 7 / 8 * 2 * one.trained)
    assert paper("stage1", network=1e8).advice[-1].startswith("the network takes")


def test_without_a_json_the_plan_is_the_papers() -> None:
    config, nothing = parse(
        PretrainConfig, ["--config", "launchers/configs/stage1.yaml", *TWO_LAYERS], ds_default=DeepSpeedConfig({})
    )
    assert nothing.tree == {}
    plan = make_plan(config, None, make_cluster(find_gpu("h100-80g"), 4))
    assert plan.precision == "bf16" and plan.sizes.global_batch == 2048 and plan.fits
    assert plan.sizes.micro_batch == plan.largest_micro_batch
    tuned, _ = parse(FinetuneConfig, ["--config", "launchers/configs/attributes.yaml"], ds_default=DeepSpeedConfig({}))
    with pytest.raises(UserError, match="--deepspeed_config is missing"):
        make_plan(tuned, None, make_cluster(V100, 1))


def test_fine_tuning_is_planned_too() -> None:
    words = [
        "--config",
        "launchers/configs/attributes.yaml",
        "--deepspeed_config",
        "ds_configs/h100_finetune.json",
        *TWO_LAYERS,
    ]
    config, ds_config = parse(FinetuneConfig, words)
    plan = make_plan(config, ds_config, make_cluster(find_gpu("h100-80g"), 1), samples=48625)
    assert plan.fits and plan.speed.reduce == 0 and plan.steps == -(-3 * 48625 // 128)


def test_a_plan_needs_no_deepspeed() -> None:
    """The command in a process of its own, as a user starts it, with and without DeepSpeed's JSON."""
    words = ["plan", "--config", "launchers/configs/stage2.yaml", "--gpu", "v100-32g", *TWO_LAYERS]
    code = (
        "import sys; from mbsd.cli.main import app\n"
        f"for more in ([], ['--deepspeed_config', 'ds_configs/cpu_stage2.json']):\n"
        f"    app([*{words!r}, *more], standalone_mode=False)\n"
        "assert 'mbsd.tools.plan.plan' in sys.modules\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'deepspeed'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "is_fx_tracing" not in done.stderr  # torch warns of it where jagged tensors are made, as on a GPU
    assert done.stdout.count("fullest moment") == 2 and done.stdout.splitlines()[-1] == "[]"


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="--gpu a100: expected one of v100-32g"):
        find_gpu("a100")
    with pytest.raises(UserError, match="has no bf16"):
        paper("stage1", ds={"bf16": {"enabled": True}, "fp16": {"enabled": False}})
    with pytest.raises(UserError, match="--gpus 16 --nodes 3"):
        paper("stage1", nodes=3)
    with pytest.raises(UserError, match="not divisible by the 24 ranks"):
        paper("stage1", gpus=24)


def test_the_table_of_gpus_agrees_with_a_runs_mfu() -> None:
    for key, gpu in GPUS.items():
        assert gpu.half_flops == PEAK_FLOPS[key.split("-")[0].upper()]
        assert {peak_of(name) for name in gpu.device_names} == {gpu.half_flops}
        assert find_gpu(key) == gpu and gpu.memory / GIB == pytest.approx(float(key.split("-")[1][:-1]), rel=0.01)
