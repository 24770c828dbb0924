"""Studies really run, are killed, go on, and their tables are what the runs' own files say."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.conftest import Shop
from tests.damage import damage
from tests.ranks import CPU, ROOT, command
from tests.settings import write_ds_config
from tests.studies.warm import Server

SIZES = {"image_size": 32, "num_workers": 0, "max_text_tokens": 48, "max_query_tokens": 16, "crop_scale": [1.0, 1.0]}
MODEL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "dropout": 0.0,
    "patchify_strides": [4, 2], "patchify_channels": [16], "vocab_size": 600,
}  # fmt: skip
ADAM = {"type": "AdamW", "params": {"lr": 0.003, "eps": 1e-6, "torch_adam": True}}
RATES = [0.002, 0.01]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("warm"))


@pytest.fixture(scope="module")
def files(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the user has: a YAML a stage, DeepSpeed's JSON, a study's YAML."""
    folder = tmp_path_factory.mktemp("files")
    data = {"catalog": str(shop.catalog), **SIZES}
    run = {"dir": "unused", "max_steps": 6, "save_every": 2, "log_every": 1, "validate_every": 3}
    stages = {
        "stage1": {"stage": "masked", "run": run, "data": data, "model": MODEL},
        "stage2": {"stage": "matching", "run": run, "data": {**data, "table": str(shop.pairs)}},
        "finetune": {"run": run, "data": {**data, "table": str(shop.tags)}},
    }
    ds_config = str(write_ds_config(folder, optimizer=ADAM))
    for name, tree in stages.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    study: dict[str, Any] = {
        name: {"config": str(folder / f"{name}.yaml"), "deepspeed_config": ds_config} for name in stages
    }
    study |= {"out": str(folder / "study"), "evaluate": {"bootstrap": 0, "micro_batch": 128}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


def study(launcher: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, f"launchers/{launcher}.py", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **CPU}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def said(started: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = started.communicate(timeout=300)
    assert started.returncode == code, output
    return output


def kill_when(started: subprocess.Popen[str], file: Path) -> None:
    """The study and the command it waits for, at once, as soon as the file is there."""
    deadline = time.monotonic() + 120
    while not file.exists():
        assert started.poll() is None and time.monotonic() < deadline, started.communicate()[0]
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()


def ablation_words(files: Path, warm: Server, *more: object) -> list[object]:
    return ["--config", files / "study.yaml", "--launch.command", warm.command, "--rows=2,4",
            f"--learning_rates={RATES}", *more]  # fmt: skip


@pytest.fixture(scope="module")
def ablation(files: Path, warm: Server) -> Iterator[tuple[Path, str]]:
    """Killed in stage 1 behind a checkpoint, then left alone."""
    out = files / "study"
    checkpoint = out / "seed-0/stage1/checkpoints/step-00000002"
    kill_when(study("ablation", *ablation_words(files, warm)), checkpoint)
    assert not (out / "seed-0/stage1/DONE").exists() and not (out / "ablation.md").exists()
    yield out, said(study("ablation", *ablation_words(files, warm)))


def cell(out: Path, row: int, rate: float) -> Path:
    return out / f"seed-0/row-{row}/batch-16-lr-{rate:g}"


@pytest.mark.distributed
def test_a_killed_ablation_goes_on(ablation: tuple[Path, str], warm: Server) -> None:
    out, _ = ablation
    names = [name for _, name in warm.started]
    assert names.count("seed-0/stage1") == 2, "killed once, gone on with once, for all cells of the row"
    assert "resuming" in (out / "logs/seed-0/stage1.log").read_text()
    others = [name for name in names if name != "seed-0/stage1"]
    assert len(others) == len(set(others)) == 8
    for rate in RATES:
        for row, start in ((2, None), (4, str(out / "seed-0/stage1"))):
            ran = yaml.safe_load((cell(out, row, rate) / "config.yaml").read_text())
            assert ran["run"].get("init_from") == start
            assert ran["model"]["hidden_size"] == (32 if start is None else 768), "drawn, or of the checkpoint"
            optimizer = json.loads((cell(out, row, rate) / "ds_config.json").read_text())["optimizer"]
            assert optimizer["params"]["lr"] == rate


@pytest.mark.distributed
def test_the_ablations_table_is_what_the_runs_say(ablation: tuple[Path, str]) -> None:
    out, screen = ablation
    lines = list(csv.DictReader((out / "ablation.csv").open()))
    assert len(lines) == 4
    page = (out / "ablation.md").read_text()
    for row, name in ((2, "w/o pre-training"), (4, "w/o continue pre-training")):
        values = []
        for rate in RATES:
            test = json.loads((cell(out, row, rate) / "test.json").read_text())["views"]["full"]["all"]["roc_auc"]
            assert [float(line["roc_auc"]) for line in lines
                    if (line["row"], float(line["learning_rate"])) == (str(row), rate)] == [test]  # fmt: skip
            values.append(100 * test)
        expected = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        pattern = rf"^\| {row} +\| {name} +\| {expected} \| {max(values):.2f} \| 2 +\|$"
        assert re.search(pattern, page, re.MULTILINE), page
        assert expected in screen
    with Image.open(out / "ablation.png") as picture:
        assert picture.width > 500


@pytest.mark.distributed
def test_what_is_done_is_not_done_again(ablation: tuple[Path, str], files: Path, warm: Server) -> None:
    out, _ = ablation
    before, page = len(warm.started), (out / "ablation.md").read_bytes()
    said(study("ablation", *ablation_words(files, warm)))
    assert len(warm.started) == before and (out / "ablation.md").read_bytes() == page


@pytest.mark.distributed
def test_what_is_damaged_is_named_and_made_again(ablation: tuple[Path, str], files: Path, warm: Server) -> None:
    """Scores in which a digit became another one, and the model of a finished run: these two launches and no other."""
    out, _ = ablation
    before, page = len(warm.started), (out / "ablation.md").read_bytes()
    scores = cell(out, 4, RATES[0]) / "test.json"
    given = scores.read_bytes()
    damage(scores, at=given.index(b"roc_auc") / len(given) + 14 / len(given))
    run = cell(out, 2, RATES[1])
    model = max(run.glob("checkpoints/step-*")) / "model/model.safetensors"
    weights = model.read_bytes()
    damage(model)
    screen = said(study("ablation", *ablation_words(files, warm)))
    names = [name for _, name in warm.started[before:]]
    assert len(names) == 2 and "row-2/batch-16-lr-0.01" in names[0] and "row-4/batch-16-lr-0.002" in names[1], names
    assert f"{scores}: its checksum is" in screen and "model/model.safetensors: its checksum is" in screen
    assert screen.count("there, but not as it was written") == screen.count("it is made again") == 2
    assert scores.read_bytes() == given and model.read_bytes() == weights
    assert (out / "ablation.md").read_bytes() == page


@pytest.mark.distributed
def test_other_settings_are_refused(ablation: tuple[Path, str], files: Path, warm: Server) -> None:
    before = len(warm.started)
    other = '{"run.max_steps": 9}'
    message = said(study("ablation", *ablation_words(files, warm, "--finetune.settings", other)), code=2)
    assert message.startswith("error: ") and message.count("\n") == 1
    for part in ("run.max_steps was 6", "is 9 now", "row-2/batch-16-lr-0.002.yaml", "choose another out"):
        assert part in message
    assert len(warm.started) == before


@pytest.mark.distributed
def test_a_failed_step_ends_the_study(files: Path, warm: Server, tmp_path: Path) -> None:
    """With what it said, and its exit code; a setting that no launcher knows is said before anything is started."""
    before = len(warm.started)
    typo = '{"run.max_stepz": 9}'
    words = ablation_words(files, warm, "--out", tmp_path / "study", "--rows=2")
    assert "max_stepz" in said(study("ablation", *words, "--finetune.settings", typo), code=2)
    assert len(warm.started) == before
    too_long = '{"data.max_text_tokens": 4000}'  # known to the model alone
    screen = said(study("ablation", *words, "--finetune.settings", too_long), code=2)
    assert "data.max_text_tokens=4000" in screen and "logs/seed-0/row-2/batch-16-lr-0.002.log" in screen
    assert len(warm.started) == before + 1


@pytest.mark.distributed
def test_missing_shares_the_runs_that_are_there(ablation: tuple[Path, str], files: Path, warm: Server) -> None:
    """In the same folder: stage 1 is the ablation's. Every number of the table is one of evaluate.py's."""
    out, _ = ablation
    before = len(warm.started)
    words = ["--config", files / "study.yaml", "--launch.command", warm.command, "--rates=[0.5]", "--rows=1,6"]
    said(study("missing", *words))
    assert [launcher for launcher, _ in warm.started[before:]].count("pretrain") == 2
    lines = list(csv.DictReader((out / "missing.csv").open()))
    assert len(lines) == 2 * 2 * 2 * 3  # rows, removed, where, rates
    values: dict[tuple[str, ...], float] = {}
    for line in lines:
        folder = out / f"seed-0/row-{line['row']}/batch-16-lr-0.003"
        scores = json.loads((folder / f"test-{line['removed']}.json").read_text())
        views = json.loads((folder / "test-title.json").read_text())["views"]
        rate = float(line["rate"])
        of_rate = {
            0.0: views["full"],
            0.5: scores["missing"].get(f"{line['removed']} missing at 0.5"),
            1.0: views["image" if line["removed"] == "title" else "text"],
        }[rate]
        found = of_rate["all"] if line["where"] == "all" else of_rate["where"]["image"]
        assert float(line["roc_auc"]) == found["roc_auc"]
        values[line["row"], line["removed"], line["where"], line["rate"]] = 100 * found["roc_auc"]
    tables = re.findall(r"\| 1 less 6, pair by pair +\|([^\n]*)\|", (out / "missing.md").read_text())
    for (removed, where), text in zip(
        [("title", "all"), ("image", "all"), ("title", "image"), ("image", "image")], tables, strict=True
    ):
        expected = [
            values["1", removed, where, rate] - values["6", removed, where, rate] for rate in ("0.0", "0.5", "1.0")
        ]
        assert [float(number) for number in text.split("|")] == pytest.approx(expected, abs=0.0051)
    for name, distils in (("stage2", True), ("stage2-no-sdmi", False)):
        logged = (out / f"seed-0/{name}/metrics.jsonl").read_text()
        assert ('"loss_kl"' in logged, '"loss_qv"' in logged) == (distils, distils), "in training; validations have all"
    assert (out / "missing.png").stat().st_size > 10_000


@pytest.mark.distributed
def test_a_killed_grid_goes_on_and_names_the_best_by_validation(files: Path, warm: Server) -> None:
    out, before = files / "grid", len(warm.started)
    words = ["--config", files / "finetune.yaml", "--deepspeed_config", files / "ds.json", "--run.dir", out,
             "--launch", warm.command, "--learning-rates", "0.0001,0.02", "--batch-sizes", "8",
             *(f"--model.{name}={json.dumps(value)}" for name, value in MODEL.items())]  # fmt: skip
    kill_when(study("grid", *words), out / "batch-8-lr-0.02-seed-0/checkpoints/step-00000002")
    screen = said(study("grid", *words))
    assert len(warm.started) - before == 3, "two runs, one of them started twice"
    validations = {}
    for folder in sorted(out.glob("batch-*")):
        logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        of_step = {line["step"]: line["validation/roc_auc_full"] for line in logged if "validation/loss" in line}
        assert set(of_step) == {3, 6}
        validations[folder.name] = max(of_step.values())
    assert len(validations) == 2
    lines = list(csv.DictReader((out / "grid.csv").open()))
    assert {line["run"]: float(line["value"]) for line in lines} == pytest.approx(validations)
    best = max(validations, key=validations.__getitem__)
    assert f"the best run is {out / best};" in screen
    page = (out / "grid.md").read_text()
    assert f"{validations[best]:.4f} (best)" in page and page.count("(best)") == 1
    assert all(f"{value:.4f}" in page for value in validations.values())
    batches = [
        json.loads((out / name / "ds_config.json").read_text())["train_batch_size"] for name in sorted(validations)
    ]
    assert batches == [8, 8], "not the 16 of DeepSpeed's JSON"
    command = screen.split("its test rows: ")[1].split()
    assert subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True).returncode == 0
    assert json.loads((out / best / "test.json").read_text())["model"] == str(out / best)
    assert (out / "grid.png").stat().st_size > 5_000


@pytest.mark.distributed
def test_a_listing_marks_the_best_checkpoint(ablation: tuple[Path, str]) -> None:
    from mbsd.checkpoint.best import result

    run = cell(ablation[0], 2, RATES[0])
    screen = command("checkpoint", "list", run).stdout
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of_step = {line["step"]: line["validation/roc_auc_full"] for line in logged if "validation/loss" in line}
    best = min(step for step, value in of_step.items() if value == max(of_step.values()))
    marked = [line for line in screen.splitlines() if "(best)" in line]
    assert len(marked) == 1 and f"roc_auc_full {of_step[best]:.4f} (best)" in marked[0]
    assert re.search(rf"\b{best}\b", marked[0]) and result(run / "checkpoints") == run / f"checkpoints/step-{best:08d}"
