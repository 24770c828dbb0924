"""Which settings a row's runs are started with, and DeepSpeed's JSON with another batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.errors import UserError
from mbsd.tools.studies.chains import plan
from mbsd.tools.studies.commands import LaunchConfig
from mbsd.tools.studies.settings import AblationConfig, StageConfig
from mbsd.tools.studies.settings_files import same_inputs
from tests.settings import write_ds_config


def planned(folder: Path, row: int) -> dict[str, dict[str, Any]]:
    """Last part of a launch's name -> its YAML, of one fine-tuning of a row."""
    stages = {
        "stage1": {"stage": "masked", "run": {"dir": "x"}, "data": {"catalog": "c"},
                   "model": {"backbone": "bert", "dropout": 0.1}},
        "stage2": {"stage": "matching", "run": {"dir": "x", "init_from": "elsewhere"},
                   "data": {"catalog": "c", "table": "p"}, "model": {"dropout": 0.2}},
        "finetune": {"run": {"dir": "x", "init_from": "elsewhere"}, "data": {"catalog": "c", "table": "t"}},
    }  # fmt: skip
    ds_config = str(write_ds_config(folder))
    for name, tree in stages.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    files = [StageConfig(str(folder / f"{name}.yaml"), ds_config) for name in stages]
    config = AblationConfig(str(folder / "out"), *files, rows=row, seeds=3, learning_rates=(0.5,), constant_weight=0.25)
    launches, [cell] = plan(config, None, {"test": {}})
    assert (cell.row, cell.seed, cell.batch_size, cell.learning_rate) == (row, 3, 16, 0.5)
    assert all(launch.config["run"]["seed"] == 3 for launch in launches if launch.deepspeed is not None)
    return {launch.name.rpartition("/")[2]: launch.config for launch in launches}


# Row -> (stage 1, stage 2 and its sdmi section) as section 4.7 tells them; what is fine-tuned starts from the last.
ROWS: dict[int, list[tuple[str, dict[str, Any] | None]]] = {
    1: [("stage1", None), ("stage2", None)],
    2: [],
    3: [("stage2-alone", None)],
    4: [("stage1", None)],
    5: [("stage1-linear", None)],
    6: [("stage1", None), ("stage2-no-sdmi", {"unimodal_losses": False, "distillation": False})],
    7: [("stage1", None), ("stage2-no-distillation", {"distillation": False})],
    8: [("stage1", None), ("stage2-constant-weight", {"weight": 0.25})],
}


@pytest.mark.parametrize("row", ROWS)
def test_a_rows_chain(row: int, tmp_path: Path) -> None:
    found = planned(tmp_path, row)
    stages = ROWS[row]
    assert list(found) == [*(name for name, _ in stages), "batch-16-lr-0.5", "test"]
    start, model = None, {"backbone": "bert", "dropout": 0.1}
    for name, sdmi in stages:
        tree = found[name]
        assert tree.get("sdmi") == sdmi and tree["run"].get("init_from") == start
        assert tree["run"]["dir"] == str(tmp_path / "out/seed-3" / name)
        expected = model | ({"patchify": "linear"} if row == 5 else {})
        if tree["stage"] == "matching":
            expected = {"dropout": 0.2} if start else model | {"dropout": 0.2}
        assert tree["model"] == expected, "weights of before bring their sizes; without them it starts as stage 1 would"
        start = tree["run"]["dir"]
    tuned = found["batch-16-lr-0.5"]
    assert tuned["run"].get("init_from") == start and tuned.get("model", {}) == ({} if start else model)
    assert found["test"]["model"] == tuned["run"]["dir"] and found["test"]["data"] == tuned["data"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"rows": "2,9"}, "rows 2,9.*1 to 8"), ({"seeds": "a"}, "seeds a"),
     ({"batch_sizes": (8, 8)}, r"batch sizes \[8, 8\]"),
     ({"learning_rates": (-0.1,)}, "learning rates"), ({"launch": LaunchConfig(cpu_ranks=0)}, "cpu_ranks=0")],
)  # fmt: skip
def test_settings_that_cannot_be_meant(wrong: dict[str, Any], said: str) -> None:
    stage = StageConfig("x.yaml", "y.json")
    AblationConfig("out", stage, stage, stage).check()
    with pytest.raises(UserError, match=said):
        AblationConfig("out", stage, stage, stage, **wrong).check()


def test_another_catalogue_is_refused(tmp_path: Path) -> None:
    """A study's finished runs read the one of before."""
    same_inputs(tmp_path / "inputs.json", {"data/catalog": "a"}, "out")
    same_inputs(tmp_path / "inputs.json", {"data/catalog": "a", "data/pairs.parquet": "p"}, "out")
    with pytest.raises(UserError, match=r"^data/pairs\.parquet: .*another out$"):
        same_inputs(tmp_path / "inputs.json", {"data/pairs.parquet": "q"}, "out")


@given(
    ranks=st.sampled_from([1, 2, 4, 8]), micro=st.sampled_from([None, 4, 8, 16]), accumulation=st.integers(1, 3),
    factor=st.sampled_from([0.25, 0.5, 1, 2, 3]), told=st.booleans(),
)  # fmt: skip
def test_another_batch_fits_the_same_ranks(
    ranks: int, micro: int | None, accumulation: int, factor: float, told: bool
) -> None:
    total = ranks * (micro or 4) * accumulation
    ds_config: dict[str, Any] = {"train_batch_size": total, "optimizer": {"params": {"lr": 1.0}}}
    if micro is not None:
        ds_config["train_micro_batch_size_per_gpu"] = micro
        if told:
            ds_config["gradient_accumulation_steps"] = accumulation
    wanted = int(total * factor)
    changed = DeepSpeedConfig(ds_config, "ds.json").changed(wanted, 0.25)
    sizes = changed.sizes(ranks)
    assert sizes.global_batch == wanted and changed.tree["optimizer"]["params"]["lr"] == 0.25
    assert micro is None or sizes.micro_batch <= micro, "what fitted into memory still does"
    assert ds_config["train_batch_size"] == total and ds_config["optimizer"]["params"]["lr"] == 1.0


def test_a_json_that_would_contradict_the_grid() -> None:
    odd = {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 3}
    with pytest.raises(UserError, match=r"batch size 6: ds\.json.*micro_batch_size_per_gpu=3"):
        DeepSpeedConfig(odd, "ds.json").changed(6, None)
    stated = {"scheduler": {"params": {"warmup_max_lr": 0.1}}}
    with pytest.raises(UserError, match=r"ds\.json: scheduler\.params\.warmup_max_lr=0\.1"):
        DeepSpeedConfig(stated, "ds.json").changed(None, 0.2)
