"""Start block, TensorBoard, checkpoint and `mbsd plan` name the precision and the learning rate that train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mbsd.config.deepspeed import precision
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.tools.plan.gpus import find_gpu, make_cluster
from mbsd.tools.plan.plan import make_plan
from mbsd.training.run_folder import run_settings
from tests.conftest import Shop
from tests.ranks import launch
from tests.settings import ADAM, DS_CONFIG, stage_1_words

STEPS = 8
DECAY = {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 2, "warmup_type": "linear"}}
SLOW: dict[str, Any] = {"type": "WarmupLR", "params": {"warmup_num_steps": 12, "warmup_type": "linear"}}
# DeepSpeed's JSON; the precision and the highest rate that its steps use.
CASES: dict[str, tuple[dict[str, Any], str, float]] = {
    "no warmup_max_lr": ({"scheduler": DECAY}, "fp32", 0.004),
    "bf16, AdamW": ({"scheduler": DECAY, "optimizer": ADAM, "bf16": {"enabled": True}}, "bf16", 0.003),
    "a run that ends before its peak": ({"scheduler": SLOW}, "fp32", 0.004 * 6 / 12),
    "no schedule": ({"scheduler": None, "bf16": {"enabled": False}}, "fp32", 0.004),
}


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_all_say_what_trains(case: str, shop: Shop, tmp_path: Path) -> None:
    ds, kind, peak = CASES[case]
    run = tmp_path / "run"
    words = stage_1_words(run, shop.catalog, STEPS, "--run.log_every=1", "--run.validate_samples=16", **ds)
    optimizer = ds.get("optimizer", DS_CONFIG["optimizer"])["type"]
    block = launch(1, words, tmp_path / "log").printed()
    assert f"{optimizer}, lr {peak:g}, ZeRO-2, {kind}" in block

    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(row["lr"] for row in rows if "lr" in row) == pytest.approx(peak)
    checkpoint = run / f"checkpoints/step-{STEPS:08d}"
    saved = json.loads((checkpoint / "ds_config.json").read_text(encoding="utf-8"))
    assert saved == json.loads((run / "ds_config.json").read_text(encoding="utf-8")) and precision(saved) == kind
    with safe_open(checkpoint / "model/model.safetensors", framework="pt") as model:
        kinds = {str(model.get_slice(name).get_dtype()) for name in model.keys()}  # noqa: SIM118
    assert kinds == {"BF16" if kind == "bf16" else "F32"}

    config, ds_config = parse(PretrainConfig, list(map(str, words)))
    settings = run_settings(config, saved, STEPS)  # TensorBoard's
    assert (settings["precision"], settings["peak_lr"]) == (kind, pytest.approx(peak))
    assert settings["schedule"] == (ds["scheduler"]["type"] if ds["scheduler"] else "none")
    if case == "a run that ends before its peak":
        plan = make_plan(config, ds_config, make_cluster(find_gpu("v100-32g"), 1))
        assert (plan.precision, plan.optimizer, plan.peak_lr) == (kind, optimizer, pytest.approx(peak))
