"""A finished folder is compared with what is asked of it; a run without a step left writes nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mbsd.config.deepspeed import read_deepspeed
from mbsd.config.parse import dotted, parse
from mbsd.config.run import PretrainConfig
from mbsd.config.schedules import learning_rate
from mbsd.errors import UserError
from mbsd.training.asked import DEEPSPEED_WITHOUT_EFFECT, WITHOUT_EFFECT, changes
from tests.conftest import Shop
from tests.ranks import launch, refused
from tests.settings import DS_CONFIG, TINY, run_words, stage_1_words, write_ds_config

STEPS = 3


@pytest.fixture(scope="module")
def finished(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage 1."""
    run = tmp_path_factory.mktemp("finished") / "run"
    launch(1, stage_1_words(run, shop.catalog, STEPS, "--run.log_every=1"), run.parent / "log")
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, to be trained on."""
    yield Path(shutil.copytree(finished, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def asked(run: Path, catalog: Path, *words: str, **ds: Any) -> list[str]:
    """The changes that a command line asks of a folder, without a start."""
    line = stage_1_words(run, catalog, STEPS, "--run.log_every=1", *words)
    json_file = write_ds_config(run.parent / "asked", **ds)
    config, ds_config = parse(PretrainConfig, [*map(str, line), f"--deepspeed_config={json_file}"])
    return [str(change) for change in changes(config, ds_config, run)]


def test_equal_settings_are_equal(finished: Path, shop: Shop, tmp_path: Path) -> None:
    """However they are spelled, and whatever can change no result."""
    assert asked(finished, shop.catalog) == []
    assert asked(finished, shop.catalog / ".." / shop.catalog.name) == []
    without_effect = [
        "--run.log_every=7", "--run.save_every=1", "--run.keep_last=5", "--run.timeout=60", "--data.num_workers=0",
        "--data.prefetch=2", "--run.profile=2", "--model.activation_checkpointing=true", "--run.extend=true",
    ]  # fmt: skip
    assert asked(finished, shop.catalog, *without_effect) == []
    cut = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}, "steps_per_print": 5}
    assert asked(finished, shop.catalog, **cut) == []
    spelled = {"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_type": "linear"}}}
    assert asked(finished, shop.catalog, **spelled) == []


@pytest.mark.parametrize(
    ("words", "ds", "change"),
    [
        (["--run.max_steps=5"], {}, "run.max_steps was 3, now 5"),
        (["--run.max_steps=null", "--run.epochs=2"], {}, "run.epochs was not set, now 2.0"),
        (["--run.seed=1"], {}, "run.seed was 0, now 1"),
        (["--model.hidden_size=64"], {}, "model.hidden_size was 32, now 64"),
        (["--data.image_size=64"], {}, "data.image_size was 32, now 64"),
        (["--data.tokenizer=words"], {}, "data.tokenizer was not set, now words"),
        (["--run.init_from=other"], {}, "run.init_from was not set, now other"),
        (["--masking.mlm_probability=0.3"], {}, "masking.mlm_probability was not set, now 0.3"),
        (["--run.validate_every=2"], {}, "run.validate_every was 500, now 2"),
        ([], {"train_batch_size": 32}, "train_batch_size was 16, now 32"),
        ([], {"bf16": {"enabled": True}}, "bf16.enabled was not set, now True"),
        ([], {"gradient_clipping": 0.5}, "gradient_clipping was 1.0, now 0.5"),
        (
            [],
            {"optimizer": {"type": "Lamb", "params": {**DS_CONFIG["optimizer"]["params"], "lr": 0.1}}},  # type: ignore[index]
            "optimizer.params.lr was 0.004, now 0.1",
        ),
        ([], {"scheduler": {"type": "WarmupLR"}}, "scheduler.type was WarmupDecayLR, now WarmupLR"),
    ],
)
def test_another_setting_is_named(
    words: list[str], ds: dict[str, Any], change: str, finished: Path, shop: Shop
) -> None:
    assert change in asked(finished, shop.catalog, *words, **ds)


def test_every_setting_that_is_left_out_exists() -> None:
    from mbsd.config.data import DataConfig
    from mbsd.config.deepspeed_keys import TOP
    from mbsd.config.run import BaseConfig, RunConfig

    names = {name for name, _ in dotted(dataclasses.asdict(BaseConfig(RunConfig("run"), DataConfig("catalog"))))}
    assert names >= WITHOUT_EFFECT
    assert {name.split(".")[0] for name in DEEPSPEED_WITHOUT_EFFECT} <= TOP.keys()


@pytest.mark.distributed
def test_a_finished_folder_refuses_another_run_and_stays_as_it_is(finished: Path, shop: Shop, tmp_path: Path) -> None:
    before = files(finished)
    same = stage_1_words(finished, shop.catalog, STEPS)
    same[1] = write_ds_config(tmp_path / "ds")
    assert launch(2, same, tmp_path / "log").lines("nothing to do"), "another number of ranks is no setting"
    for words, named in (
        (["--run.max_steps=5"], ["run.max_steps was 3, now 5", "run.extend=true"]),
        (["--run.max_steps=2"], ["run.max_steps was 3, now 2", "set them back"]),
        (["--data.catalog=nowhere"], ["data.catalog was", "now nowhere", "another run.dir"]),
    ):
        line = refused(2, [*same, *words], tmp_path / "log")
        assert str(finished) in line and all(part in line for part in named), line
    tuned = [*run_words(finished, shop.catalog, STEPS, *TINY), "--data.table", shop.tags]
    tuned[1] = same[1]
    line = refused(1, tuned, tmp_path / "log", launcher="finetune")
    assert str(finished) in line and "stage was masked, now not set" in line
    assert files(finished) == before


@pytest.mark.distributed
def test_nothing_left_writes_nothing(finished: Path, run: Path, shop: Shop, tmp_path: Path) -> None:
    for steps, resume in ((STEPS, finished), (2, finished / "checkpoints" / f"step-{STEPS:08d}")):
        words = stage_1_words(tmp_path / "new", shop.catalog, steps, "--run.resume", resume)
        line = refused(1, words, tmp_path / "log")
        assert f"is of step {STEPS}, and run.max_steps={steps}: nothing left" in line and str(resume) in line
        assert not (tmp_path / "new").exists()
    (run / "DONE").unlink()
    before = files(run)
    line = refused(1, stage_1_words(run, shop.catalog, 2), tmp_path / "log")
    assert f"is of step {STEPS}, and run.max_steps=2" in line and files(run) == before
    # Ended between its last save and DONE: the same command makes up for that.
    launch(1, stage_1_words(run, shop.catalog, STEPS), tmp_path / "log")
    assert (run / "DONE").read_text() == f"{STEPS}\n"


@pytest.mark.distributed
def test_a_finished_run_is_trained_for_longer_where_that_is_asked_for(run: Path, shop: Shop, tmp_path: Path) -> None:
    words = stage_1_words(run, shop.catalog, 8, "--run.log_every=1", "--run.extend=true")
    (line,) = launch(1, words, tmp_path / "log").lines("run.extend:")
    resolved = json.loads((run / "ds_config.json").read_text(encoding="utf-8"))
    assert resolved["scheduler"]["params"]["total_num_steps"] == 8
    rate = learning_rate(resolved, STEPS)
    assert f"the learning rate of step 4 is {rate:.4g}" in line and "laid out anew over 8 steps" in line
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = {row["step"]: row["lr"] for row in rows if "lr" in row}
    assert list(rates) == list(range(1, 9)) and rates[4] == pytest.approx(rate)
    assert rates[8] == pytest.approx(learning_rate(resolved, 7))
    assert (run / "DONE").read_text() == "8\n"
    at_3, at_8 = (load_file(run / f"checkpoints/step-0000000{n}/model/model.safetensors") for n in (STEPS, 8))
    assert any(not (at_3[name] == at_8[name]).all() for name in at_3)
    # Asked again it is done; asked for less there is nothing left.
    assert launch(1, words, tmp_path / "log").lines("nothing to do")
    fewer = stage_1_words(run, shop.catalog, 5, "--run.extend=true")
    assert "is of step 8, and run.max_steps=5: nothing left" in refused(1, fewer, tmp_path / "log")


def test_a_run_that_early_stopping_ended_needs_more_patience_to_go_on(tmp_path: Path) -> None:
    from mbsd.training.asked import refuse_exhausted
    from mbsd.training.early_stopping import EarlyStopping
    from mbsd.training.state import TrainState

    loader: Any = None
    average: Any = None
    ended = EarlyStopping("loss", higher_is_better=False, patience=2, stale=2)
    with pytest.raises(UserError, match=f"{tmp_path}: early stopping ended this run after step 4 .best.patience"):
        refuse_exhausted(TrainState(10, loader, average, ended, step=4), tmp_path)
    more = dataclasses.replace(ended, patience=3)
    refuse_exhausted(TrainState(10, loader, average, more, step=4), tmp_path)


def test_a_folder_of_an_older_version_is_read(shop: Shop) -> None:
    """Settings that it does not know have had their defaults."""
    from tests.ranks import ROOT

    folder = ROOT / "tests/compatibility/run"
    words = ["--config", str(folder / "config.yaml"), "--deepspeed_config", str(folder / "ds_config.json")]
    tree = json.loads((folder / "ds_config.json").read_text(encoding="utf-8"))
    ds_config = read_deepspeed(folder / "ds_config.json")
    tree["scheduler"]["params"]["total_num_steps"] = "auto"
    path = Path(str(shop.catalog.parent / "old.json"))
    path.write_text(json.dumps(tree), encoding="utf-8")
    config, _ = parse(PretrainConfig, [*words[:2], "--deepspeed_config", str(path)])
    assert changes(config, ds_config, folder) == []
